"""Settings of the hub as a service of its own, all from the environment; README.md has the table."""

from __future__ import annotations

import secrets
import warnings
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

from notifications.events import conf

env = environ.Env()


def _secret_key(path: Path) -> str:
    """The secret of the embedded mode, made at the first start and readable by its user alone."""
    try:
        return path.read_text()
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(50))
        return path.read_text()


# Where it runs: embedded (one process, files in HUB_DATA) unless a Redis or a database server is named.
HUB_DATA = Path(env.str("HUB_DATA", default="var")).absolute()
REDIS_URL = env.str("REDIS_URL", default="")
EMBEDDED = not REDIS_URL

DEBUG = env.bool("DEBUG", default=False)
SECRET_KEY = env.str("SECRET_KEY", default="")
if not SECRET_KEY:
    if not EMBEDDED:
        raise ImproperlyConfigured("SECRET_KEY is not set: give all processes the same long random text.")
    SECRET_KEY = _secret_key(HUB_DATA / "secret_key")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["localhost", "127.0.0.1", "[::1]"])
# Where a proxy serves it, if that is not at the root of its host.
ROOT_PATH = env.str("HUB_ROOT_PATH", default="").rstrip("/")
FORCE_SCRIPT_NAME = ROOT_PATH or None
HUB_ALLOWED_ORIGINS = env.list("HUB_ALLOWED_ORIGINS", default=[])
CSRF_TRUSTED_ORIGINS = [origin for origin in HUB_ALLOWED_ORIGINS if "://" in origin]

INSTALLED_APPS = [
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "notifications.events",
    "notifications.audit",
    "notifications.delivery",
    "notifications.web",
    "notifications.inbox",
    "notifications.chat",
    "notifications.dashboards",
    "notifications.progress",
    "notifications.alerts",
    "notifications.broadcasts",
    "notifications.api",
    # Last, as it puts its own admin of users in place of Django's.
    "hub.apps.HubConfig",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "notifications.web.middleware.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "notifications.audit.middleware.AuditMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "hub.urls"
ASGI_APPLICATION = "hub.asgi.application"
WSGI_APPLICATION = "hub.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "notifications.web.context.hub",
                "notifications.alerts.context.open_alerts",
                "notifications.broadcasts.context.banners",
            ]
        },
    }
]

# Data.
DATABASES: dict[str, dict[str, Any]] = {
    "default": env.db_url("DATABASE_URL", default=f"sqlite:///{HUB_DATA / 'hub.sqlite3'}")
}
DATABASES["default"].setdefault("ENGINE", "django.db.backends.dummy")  # a system check tells that it is none
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # Deferred transactions that read first fail with "database is locked" when another writer is quicker.
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
    }
    # In a file even under test: an in-memory database fails when several threads use it.
    DATABASES["default"]["TEST"] = {"NAME": str(HUB_DATA / "test.sqlite3")}
DATABASES["default"]["CONN_MAX_AGE"] = 60
DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

CHANNEL_LAYERS: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "notifications.events.layers.InProcessChannelLayer"}
    if EMBEDDED
    else {
        "BACKEND": "notifications.events.redis_layer.RedisChannelLayer",
        "CONFIG": {"hosts": [REDIS_URL]},
    }
}

# The hub's apps.
HUB_REDIS_URL = REDIS_URL
HUB_SOCKET = str(HUB_DATA / "hub.sock") if EMBEDDED else ""
# What cannot be read is left as it stands, for the system check that names the setting and the cure.
try:
    HUB_TOPICS = env.json("HUB_TOPICS", default={})
except ValueError:
    HUB_TOPICS = env.str("HUB_TOPICS")
HUB_API_KEYS = env.list("HUB_API_KEYS", default=[])
HUB_TOKEN_SECRET = env.str("HUB_TOKEN_SECRET", default="")
HUB_TOKEN_PREVIOUS_SECRETS = env.list("HUB_TOKEN_PREVIOUS_SECRETS", default=[])
HUB_TOKEN_PUBLIC_KEY = env.str("HUB_TOKEN_PUBLIC_KEY", multiline=True, default="")
HUB_TOKEN_JWKS_URL = env.str("HUB_TOKEN_JWKS_URL", default="")
HUB_TOKEN_AUDIENCE = env.str("HUB_TOKEN_AUDIENCE", default="")
HUB_TOKEN_ISSUER = env.str("HUB_TOKEN_ISSUER", default="")
HUB_SUBSCRIPTION_TOKEN_SECRET = env.str("HUB_SUBSCRIPTION_TOKEN_SECRET", default="")
HUB_WEBSOCKET_DEFLATE = env.bool("HUB_WEBSOCKET_DEFLATE", default=False)
# What carries WebSockets under `runhub`; notifications.server.sansio:SansIOWebSocketProtocol is there to fall back on.
HUB_WEBSOCKET_CLASS = env.str("HUB_WEBSOCKET_CLASS", default="notifications.server.websocket:HubWebSocketProtocol")
HUB_ALLOW_ANONYMOUS = env.bool("HUB_ALLOW_ANONYMOUS", default=True)
HUB_PUBLIC_CHAT_ROOMS = env.list("HUB_PUBLIC_CHAT_ROOMS", default=[])
HUB_CONNECTION_URL = env.str("HUB_CONNECTION_URL", default=f"{ROOT_PATH}/connection/websocket")
HUB_METRICS_TOKEN = env.str("HUB_METRICS_TOKEN", default="")
for _name, _setting in conf.SETTINGS.items():
    if _setting.is_number:
        _text = env.str(_name, default="")
        try:
            globals()[_name] = type(_setting.default)(_text) if _text else _setting.default
        except ValueError:
            globals()[_name] = _text

# Celery.
CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default=REDIS_URL or "memory://localhost")
CELERY_TIMEZONE = "UTC"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
# A task whose process of the pool was killed is tried again, as often as its own `max_retries` allows; given back to
# the broker, as it only is when that attempt cannot be sent, it would come again for as long as it kills its process.
CELERY_TASK_RETRY_ON_WORKER_LOST = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
# A worker takes what it can begin with, and leaves the rest to others.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# Tasks in hand outlive a connection, and are acknowledged over the next one.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = (
    # The in-memory broker looks for tasks once a second by default.
    {"polling_interval": 0.01}
    if CELERY_BROKER_URL.startswith("memory:")
    # Tasks of a killed worker are given to another one two to three minutes later; one that lives keeps its own for as
    # long as they take, see workers.unacked.
    else {"visibility_timeout": 120, "unacked_restore_throttle": 1, "unacked_mutex_expire": 30}
)

# Users and pages.
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "dashboard"
LOGOUT_REDIRECT_URL = "login"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SESSION_COOKIE_HTTPONLY = True
# Behind a proxy with TLS: HTTPS=true marks cookies as secure and believes the proxy's X-Forwarded-Proto.
HTTPS = env.bool("HTTPS", default=False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = SECURE_SSL_REDIRECT = HTTPS
SECURE_HSTS_SECONDS = env.int("HSTS_SECONDS", default=31_536_000) if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = HTTPS
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Static files are served from the apps themselves, or compressed and with hashed names from where STATIC_ROOT says
# that `collectstatic` has put them.
STATIC_URL = f"{ROOT_PATH}/static/"
STATIC_ROOT = env.str("STATIC_ROOT", default="") or None
WHITENOISE_USE_FINDERS = STATIC_ROOT is None
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if STATIC_ROOT
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}
# WhiteNoise reads a file in one go, on a thread, which is what this warning of Django's advises against.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")
MEDIA_ROOT = env.str("HUB_FILES", default=str(HUB_DATA / "files"))

UNFOLD = {
    "SITE_TITLE": "Notification hub",
    "SITE_HEADER": "Notification hub",
    "SITE_URL": "/",
    "SITE_SYMBOL": "notifications",
    # The blue of the hub's own pages.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.6)",
            "100": "oklch(93.2% .032 255.6)",
            "200": "oklch(88.2% .059 254.1)",
            "300": "oklch(80.9% .105 251.8)",
            "400": "oklch(70.7% .165 254.6)",
            "500": "oklch(62.3% .214 259.8)",
            "600": "oklch(54.6% .245 262.9)",
            "700": "oklch(48.8% .243 264.4)",
            "800": "oklch(42.4% .199 265.6)",
            "900": "oklch(37.9% .146 265.5)",
            "950": "oklch(28.2% .091 267.9)",
        }
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env.str("LOG_LEVEL", default="INFO")},
    "loggers": {
        # Its access log would print query strings, and tokens with them.
        "uvicorn.access": {"level": "WARNING", "propagate": False},
        "celery.app.trace": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
        # It tells of each task that arrives, and one arrives each second.
        "celery.worker.strategy": {"level": "WARNING"},
        "watchfiles.main": {"level": "WARNING"},
    },
}
