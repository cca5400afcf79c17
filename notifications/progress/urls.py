from __future__ import annotations

from django.urls import path

from notifications.progress import views

urlpatterns = [
    path("", views.tasks, name="tasks"),
    path("prune/", views.prune, name="task-prune"),
    path("export/", views.export, name="task-export-start"),
    path("exports/<str:name>", views.download, name="task-export"),
]
