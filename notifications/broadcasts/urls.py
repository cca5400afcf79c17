from __future__ import annotations

from django.urls import path

from notifications.broadcasts import views

urlpatterns = [path("<int:broadcast_id>/dismiss/", views.dismiss, name="broadcast-dismiss")]
