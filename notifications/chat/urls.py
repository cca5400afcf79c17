from __future__ import annotations

from django.urls import path

from notifications.chat import views

urlpatterns = [
    path("", views.index, name="chat"),
    path("<path:room>/", views.room, name="chat-room"),
]
