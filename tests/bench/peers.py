"""The servers that are measured, each started by its real command line and pinned to one core."""

from __future__ import annotations

import ctypes
import glob
import itertools
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx
import jwt
import psutil

from tests.bench.loadclient import BenchError, compiled, compiler
from tests.servers import PROJECT, free_port, redis_server_binary

API_KEY = "the key of one benchmark"
TOKEN_SECRET = "the secret that signs the tokens of one benchmark"
USERS, SESSIONS = 10_000, 1_000
SOCKETS = 1_000
OPEN_FILES = 11_000
TOPICS = {
    "bench": {
        "history_size": 100,
        "history_ttl": "60s",
        "allow_recovery": True,
        "allow_subscribe_for_client": True,
        "allow_publish_for_client": True,
    }
}
_libc = ctypes.CDLL(None, use_errno=True)
_labels = itertools.count(1)


def new_label() -> str:
    """Part of a topic's name that no earlier measurement has used."""
    return f"r{next(_labels)}"


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, of all its threads and those that ended, in nanosecond steps.

    /proc/PID/stat counts in clock ticks of 10 ms. Raises BenchError when the process is gone.
    """
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise BenchError(f"process {pid} is gone")
    return time.clock_gettime(clock.value)


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core runs what: the server under test, the load with Redis, and a second server process."""

    server: int
    load: int
    second: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Three cores where there are that many; a second server process shares the load's core otherwise."""
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            raise BenchError("the server and the load client need a core each, and this process may use only one")
        return cls(available[0], available[1], available[2 % len(available)] if len(available) > 2 else available[1])


class Server(ABC):
    """A server process and its children, on one core."""

    name: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, rig: Rig, *, core: int | None = None) -> None:
        self.rig = rig
        self.core = rig.cores.server if core is None else core
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.folder = rig.new_folder(self.name)
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """What this machine lacks to run it, or None."""
        return None

    @classmethod
    def version(cls) -> str:
        """Its version, where it has one of its own."""
        return ""

    @abstractmethod
    def command(self) -> list[str]:
        """The command line."""

    def environment(self) -> dict[str, str]:
        """What the environment holds besides PATH and HOME."""
        return {}

    def answers(self) -> bool:
        """Whether it is ready."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5):
            return True

    def start(self) -> None:
        """Start it, and wait until it answers. Raises BenchError with its output when it does not."""
        log = self.folder / "output.log"
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**kept, "PYTHONPATH": str(PROJECT), **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Before it starts threads, which inherit the core.
                preexec_fn=lambda: os.sched_setaffinity(0, {self.core}),
            )
        try:
            wait_until(self._ready, seconds=60)
        except BenchError as error:
            self.stop()
            raise BenchError(f"{self.title} did not start: {error}\n{log.read_text()[-2000:]}") from error

    def _ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise BenchError(f"it ended with {self.process.returncode}")
        try:
            return self.answers()
        except (OSError, httpx.TransportError):
            return False

    def stop(self) -> None:
        """Stop it; a server that does not want to is killed."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _tree(self) -> list[psutil.Process]:
        assert self.process is not None
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess as error:
            raise BenchError(f"{self.title} is gone") from error

    def cpu(self) -> float:
        """CPU seconds that it has used so far."""
        return sum(cpu_seconds(process.pid) for process in self._tree())

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        return sum(process.memory_info().rss for process in self._tree())


class Peer(Server):
    """A server that fans out."""

    @abstractmethod
    def load(self, *, topics: int = 1, sockets: int = SOCKETS) -> list[str]:
        """The load client's arguments for topics that nobody has used before, and up to so many sockets."""


def wait_until(condition: Callable[[], bool], *, seconds: float) -> None:
    """Wait until the condition is true. Raises BenchError when that takes longer than so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"not ready after {seconds} s")
        time.sleep(0.02)


class Hub(Peer):
    """The hub: Redis layer and log, window retention, recovery, authenticated users."""

    name = "hub"
    title = "hub"
    settings = "hub.settings"

    def __init__(self, rig: Rig, *, core: int | None = None, beside: Hub | None = None) -> None:
        super().__init__(rig, core=core)
        if beside is None:
            accounts = rig.accounts("hub.settings", self.base_environment(rig, rig.folder / "accounts-hub"))
            shutil.copytree(accounts, self.folder / "data")
            self.data = self.folder / "data"
        else:
            self.data = beside.data
        self.users, self.sessions = rig.users_of("hub.settings")
        self._returning: list[str] = []

    @classmethod
    def version(cls) -> str:
        import notifications

        return notifications.__version__

    @staticmethod
    def base_environment(rig: Rig, data: Path) -> dict[str, str]:
        """What every process of the hub in this benchmark shares."""
        return {
            "HUB_DATA": str(data),
            "REDIS_URL": rig.redis.url,
            "SECRET_KEY": "the secret key of one benchmark, shared by its processes",
            "HUB_TOKEN_SECRET": TOKEN_SECRET,
            "HUB_API_KEYS": API_KEY,
            "HUB_TOPICS": json.dumps(TOPICS),
            "HUB_ADMIN_PASSWORD": "nobody signs in by it",
            **rig.settings,
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "hub", "runhub", self.address, "--no-worker"]

    def environment(self) -> dict[str, str]:
        return {**self.base_environment(self.rig, self.data), "DJANGO_SETTINGS_MODULE": self.settings}

    def answers(self) -> bool:
        return httpx.get(f"http://{self.address}/health/ready", timeout=5).status_code == 200

    def token(self, user: str) -> str:
        """A connection token."""
        now = int(time.time())
        claims = {"sub": user, "iat": now, "exp": now + 7_200, "info": {"name": f"user {user}"}}
        return jwt.encode(claims, TOKEN_SECRET, algorithm="HS256")

    def preamble(self, token: str, topic: str, since: dict[str, Any]) -> str:
        """The first frame of a client: connect, and subscribe with recovery."""
        connect = {"id": 1, "connect": {"token": token} if token else {}}
        subscribe = {"id": 2, "subscribe": {"channel": topic, "recover": True, **since}}
        return "\n".join(json.dumps(command, separators=(",", ":")) for command in (connect, subscribe))

    def load(
        self,
        *,
        topics: int = 1,
        sockets: int = SOCKETS,
        cookies: Sequence[str] = (),
        since: dict[str, Any] | None = None,
        label: str | None = None,
        others: tuple[Hub, ...] = (),
    ) -> list[str]:
        """Every socket is another user's, by token, or by one of the cookies if there are any.

        `since` is the cursor that clients recover from; `others` are more processes of the same hub.
        """
        label = label or new_label()
        users = itertools.cycle(self.users)
        preambles = [
            self.preamble("" if cookies else self.token(next(users)), f"bench:{label}-{number % topics}", since or {})
            for number in range(sockets)
        ]
        file = self.folder / f"preambles-{label}"
        file.write_text("\0".join(preambles) + "\0")
        arguments = [
            *("--address", ",".join(server.address for server in (self, *others))),
            *("--path", "/connection/websocket", "--protocol", "centrifuge"),
            *("--preamble-file", str(file), "--ready", '"subscribe":{', "--topics", str(topics)),
            *("--publisher", "ws", "--publisher-path", "/connection/websocket"),
            *("--publisher-preamble", self.preamble(self.token(self.users[0]), "", {}).partition("\n")[0]),
            *("--publisher-ready", '"connect":{'),
            *("--publication", f'{{"id":%n,"publish":{{"channel":"bench:{label}-%t","data":%p}}}}'),
        ]
        if cookies:
            headers = self.folder / f"headers-{label}"
            lines = [f"Cookie: {cookie}\r\nOrigin: http://{self.address}" for cookie in cookies]
            headers.write_text("\0".join(lines) + "\0", newline="")
            arguments += ["--headers-file", str(headers)]
        return arguments

    def session_cookies(self, count: int) -> list[str]:
        """Cookies of browsers that are signed in and open their first connection."""
        return [f"sessionid={session}" for session in self.sessions[:count]]

    def returning_cookies(self, count: int) -> list[str]:
        """Cookies of browsers that have been connected before: with those that the handshake's answer set."""
        for cookie in self.session_cookies(count)[len(self._returning) :]:
            self._returning.append("; ".join([cookie, *self._cookies_set(cookie)]))
        return self._returning[:count]

    def _cookies_set(self, cookie: str) -> list[str]:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(
                f"GET /connection/websocket HTTP/1.1\r\nHost: {self.address}\r\nOrigin: http://{self.address}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nCookie: {cookie}\r\n\r\n".encode()
            )
            answer = b""
            while b"\r\n\r\n" not in answer:
                if not (part := connection.recv(65_536)):
                    raise BenchError(f"the hub hung up on a handshake: {answer[:200]!r}")
                answer += part
        lines = answer.decode("latin-1").split("\r\n")
        fields = [line.partition(":")[::2] for line in lines]
        return [value.partition(";")[0].strip() for name, value in fields if name.lower() == "set-cookie"]

    def api(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the HTTP API. Raises BenchError for a refusal."""
        answer = httpx.post(
            f"http://{self.address}/api/{method}", json=parameters, headers={"X-API-Key": API_KEY}, timeout=60
        )
        body = answer.json()
        if answer.status_code != 200 or "result" not in body:
            raise BenchError(f"/api/{method} answered {answer.status_code}: {answer.text[:200]}")
        result: dict[str, Any] = body["result"]
        return result


class HubWithBareView(Hub):
    """The same project with one more URL, a view that only answers."""

    name = "hub-site"
    title = "hub with a bare view"
    settings = "tests.bench.site"


class Tutorial(Peer):
    """The consumer of the Channels tutorial, with channels-redis pub/sub, under uvicorn as it comes."""

    name = "tutorial"
    title = "Channels tutorial"
    settings = "tests.bench.tutorial.settings"

    def __init__(self, rig: Rig, *, core: int | None = None) -> None:
        super().__init__(rig, core=core)
        accounts = rig.accounts(self.settings, self._environment(rig, rig.folder / f"accounts-{self.name}"))
        shutil.copytree(accounts, self.folder / "data")
        self.users, self.sessions = rig.users_of(self.settings)

    @staticmethod
    def _environment(rig: Rig, data: Path) -> dict[str, str]:
        return {"BENCH_DATABASE": str(data / "db.sqlite3"), "REDIS_URL": rig.redis.url}

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", "tests.bench.tutorial.asgi:application", "--port", str(self.port)),
            *("--ws", "websockets-sansio", "--loop", "uvloop", "--http", "httptools", "--log-level", "warning"),
        ]

    def environment(self) -> dict[str, str]:
        return {**self._environment(self.rig, self.folder / "data"), "DJANGO_SETTINGS_MODULE": self.settings}

    def load(self, *, topics: int = 1, sockets: int = SOCKETS, signed_in: bool = True) -> list[str]:
        """Members of one room per topic, each signed in by a session of its own unless told otherwise."""
        label = new_label()
        cookies = self.folder / f"cookies-{label}"
        lines = [f"Cookie: sessionid={session}\r\n" if signed_in else "" for session in self.sessions]
        cookies.write_text("\0".join(f"{line}Origin: http://{self.address}" for line in lines) + "\0", newline="")
        return [
            *("--address", self.address, "--path", f"/ws/chat/{label}_%t/", "--headers-file", str(cookies)),
            *("--publisher", "ws", "--publisher-path", f"/ws/chat/{label}_0/", "--topics", str(topics)),
            *("--publisher-headers", f"Origin: http://{self.address}\r\n", "--publication", '{"message": %p}'),
        ]


class EpollServer(Peer):
    """The bare broadcast server in C that joins the frames of a turn."""

    name = "c"
    title = "C, epoll"

    @classmethod
    def missing(cls) -> str | None:
        return None if compiler() else "a C compiler"

    def command(self) -> list[str]:
        return [str(compiled("epollserver")), str(self.port)]

    def load(self, *, topics: int = 1, sockets: int = SOCKETS) -> list[str]:
        return [
            *("--address", self.address, "--path", "/subscribe/%t", "--topics", str(topics)),
            *("--publisher", "ws", "--publisher-path", "/publish", "--publication", "%t %p"),
        ]


class Nchan(Peer):
    """nginx with the nchan module: one worker, messages in memory, published over kept-alive HTTP connections."""

    name = "nchan"
    title = "nginx with nchan"

    @staticmethod
    def _module() -> str | None:
        places = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/lib/nginx/modules")
        return next((found for place in places for found in glob.glob(f"{place}/ngx_nchan_module.so")), None)

    @classmethod
    def missing(cls) -> str | None:
        if shutil.which("nginx") is None:
            return "nginx"
        return None if cls._module() else "nginx's module nchan"

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(["nginx", "-v"], capture_output=True, text=True)
        package = _debian_version("libnginx-mod-nchan")
        return done.stderr.strip().partition("/")[2] + (f", nchan {package}" if package else "")

    def command(self) -> list[str]:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        conf = self.folder / "nginx.conf"
        text = (PROJECT / "tests" / "bench" / "nginx.conf").read_text()
        conf.write_text(text.format(module=self._module(), folder=self.folder, port=self.port, files=files))
        return ["nginx", "-e", str(self.folder / "error.log"), "-p", str(self.folder), "-c", str(conf)]

    def load(self, *, topics: int = 1, sockets: int = SOCKETS) -> list[str]:
        # A request is answered before the next one of its connection is read: as many as there are messages in flight.
        label, publishers = new_label(), 8 if topics == 1 else 64
        return [
            *("--address", self.address, "--path", f"/subscribe/{label}_%t", "--topics", str(topics)),
            *("--publisher", "http", "--publishers", str(publishers), "--publisher-path", f"/publish/{label}_%t"),
        ]


class Nats(Peer):
    """nats-server: subscribers over WebSocket, the publisher over TCP."""

    name = "nats"
    title = "nats-server"

    def __init__(self, rig: Rig, *, core: int | None = None) -> None:
        super().__init__(rig, core=core)
        self.tcp_port = free_port()

    @classmethod
    def missing(cls) -> str | None:
        return None if shutil.which("nats-server") else "nats-server"

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(["nats-server", "--version"], capture_output=True, text=True)
        return done.stdout.strip().rpartition("v")[2]

    def command(self) -> list[str]:
        conf = self.folder / "nats.conf"
        text = (PROJECT / "tests" / "bench" / "nats.conf").read_text()
        conf.write_text(text.format(port=self.port, tcp_port=self.tcp_port))
        return ["nats-server", "-c", str(conf)]

    def environment(self) -> dict[str, str]:
        return {"GOMAXPROCS": "1"}

    def load(self, *, topics: int = 1, sockets: int = SOCKETS) -> list[str]:
        label = new_label()
        connect = 'CONNECT {"verbose":false,"pedantic":false}\r\n'
        return [
            *("--address", self.address, "--protocol", "nats", "--topics", str(topics)),
            *("--preamble", f"{connect}SUB {label}.%t 1\r\nPING\r\n", "--ready", "PONG"),
            *("--publisher", "tcp", "--publisher-address", f"127.0.0.1:{self.tcp_port}"),
            *("--publisher-preamble", f"{connect}PING\r\n", "--publisher-ready", "PONG"),
            *("--publication", f"PUB {label}.%t %l\r\n%p\r\n"),
        ]


class Redis(Server):
    """The Redis beside the hub and the tutorial's consumer, on the core of the load."""

    name = "redis"
    title = "redis-server"

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig, core=rig.cores.load)
        self.url = f"redis://{self.address}/0"

    @classmethod
    def missing(cls) -> str | None:
        return None if redis_server_binary() else "redis-server (the extra `test` brings one)"

    @classmethod
    def version(cls) -> str:
        binary = redis_server_binary()
        assert binary is not None
        words = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.split()
        return next((word[2:] for word in words if word.startswith("v=")), "")

    def command(self) -> list[str]:
        binary = redis_server_binary()
        assert binary is not None
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self.folder}
        return [binary, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]


def _debian_version(package: str) -> str:
    if shutil.which("dpkg-query") is None:
        return ""
    done = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
    return done.stdout.strip()


PEERS: dict[str, type[Peer]] = {server.name: server for server in (Hub, Tutorial, EpollServer, Nchan, Nats)}


@dataclass
class Rig:
    """What all measurements share: a folder, the cores, a Redis, and servers that run until the end.

    `settings` are further ones of the hub's environment.
    """

    folder: Path
    cores: Cores
    settings: dict[str, str] = field(default_factory=dict)
    running: dict[str, Peer] = field(default_factory=dict)
    _accounts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    _folders: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __enter__(self) -> Self:
        if missing := Redis.missing():
            raise BenchError(f"this machine has no {missing}")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if most < OPEN_FILES:
            raise BenchError(f"a process may open {most} files here, and {OPEN_FILES} are needed (`ulimit -n`)")
        # The servers inherit it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
        self.redis = Redis(self)
        self.redis.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self.running.values():
            server.stop()
        self.redis.stop()

    def new_folder(self, name: str) -> Path:
        """A folder for one server."""
        folder = self.folder / f"{next(self._folders)}-{name}"
        folder.mkdir()
        return folder

    def server(self, name: str) -> Peer:
        """The server of that name, started when it is first asked for."""
        if name not in self.running:
            server = PEERS[name](self)
            server.start()
            self.running[name] = server
        return self.running[name]

    def accounts(self, settings: str, environment: dict[str, str]) -> Path:
        """A folder with a migrated database of users, made once per settings module; servers copy it."""
        data = Path(environment.get("HUB_DATA") or environment["BENCH_DATABASE"])
        folder = data if "HUB_DATA" in environment else data.parent
        if settings not in self._accounts:
            folder.mkdir(mode=0o700)
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench.accounts", str(USERS), str(SESSIONS)],
                cwd=PROJECT,
                env={"PATH": os.environ["PATH"], **environment, "DJANGO_SETTINGS_MODULE": settings},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise BenchError(f"no database for {settings}: {done.stderr[-2000:]}")
            self._accounts[settings] = json.loads(done.stdout)
        return folder

    def users_of(self, settings: str) -> tuple[list[str], list[str]]:
        """The keys of the users and of their sessions."""
        made = self._accounts[settings]
        return made["users"], made["sessions"]
