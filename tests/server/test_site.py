"""A site of somebody else that installs the apps, made from the words of the README."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from websockets.asyncio.client import connect

from tests.server.test_sockets import receive
from tests.servers import PROJECT, HubProcess, free_port

TOPICS = """
from notifications.events import Topic, window

class OrderTopic(Topic):
    pattern = "orders:<int:order_id>"
    retention = window(size=10, seconds=60)

    def may_subscribe(self, user, order_id):
        return True
"""


def readme(comment: str) -> str:
    """The example of the README that begins with a comment."""
    found = re.search(rf"```python\n({re.escape(comment)}.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert found is not None, comment
    return found[1]


def start_project(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "django", "startproject", "mysite", "."], cwd=folder, check=True)


async def test_the_examples_of_the_readme_make_a_site(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}", "DJANGO_SETTINGS_MODULE": "mysite.settings"}

    def manage(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "django", *arguments],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    start_project(tmp_path)
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "topics.py").write_text(TOPICS)
    with (tmp_path / "mysite" / "settings.py").open("a") as settings:
        settings.write(readme("# mysite/settings.py, at the end") + 'INSTALLED_APPS += ["shop"]\n')
    (tmp_path / "mysite" / "asgi.py").write_text(readme("# mysite/asgi.py"))
    manage("migrate")
    port = free_port()
    websocket = "notifications.server.websocket:HubWebSocketProtocol"
    command = ["-m", "uvicorn", "mysite.asgi:application", "--port", str(port), "--ws", websocket]
    server = HubProcess(command, tmp_path, environment)
    server.wait_for("Uvicorn running")

    async with connect(f"ws://127.0.0.1:{port}/connection/websocket") as socket:
        await socket.send('{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"orders:42"}}')
        assert "connect" in await receive(socket)
        assert "subscribe" in await receive(socket)
        publish = "from notifications.events import publish; publish('orders:42', 'order.shipped', {'carrier': 'DHL'})"
        manage("shell", "-v", "0", "-c", publish)
        publication = (await receive(socket))["push"]["pub"]

    assert publication["data"] == {"carrier": "DHL"}
    assert publication["tags"]["type"] == "order.shipped"
    assert server.stop() in (0, -15)
