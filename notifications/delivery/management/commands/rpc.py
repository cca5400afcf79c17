"""`manage.py rpc`: which functions clients may call."""

from __future__ import annotations

import inspect
from typing import Any

from django.core.management.base import BaseCommand

from notifications.delivery.rpc import Function, registry
from notifications.events.management.table import table

HEAD = ("FUNCTION", "PARAMS", "PERMISSION", "WHAT IT DOES")


class Command(BaseCommand):
    help = "Lists the functions that clients may call: what they take, and who may call them."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(table(HEAD, [_row(function) for function in registry.functions]))


def _row(function: Function) -> tuple[str, ...]:
    return (
        function.method,
        function.params.__name__ if isinstance(function.params, type) else str(function.params),
        function.described_permission,
        (inspect.getdoc(function.function) or "-").splitlines()[0],
    )
