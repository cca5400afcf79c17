from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from notifications.delivery import control
from notifications.delivery.codes import Code, CommandError
from notifications.delivery.rpc import ANYBODY, SIGNED_IN, Context, rpc
from notifications.delivery.signals import client_message


@rpc("shop.price", params=dict[str, int], permission=ANYBODY)
def price(context: Context, params: dict[str, int]) -> dict[str, object]:
    return {"price": params["product"] * 100, "user": context.identity.user}


@rpc("shop.order", params=dict[str, int], permission=SIGNED_IN)
async def order(context: Context, params: dict[str, int]) -> None:
    raise CommandError(Code(1001, "out of stock"))


@receiver(client_message)
def answer(data: Any, client: str, **_: Any) -> None:
    control.message(client=client, data={"answer to": data})
