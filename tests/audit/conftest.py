from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from pytest_django import Settings


@pytest.fixture(autouse=True)
def _no_socket(settings: Settings) -> None:
    settings.HUB_SOCKET = ""


@pytest.fixture
def ana(django_user_model: type[User]) -> User:
    return django_user_model.objects.create_user("ana")
