"""`manage.py runhub` as its users run it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.servers import Hub, HubProcess, eventually, free_port


def start(folder: Path, *arguments: str, **environment: str) -> HubProcess:
    """`runhub` without a given password."""
    return HubProcess(["-m", "hub", "runhub", *arguments], folder, {"HUB_DATA": str(folder / "data"), **environment})


def refused(folder: Path, *arguments: str, **environment: str) -> str:
    """What a `runhub` that cannot start says."""
    process = start(folder, *arguments, **environment)
    try:
        assert process.process.wait(60) == 1
    finally:
        process.kill()
    assert "Traceback" not in process.output
    return process.output


def test_the_first_start_prints_the_password_once_and_ctrl_c_ends_it(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    first = start(tmp_path, address)
    first.wait_for(f"http://{address}/")
    begun = time.monotonic()

    assert first.stop(signal.SIGINT) == 0

    assert time.monotonic() - begun < 5
    assert "Traceback" not in first.output
    (password,) = re.findall(r"Password: +(\S+)", first.output)
    assert "admin" in first.output
    second = start(tmp_path, address)
    first_output = first.output
    eventually(lambda: second.output.count(f"http://{address}/") == 2, seconds=60)
    with httpx.Client(base_url=f"http://{address}") as client:
        client.get("/accounts/login/")
        form = {"username": "admin", "password": password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post("/accounts/login/", data=form).status_code == 302
        assert client.get("/").status_code == 200
    assert second.stop(signal.SIGTERM) == 0
    assert "Traceback" not in second.output
    assert "Password" not in second.output.removeprefix(first_output)


def test_a_start_that_is_stopped_early_ends_without_a_traceback(tmp_path: Path) -> None:
    early = start(tmp_path, str(free_port()))
    eventually((tmp_path / "data" / "hub.sqlite3").exists, seconds=60)

    assert early.stop(signal.SIGINT) == 0

    assert "Traceback" not in early.output


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        output = refused(tmp_path, f"127.0.0.1:{port}")

    assert f"cannot listen on 127.0.0.1:{port}" in output
    assert "Password" not in output


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:", "127.0.0.1:99999", "no-such-host.invalid:8000"])
def test_an_address_that_is_none_is_said(tmp_path: Path, address: str) -> None:
    assert address in refused(tmp_path, address)


def test_a_failing_check_stops_the_start_with_its_text(tmp_path: Path) -> None:
    output = refused(tmp_path, str(free_port()), HUB_TOPICS='{"news": {"histroy_size": 10}}')

    assert "HUB_TOPICS['news'] has no option 'histroy_size'" in output
    assert not (tmp_path / "data" / "hub.sqlite3").exists()


def test_ipv6_addresses_stand_in_brackets(tmp_path: Path) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            port = probe.getsockname()[1]
    except OSError:
        pytest.skip("this machine has no IPv6")
    hub = start(tmp_path, f"[::1]:{port}")

    hub.wait_for(f"http://[::1]:{port}/")

    assert httpx.get(f"http://[::1]:{port}/health/live").status_code == 200
    assert hub.stop() == 0


def test_without_a_worker_tasks_are_refused_and_not_lost(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    hub = start(tmp_path, address, "--no-worker", HUB_ADMIN_PASSWORD=Hub.PASSWORD)
    hub.wait_for(f"http://{address}/")
    assert Hub.PASSWORD not in hub.output
    with httpx.Client(base_url=f"http://{address}") as client:
        client.get("/accounts/login/")
        form = {"username": "admin", "password": Hub.PASSWORD, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        client.post("/accounts/login/", data=form)

        answer = client.post("/tasks/prune/", headers={"X-CSRFToken": client.cookies["csrftoken"]})

    assert answer.status_code == 503
    assert "no worker runs tasks of this hub" in answer.json()["detail"]
    send = "from workers.tasks import prune_events; prune_events.delay()"
    sent = subprocess.run(
        [sys.executable, "-m", "hub", "shell", "-v", "0", "-c", send],
        cwd=tmp_path,
        env=hub.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert sent.returncode != 0
    assert "the task hub.prune_events was not sent" in sent.stderr
    assert hub.stop() == 0


def test_a_worker_that_nothing_can_reach_does_not_start(tmp_path: Path) -> None:
    worker = HubProcess(["-m", "celery", "-A", "workers", "worker"], tmp_path, {"HUB_DATA": str(tmp_path / "data")})

    assert worker.process.wait(60) != 0
    assert "this worker would never get a task" in worker.output


def test_with_reload_it_serves_from_a_process_that_can_be_replaced(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    hub = start(tmp_path, address, "--reload")
    hub.wait_for("Application startup complete")

    assert httpx.get(f"http://{address}/health/live").status_code == 200
    assert hub.stop(signal.SIGINT) == 0

    assert "Started reloader process" in hub.output
    assert "Traceback" not in hub.output


def test_the_admin_shows_its_pages(hub: Hub) -> None:
    with httpx.Client(base_url=hub.url, cookies={"sessionid": hub.sign_in()}) as client:
        for path in (
            "auth/user/",
            "auth/user/add/",
            "auth/user/1/change/",
            "auth/group/add/",
            "hub_alerts/alert/",
            "hub_api/apikey/add/",
            "hub_broadcasts/broadcast/add/",
        ):
            assert client.get(f"/admin/{path}").status_code == 200, path
