from __future__ import annotations

from django.urls import path

from notifications.alerts import views

urlpatterns = [
    path("", views.alerts, name="alerts"),
    path("<int:alert_id>/acknowledge/", views.acknowledge, name="alert-acknowledge"),
]
