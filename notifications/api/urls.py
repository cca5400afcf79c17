from __future__ import annotations

from django.urls import path

from notifications.api import views

urlpatterns = [path("docs", views.docs, name="api-docs")]
