"""Ends access while sockets are open: what Django tells about users is passed on to the control plane."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_out
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.utils import timezone

from notifications.delivery import control
from notifications.delivery.auth import login_of
from notifications.delivery.codes import FORCE_RECONNECT
from notifications.delivery.models import Revocation
from notifications.delivery.revocations import EVERYBODY, MARGIN_SECONDS, login_subject, user_subject
from notifications.events.exceptions import HubError

logger = logging.getLogger(__name__)


def connect_signals() -> None:
    """Listen to what may take rights from a user; called once, when the apps are ready."""
    user_model = get_user_model()
    user_logged_out.connect(_logged_out, dispatch_uid="hub-revocation")
    for model in apps.get_models():
        if issubclass(model, AbstractBaseSession):
            post_delete.connect(_session_deleted, sender=model, dispatch_uid=f"hub-revocation-{model._meta.label}")
    post_save.connect(_user_saved, sender=user_model, dispatch_uid="hub-revocation")
    post_delete.connect(_user_deleted, sender=user_model, dispatch_uid="hub-revocation")
    for field in ("groups", "user_permissions"):
        if hasattr(user_model, field):
            through = getattr(user_model, field).through
            m2m_changed.connect(_rights_changed, sender=through, dispatch_uid=f"hub-revocation-{field}")
    # Django tells nobody whose memberships a deleted group takes along.
    post_delete.connect(_group_deleted, sender=Group, dispatch_uid="hub-revocation-group")
    m2m_changed.connect(_group_changed, sender=Group.permissions.through, dispatch_uid="hub-revocation-group")


def _revoke(subject: str, ask: Callable[[], None]) -> None:
    """Note a change with the transaction that makes it, and tell the server processes when it is committed."""
    revocation = Revocation.objects.create(subject=subject)

    def asked() -> None:
        try:
            ask()
        except HubError:
            logger.exception("a change of rights did not reach the server processes")
        now = timezone.now()
        if now - revocation.revoked_at > timedelta(seconds=MARGIN_SECONDS / 2):
            # While the transaction was open the database still said, and the hub signed, what was before it.
            Revocation.objects.filter(pk=revocation.pk).update(revoked_at=now)

    transaction.on_commit(asked, robust=True)


def _logged_out(request: Any, **_: Any) -> None:
    # Not after a commit: the signal comes before the session is flushed, and its key is gone afterwards.
    key = getattr(getattr(request, "session", None), "session_key", None)
    if key:
        login = login_of(key)
        _revoke(login_subject(login), lambda: control.disconnect(login=login))


def _session_deleted(instance: AbstractBaseSession, **_: Any) -> None:
    # Without a logout: somebody else signs in with the same browser, or a site signs a user out everywhere. Expired
    # sessions are cleared away by the thousand, and nobody is let in with them.
    if instance.expire_date > timezone.now() and SESSION_KEY in instance.get_decoded():
        login = login_of(instance.session_key)
        # The browser may have a new key already, as after a change of the password: it is to come back with that.
        _revoke(login_subject(login), lambda: control.disconnect(login=login, code=FORCE_RECONNECT))


def _user_saved(instance: Any, created: bool, update_fields: frozenset[str] | None, **_: Any) -> None:
    if created or update_fields == frozenset({"last_login"}):
        return
    user = str(instance.pk)
    if instance.is_active:
        _revoke(user_subject(user), lambda: control.rejudge(user=user))
    else:
        _revoke(user_subject(user), lambda: control.disconnect(user=user))


def _user_deleted(instance: Any, **_: Any) -> None:
    user = str(instance.pk)
    _revoke(user_subject(user), lambda: control.disconnect(user=user))


def _rights_changed(instance: Any, action: str, reverse: bool, pk_set: set[Any] | None, **_: Any) -> None:
    if not action.startswith("post_"):
        return
    if not reverse:
        users = [str(instance.pk)]
    elif pk_set is not None:
        users = [str(pk) for pk in pk_set]
    else:  # a group was cleared, and no longer tells whom it had
        _revoke(EVERYBODY, control.rejudge)
        return
    for user in users:
        _revoke(user_subject(user), lambda user=user: control.rejudge(user=user))  # type: ignore[misc]


def _group_deleted(**_: Any) -> None:
    _revoke(EVERYBODY, control.rejudge)


def _group_changed(action: str, **_: Any) -> None:
    if action.startswith("post_"):
        _revoke(EVERYBODY, control.rejudge)
