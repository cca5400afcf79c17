"""Binds a model's saves and deletes to events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from django.db import models
from django.db.models.signals import post_delete, post_save

from notifications.events import counters
from notifications.events.event import plain
from notifications.events.exceptions import HubError

logger = logging.getLogger(__name__)

CREATED, UPDATED, DELETED = "created", "updated", "deleted"


class Binding(NamedTuple):
    """One call of `publishes()`."""

    model: type[models.Model]
    topic: str | Callable[[Any], str]
    on: frozenset[str]
    fields: tuple[str, ...]
    type: str

    @property
    def identifier(self) -> str:
        """What makes the binding one: declared again, it still publishes once."""
        return f"hub:{self.model._meta.label}:{self.topic}:{self.type}"

    def unbind(self) -> None:
        """Publish no more; a test's counterpart of `publishes()`."""
        post_save.disconnect(sender=self.model, dispatch_uid=self.identifier)
        post_delete.disconnect(sender=self.model, dispatch_uid=self.identifier)

    def fired(self, instance: models.Model, action: str) -> None:
        """Publish what happened to `instance`; a hub that cannot be reached never breaks the save."""
        from notifications.events.services import (
            publish,
        )  # services import Django models, bindings may be first

        try:
            # Made now and not at the commit: a deleted row has lost its key by then.
            topic = self.topic(instance) if callable(self.topic) else self.topic.format(**_names(instance))
            data = {"id": plain(instance.pk), **{field: _value(instance, field) for field in self.fields}}
            publish(topic, f"{self.type}.{action}", data, key=str(instance.pk))
        except HubError:
            counters.add("binding_failures")
            logger.exception("%s of a %s was not published", action, self.model.__name__)


def publishes(
    model: type[models.Model],
    *,
    topic: str | Callable[[Any], str],
    on: Iterable[str] = (CREATED, UPDATED, DELETED),
    fields: Sequence[str] = (),
    type: str | None = None,
) -> Binding:
    """Publish an event whenever a row of `model` is created, updated or deleted, after the commit only.

    `topic` is a name with attributes of the row in braces (`"orders:{pk}"`) or a function of the row. `fields`
    are put into the event's data beside the `id`; of a relation the key. The event's type is `type` (the model's
    name by default) and what happened: `order.created`. With `update_fields`, an update that touches none of
    `fields` publishes nothing. Raises ValueError for an unknown word in `on` or a field that the model lacks.
    """
    binding = Binding(model, topic, frozenset(on), tuple(fields), type or model._meta.model_name or "")
    if unknown := binding.on - {CREATED, UPDATED, DELETED}:
        raise ValueError(f"publishes({model.__name__}, on=…) knows created, updated, deleted, not {sorted(unknown)}")
    for field in binding.fields:
        if not hasattr(model, field):
            raise ValueError(f"publishes({model.__name__}, fields=…): the model has no {field!r}")

    def saved(instance: models.Model, created: bool, raw: bool, update_fields: frozenset[str] | None, **_: Any) -> None:
        if raw:  # a fixture is being loaded, rows it refers to may be missing
            return
        action = CREATED if created else UPDATED
        untouched = update_fields is not None and binding.fields and not update_fields & set(binding.fields)
        if action in binding.on and not untouched:
            binding.fired(instance, action)

    def deleted(instance: models.Model, **_: Any) -> None:
        binding.fired(instance, DELETED)

    if binding.on & {CREATED, UPDATED}:
        post_save.connect(saved, sender=model, weak=False, dispatch_uid=binding.identifier)
    if DELETED in binding.on:
        post_delete.connect(deleted, sender=model, weak=False, dispatch_uid=binding.identifier)
    return binding


def _names(instance: models.Model) -> dict[str, Any]:
    names = {field.attname: getattr(instance, field.attname) for field in instance._meta.concrete_fields}
    return {**names, "pk": instance.pk}


def _value(instance: models.Model, field: str) -> Any:
    value = getattr(instance, field)
    if isinstance(value, models.Model):
        value = value.pk
    elif callable(value):
        value = value()
    return plain(value)
