from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import views as auth_views
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from hub import views

urlpatterns = [
    path("", include("notifications.dashboards.urls")),
    path("chat/", include("notifications.chat.urls")),
    path("alerts/", include("notifications.alerts.urls")),
    path("hooks/", include("notifications.alerts.hooks")),
    path("tasks/", include("notifications.progress.urls")),
    path("broadcasts/", include("notifications.broadcasts.urls")),
    path("activity/", views.activity, name="activity"),
    path("lobby/", views.lobby, name="lobby"),
    path("accounts/login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("accounts/logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("api/", include("notifications.api.urls")),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url=static("hub/favicon.svg"))),
]
