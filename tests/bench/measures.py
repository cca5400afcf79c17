"""The measurements: each loads one server in one way, and tells what that cost. Rows compare two of their figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tests.bench.loadclient import PAYLOAD_BYTES, BenchError, LoadClient, fault_of
from tests.bench.peers import API_KEY, PEERS, SOCKETS, Hub, HubWithBareView, Peer, Rig, Tutorial, new_label
from tests.bench.stalled import StalledClients
from tests.servers import PROJECT

MANY_SOCKETS = 10_000
STEADY_DELIVERIES = 50_000
STALLED_CLIENTS, STALLED_TURNS = 10, 4
SETTLING_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Scale:
    """How long and how often things are measured."""

    seconds: float
    latencies: int
    latencies_at_many: int
    steady_seconds: float
    connects: int
    topics: int

    @classmethod
    def whole(cls) -> Scale:
        return cls(4.0, 200, 30, 10.0, 1_000, 100_000)

    @classmethod
    def quick(cls) -> Scale:
        return cls(0.8, 30, 6, 2.0, 300, 10_000)


Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one server in one measurement."""

    rig: Rig
    scale: Scale
    faults: list[str]


class Loaded:
    """A server under a load client: every phase is told with the CPU that it cost."""

    def __init__(self, turn: Turn, server: Peer, client: LoadClient) -> None:
        self.turn = turn
        self.server = server
        self.client = client

    def phase(self, command: str, *, timeout: float = 120) -> dict[str, Any]:
        """The load client's result, with `cpu` and `redis_cpu` in seconds and `redis_busy` as a share."""
        redis = self.turn.rig.redis
        cpu, redis_cpu = self.server.cpu(), redis.cpu()
        result = self.client.command(command, timeout=timeout)
        result["cpu"], result["redis_cpu"] = self.server.cpu() - cpu, redis.cpu() - redis_cpu
        result["redis_busy"] = result["redis_cpu"] / result["seconds"]
        return result

    def deliveries(self, command: str) -> dict[str, Any]:
        """A phase that publishes; what went wrong with its deliveries is noted as a fault of the run.

        Adds `cpu_us` per delivery, `rate` in deliveries per second, and how busy the server was and the core of the
        load client and Redis: where the server was not, something else bounded the rate, but not the CPU per delivery.
        """
        result = self.phase(command)
        if fault := fault_of(result):
            self.turn.faults.append(f"{self.server.title}, {command!r}: {fault}")
        if not result["received"]:
            raise BenchError(f"{self.server.title} delivered nothing: {result['note']}")
        result["cpu_us"] = result["cpu"] / result["received"] * 1e6
        result["redis_us"] = result["redis_cpu"] / result["published"] * 1e6
        result["rate"] = result["received"] / result["active_seconds"]
        result["server_busy"] = result["cpu"] / result["seconds"]
        result["load_busy"] = result["client_busy"] + result["redis_busy"]
        return result


@contextmanager
def loaded(turn: Turn, server: Peer, arguments: list[str], sockets: int) -> Iterator[Loaded]:
    """So many ready subscribers and the publishers, after a few messages that all of them received."""
    with LoadClient(arguments, core=turn.rig.cores.load) as client:
        client.subscribe(sockets)
        client.join_publishers()
        # nchan and nats answer before the subscription stands.
        time.sleep(SETTLING_SECONDS)
        under_load = Loaded(turn, server, client)
        under_load.phase("latency 3 5")
        yield under_load


def _picked(result: dict[str, Any], prefix: str, *names: str) -> Values:
    return {f"{prefix}{name}": result[name] for name in names}


LOOP = ("cpu_us", "rate", "server_busy", "client_busy", "load_busy")
DELAYS = ("half_us", "most_us", "last_us", "last_p99_us")


def fanout(turn: Turn, name: str) -> Values:
    """One topic, 1,000 sockets: 8 messages in flight, one at a time, and one at a time with pauses for the delays."""
    server = turn.rig.server(name)
    with loaded(turn, server, server.load(), SOCKETS) as load:
        at_8 = load.deliveries(f"closed {turn.scale.seconds} 8")
        at_1 = load.deliveries(f"closed {turn.scale.seconds} 1")
        values = {**_picked(at_8, "w8_", *LOOP), **_picked(at_1, "w1_", *LOOP)}
        # A broadcast of the tutorial's consumer takes as long as twenty of the others.
        count = max(5, turn.scale.latencies // 20) if name == Tutorial.name else turn.scale.latencies
        values.update(_picked(load.deliveries(f"latency {count} 5"), "", *DELAYS))
        if isinstance(server, Hub):
            values["w8_redis_us"] = at_8["redis_us"]
    return values


def few(turn: Turn, name: str) -> Values:
    """One topic, 100 sockets: the lower end of how the cost per delivery grows with the audience."""
    server = turn.rig.server(name)
    with loaded(turn, server, server.load(sockets=100), 100) as load:
        return _picked(load.deliveries(f"closed {turn.scale.seconds} 8"), "w8_", *LOOP)


def many(turn: Turn, name: str) -> Values:
    """A new server and one topic with 10,000 sockets: memory, delays, cost per delivery.

    On the hub also what a publication to ten subscribers of another topic costs before and after they came.
    """
    with PEERS[name](turn.rig) as server:
        values: Values = {}
        is_hub = isinstance(server, Hub)
        sockets = SOCKETS if name == Tutorial.name else MANY_SOCKETS
        with LoadClient(server.load(sockets=100), core=turn.rig.cores.load) as client:
            client.subscribe(100)
        if is_hub:
            values["publish_alone_us"] = _publish_cost(turn, server)
        time.sleep(1)
        before = server.resident()
        with LoadClient(server.load(sockets=sockets), core=turn.rig.cores.load) as client:
            client.subscribe(sockets)
            time.sleep(1)
            values["bytes_per_session"] = (server.resident() - before) / sockets
            if name == Tutorial.name:
                return values
            client.join_publishers()
            load = Loaded(turn, server, client)
            load.phase("latency 2 5")
            values.update(_picked(load.deliveries(f"latency {turn.scale.latencies_at_many} 5"), "", *DELAYS))
            values.update(_picked(load.deliveries(f"closed {turn.scale.seconds} 8"), "w8_", *LOOP))
            if is_hub:
                values["publish_beside_us"] = _publish_cost(turn, server)
        return values


def _publish_cost(turn: Turn, server: Peer) -> float:
    """CPU of the server per publication to ten subscribers, 8 in flight, in µs."""
    with loaded(turn, server, server.load(sockets=10), 10) as load:
        result = load.deliveries(f"closed {turn.scale.seconds} 8")
        return float(result["cpu"] / result["published"] * 1e6)


def one_to_one(turn: Turn, name: str) -> Values:
    """1,000 topics with one subscriber each, 64 messages in flight."""
    server = turn.rig.server(name)
    with loaded(turn, server, server.load(topics=SOCKETS), SOCKETS) as load:
        result = load.deliveries(f"closed {turn.scale.seconds} 64")
        return _picked(result, "", *LOOP, "redis_us")


def steady(turn: Turn, name: str) -> Values:
    """Open loop: 50,000 deliveries per second to 1,000 sockets, whether or not the server keeps up."""
    server = turn.rig.server(name)
    with loaded(turn, server, server.load(), SOCKETS) as load:
        result = load.deliveries(f"open {turn.scale.steady_seconds} {STEADY_DELIVERIES / SOCKETS}")
        return _picked(result, "", "p50_us", "p99_us", "max_us", "cpu_us", "client_busy")


def stalled(turn: Turn, name: str) -> Values:
    """One topic, 1,000 sockets, one message at a time: without, and with ten more sockets that stopped reading."""
    server = turn.rig.server(name)
    assert isinstance(server, Hub)
    label, command = new_label(), f"latency {turn.scale.latencies} 5"
    results: dict[str, list[dict[str, Any]]] = {"alone": [], "beside": []}
    with loaded(turn, server, server.load(label=label), SOCKETS) as load:
        for number in range(STALLED_TURNS):
            for how in sorted(results, reverse=number % 2 == 1):  # neither always comes after the other
                beside = StalledClients(server, f"bench:{label}-0", STALLED_CLIENTS)
                with beside if how == "beside" else nullcontext():
                    time.sleep(SETTLING_SECONDS)
                    results[how].append(load.deliveries(command))
    return {
        f"{how}_{value}": statistics.median(result[value] for result in found)
        for how, found in results.items()
        for value in ("last_us", "last_p99_us", "cpu_us")
    }


def connects(turn: Turn, name: str) -> Values:
    """Connections that are opened, 100 at a time, until each is authenticated and subscribed.

    On the hub each recovers from the position at which its topic stands, as after a reload of the page.
    """
    server = turn.rig.server("tutorial" if name.startswith("tutorial") else "hub")
    with LoadClient(_connecting(server, name, 100), core=turn.rig.cores.load) as client:
        client.subscribe(100)  # what the first ones load and fill is not what a connection costs
    arguments = _connecting(server, name, turn.scale.connects)
    values: Values = {}
    with LoadClient(arguments, core=turn.rig.cores.load) as client:
        redis = turn.rig.redis
        cpu, redis_cpu = server.cpu(), redis.cpu()
        result = client.subscribe(turn.scale.connects)
        values["cpu_us"] = (server.cpu() - cpu) / turn.scale.connects * 1e6
        values["redis_us"] = (redis.cpu() - redis_cpu) / turn.scale.connects * 1e6
        values["rate"] = turn.scale.connects / result["seconds"]
        values["client_busy"] = result["client_busy"]
    return values


def _connecting(server: Peer, name: str, sockets: int) -> list[str]:
    if isinstance(server, Hub):
        label = new_label()
        position = server.api("publish", channel=f"bench:{label}-0", data={})
        since = {"offset": position["offset"], "epoch": position["epoch"]}
        cookies = {"hub-cookie": server.session_cookies, "hub-again": server.returning_cookies}.get(name)
        return server.load(sockets=sockets, cookies=cookies(sockets) if cookies else (), since=since, label=label)
    assert isinstance(server, Tutorial)
    return server.load(signed_in=name != "tutorial-visitor")


def calls(turn: Turn, name: str) -> Values:
    """publish() in a process of its own, as a Celery task calls it, against `async_to_sync(group_send)`."""
    rig = turn.rig
    server = rig.server("hub" if name == "hub" else "tutorial")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), **server.environment()}
    code = [sys.executable, "-m", "tests.bench.publishing", "hub" if name == "hub" else "channels"]
    process = subprocess.Popen(
        [*code, str(turn.scale.seconds)],
        cwd=server.folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {rig.cores.server}),
    )
    output, _ = process.communicate(timeout=120)
    if process.returncode:
        raise BenchError(f"the publisher ended with {process.returncode}")
    result = json.loads(output)
    return {"cpu_us": result["cpu_us"], "events": result["events"]}


def requests(turn: Turn, name: str) -> Values:
    """POST requests over 8 kept-alive connections, to /api/publish or to a view that only answers."""
    rig = turn.rig
    if HubWithBareView.name not in rig.running:
        site = HubWithBareView(rig)
        site.start()
        rig.running[HubWithBareView.name] = site
    server = rig.running[HubWithBareView.name]
    arguments = ["--address", server.address, "--publisher", "http", "--publishers", "8"]
    headers = "Content-Type: application/json\r\n"
    body = f'{{"channel":"bench:{new_label()}","data":%p}}'
    if name == "hub":
        headers += f"X-API-Key: {API_KEY}\r\n"
        arguments += ["--publisher-path", "/api/publish"]
    else:
        arguments += ["--publisher-path", "/bare/"]
    arguments += ["--publisher-headers", headers, "--publication", body]
    with LoadClient(arguments, core=rig.cores.load) as client:
        client.join_publishers()
        load = Loaded(turn, server, client)
        load.phase("requests 0.3 8")
        result = load.phase(f"requests {turn.scale.seconds} 8")
    if result["refused"] or not result["answers"]:
        raise BenchError(f"{result['refused']} of {result['published']} requests were refused: {result['note']}")
    return {
        "cpu_us": result["cpu"] / result["answers"] * 1e6,
        "rate": result["answers"] / result["active_seconds"],
        "client_busy": result["client_busy"],
        "load_busy": result["client_busy"] + result["redis_busy"],
    }


def processes(turn: Turn, name: str) -> Values:
    """The 1,000 sockets and 8 messages in flight again, on one process or shared by two of the same hub."""
    first = turn.rig.server("hub")
    assert isinstance(first, Hub)
    if name == "hub":
        with loaded(turn, first, first.load(), SOCKETS) as load:
            return _picked(load.deliveries(f"closed {turn.scale.seconds} 8"), "", *LOOP)
    with (
        Hub(turn.rig, core=turn.rig.cores.second, beside=first) as second,
        loaded(turn, first, first.load(others=(second,)), SOCKETS) as load,
    ):
        cpu = second.cpu()
        result = load.deliveries(f"closed {turn.scale.seconds} 8")
        # Each process made half of the deliveries.
        result["cpu_us"] = (result["cpu"] + second.cpu() - cpu) / result["received"] * 1e6
        return _picked(result, "", *LOOP)


def topics(turn: Turn, name: str) -> Values:
    """Ten live topics with 100 sockets each: in a new process, and after it published to 100,000 other topics."""
    with Hub(turn.rig) as server:
        values: Values = {}
        values["ten_us"] = _cost_of_ten_topics(turn, server)
        label, at_once = new_label(), 1_000
        for start in range(0, turn.scale.topics, at_once):
            names = [f"bench:{label}-{number}" for number in range(start, start + at_once)]
            replies = server.api("broadcast", channels=names, data="x" * PAYLOAD_BYTES)["responses"]
            if refused := [reply for reply in replies if "result" not in reply]:
                raise BenchError(f"{len(refused)} topics were not published to: {refused[0]}")
        values["among_many_us"] = _cost_of_ten_topics(turn, server)
        return values


def _cost_of_ten_topics(turn: Turn, server: Hub) -> float:
    with loaded(turn, server, server.load(topics=10), SOCKETS) as load:
        return float(load.deliveries(f"closed {turn.scale.seconds} 8")["cpu_us"])


@dataclass(frozen=True, slots=True)
class Measure:
    """A measurement, and the names of what takes turns in it: servers, or ways to use one."""

    run: Callable[[Turn, str], Values]
    turns: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def description(self) -> str:
        return (self.run.__doc__ or "").strip()


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(fanout, ("hub", "tutorial", "c", "nchan", "nats")),
        Measure(few, ("hub", "c")),
        Measure(one_to_one, ("hub", "nchan", "nats", "c")),
        Measure(steady, ("hub", "nchan", "c")),
        Measure(stalled, ("hub",)),
        Measure(connects, ("hub", "hub-cookie", "hub-again", "tutorial", "tutorial-visitor")),
        Measure(calls, ("hub", "tutorial")),
        Measure(requests, ("hub", "bare-view")),
        Measure(processes, ("hub", "two-processes")),
        Measure(many, ("hub", "c", "nchan", "tutorial")),
        Measure(topics, ("hub",)),
    )
}


def missing(name: str) -> str | None:
    """What this machine lacks for a turn of that name, or None."""
    return PEERS[name].missing() if name in PEERS else None
