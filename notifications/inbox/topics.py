from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from notifications.events import Topic, user_topic, window
from notifications.events.configured import options_without_namespace, subscribers_may
from notifications.events.exceptions import UnknownTopic
from notifications.events.topics import resolve

_OPTIONS = options_without_namespace()


class PersonalTopic(Topic):
    """What is sent to one user; the server subscribes all their clients to it.

    Where `HUB_TOPICS` has options for names without a namespace, those about presence and about what a user may do
    besides receiving hold here as well.
    """

    # Any text: the subject of a token need not be a key of this site, and may have colons.
    pattern = "#<path:user_id>"
    retention = window(size=100, seconds=7 * 86_400)
    presence = bool(_OPTIONS.get("presence"))
    join_leave = bool(_OPTIONS.get("join_leave"))
    subscribers_may = subscribers_may(_OPTIONS)
    asks_only_identity = True

    def may_subscribe(self, user: Any, user_id: str) -> bool:
        """the user themself"""
        return bool(user.is_authenticated and str(user.pk) == user_id)

    def may_publish(self, user: Any, user_id: str) -> bool:
        """the user themself, where HUB_TOPICS says so"""
        return bool(_OPTIONS.get("allow_publish_for_client")) and self.may_subscribe(user, user_id)

    def may_see_presence(self, user: Any, user_id: str) -> bool:
        """the user themself, where HUB_TOPICS says so"""
        return bool(_OPTIONS.get("allow_presence_for_client")) and self.may_subscribe(user, user_id)

    def server_subscriptions(self, user: Any) -> Iterable[str]:
        if not user.is_authenticated:
            return ()
        name = user_topic(user)
        try:
            resolve(name)
        except UnknownTopic:  # a token's subject that no topic can be named after
            return ()
        return (name,)
