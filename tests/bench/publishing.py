"""What one event costs the synchronous caller that publishes it, as a Celery task does.

`python -m tests.bench.publishing hub|channels SECONDS` prints {"events": …, "cpu_us": …}: the CPU time of the whole
process per event, threads included. The settings are those of the environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import django

PAYLOAD = "x" * 198


def caller(way: str) -> Callable[[], object]:
    """A function that publishes one event."""
    django.setup()
    if way == "hub":
        from notifications.events import publish

        return lambda: publish("bench:calls", "message", PAYLOAD)
    from asgiref.sync import async_to_sync
    from channels.layers import get_channel_layer

    group_send = async_to_sync(get_channel_layer().group_send)
    return lambda: group_send("chat_bench", {"type": "chat.message", "message": PAYLOAD})


def main(way: str, seconds: float) -> dict[str, float]:
    """Publish for so long, after a first event that opens connections and loads modules."""
    call = caller(way)
    call()
    events, began, cpu_began = 0, time.monotonic(), time.process_time()
    while time.monotonic() - began < seconds:
        for _ in range(20):
            call()
        events += 20
    return {"events": events, "cpu_us": (time.process_time() - cpu_began) / events * 1e6}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]))))  # noqa: T201
