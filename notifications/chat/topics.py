from __future__ import annotations

from typing import Annotated, Any

import msgspec

from notifications.events import Topic, conf, durable

MESSAGE = "chat.message"


class Message(msgspec.Struct, frozen=True):
    """What somebody said."""

    message: Annotated[str, msgspec.Meta(pattern=r"\S", max_length=4_000)]


class ChatTopic(Topic):
    """A chat room. Members of the plain Channels group `chat_<room>` take part in it."""

    pattern = "chat:<path:room>"
    retention = durable(days=365)
    default_type = MESSAGE
    schemas = {MESSAGE: Message}
    asks_only_identity = True
    presence = True
    join_leave = True
    subscribers_may = frozenset({"publish", "history", "presence"})
    channels_group = "chat_{room}"
    channels_type = "chat_message"

    def may_subscribe(self, user: Any, room: str) -> bool:
        """signed-in users; visitors in HUB_PUBLIC_CHAT_ROOMS"""
        return bool(user.is_authenticated or room in conf.get("HUB_PUBLIC_CHAT_ROOMS"))

    def may_publish(self, user: Any, room: str) -> bool:
        """as subscribe"""
        return self.may_subscribe(user, room)

    def may_see_presence(self, user: Any, room: str) -> bool:
        """as subscribe"""
        return self.may_subscribe(user, room)
