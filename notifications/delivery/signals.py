"""What clients say that is neither an event nor a call."""

from __future__ import annotations

from django.dispatch import Signal

#: A client of the Centrifuge protocol sent a message that expects no answer (`send`). Receivers get `data` (decoded
#: JSON), `identity` (a `delivery.identity.Identity`) and `client` (its id); asynchronous ones run on the event loop,
#: others on a thread. Without any receiver such a client is disconnected with code 3508.
client_message = Signal()
