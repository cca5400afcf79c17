"""Migrates the database of the settings at hand, and fills it with users of whom some are signed in.

`python -m tests.bench.accounts USERS SESSIONS` prints {"users": [primary keys], "sessions": [session keys]}.
"""

from __future__ import annotations

import json
import secrets
import sys
from datetime import timedelta

import django


def main(user_count: int, session_count: int) -> dict[str, list[str]]:
    """Make the users and sessions, and return their keys."""
    django.setup()
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
    from django.contrib.sessions.backends.db import SessionStore
    from django.contrib.sessions.models import Session
    from django.core.management import call_command
    from django.utils import timezone

    call_command("migrate", interactive=False, verbosity=0)
    users = get_user_model()._default_manager
    # bulk_create sends no signals: nobody has to hear of these users.
    users.bulk_create([users.model(username=f"bench-{number}", password="!") for number in range(user_count)])
    made = list(users.filter(username__startswith="bench-").order_by("pk"))
    store, expires = SessionStore(), timezone.now() + timedelta(days=1)
    sessions = []
    for user in made[:session_count]:
        content = {
            SESSION_KEY: str(user.pk),
            BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
            HASH_SESSION_KEY: user.get_session_auth_hash(),
        }
        sessions.append(
            Session(session_key=secrets.token_hex(16), session_data=store.encode(content), expire_date=expires)
        )
    Session.objects.bulk_create(sessions)
    return {"users": [str(user.pk) for user in made], "sessions": [session.session_key for session in sessions]}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))  # noqa: T201
