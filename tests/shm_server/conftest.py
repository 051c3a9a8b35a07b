"""A server process on a pool of its own and clients on it, closed behind the test; pools without a server."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shm_server.runtime import Job, Runtime
from shm_server.server import Server, Settings
from shm_server.volumes.volume import Volume
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.pool import Pool

ROOT = Path(__file__).parents[2]


class ServerProcess:
    """``python -m shm_server`` on ``directory``/pool; ``sections`` are merged into its vpool.json."""

    def __init__(
        self, directory: Path, sections: dict[str, dict[str, Any]], *, socket_path: Path | None = None
    ) -> None:
        self.directory = directory
        self.pool = directory / "pool"
        self.socket_path = socket_path or self.pool / "shm.sock"
        self.config = directory / "vpool.json"
        config: dict[str, dict[str, Any]] = {
            "filesystem": {"fs_enable_shm_interface": True},
            "backend_connection_manager": {"local_connection_path": str(self.pool)},
        }
        for name, section in sections.items():
            config.setdefault(name, {}).update(section)
        self.config.write_text(json.dumps(config))
        self.log_path = directory / "server.log"
        self.start()

    def start(self, *, must_start: bool = True) -> None:
        ready, write_end = os.pipe()
        command = [sys.executable, "-m", "shm_server", "--config", str(self.config)]
        command += ["--ready-fd", str(write_end), "--socket", str(self.socket_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, pass_fds=[write_end], cwd=ROOT, stderr=log, stdin=subprocess.DEVNULL
            )
        os.close(write_end)
        said = os.read(ready, 16)
        os.close(ready)
        if must_start:
            assert said == b"ready\n", self.log()

    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    servers: list[ServerProcess] = []

    def start(directory: Path = tmp_path, **sections: dict[str, Any]) -> ServerProcess:
        directory.mkdir(exist_ok=True)
        servers.append(ServerProcess(directory, sections))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    """A server with a file store and the default region."""
    return start_server()


@pytest.fixture
def connect() -> Iterator[Callable[..., AbiClient]]:
    """``connect(server)``: a greeted client; ``connect(server, "demo")``: attached, with the volume open."""
    clients: list[AbiClient] = []

    def make(server: ServerProcess, volume: str = "", access: str = "rw", **more: Any) -> AbiClient:
        client = AbiClient(server.socket_path, **more)
        clients.append(client)
        if volume:
            client.attach()
            client.open(volume, access)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def demo(server: ServerProcess, connect: Callable[..., AbiClient]) -> AbiClient:
    """A client that holds the 16 MiB volume "demo" of ``server``."""
    client = connect(server)
    client.create()
    client.attach()
    client.open()
    return client


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A server on a thread of this process, for tests that patch something under it."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(**settings: Any) -> Server:
        instance = Server(Settings(tmp_path / "pool", tmp_path / "pool" / "shm.sock", **settings))
        instance.start()
        instance.socket_path = instance._settings.socket_path  # what connect() looks at
        thread = threading.Thread(target=instance.run)
        thread.start()
        running.append((instance, thread))
        return instance

    yield start
    for instance, thread in running:
        instance.stop()
        thread.join(30)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where ``pool`` lies."""
    return tmp_path


@pytest.fixture
def demo_bytes() -> int:
    """How large its volume "demo" is."""
    return 1 << 20


@pytest.fixture
def pool(directory: Path, demo_bytes: int) -> Iterator[Pool]:
    made = Pool(directory)
    made.run(made.manager.create("demo", demo_bytes))
    yield made
    made.close()


@pytest.fixture
def volume(pool: Pool) -> Iterator[Volume]:
    """Its volume, opened to be written."""
    with pool.volume("demo") as opened:
        yield opened


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    instance = Runtime()
    yield instance
    instance.close()


@pytest.fixture
def run(runtime: Runtime) -> Callable[..., Any]:
    """Drive a coroutine to its end, as the server's loop would."""

    def drive(coroutine: Any) -> Any:
        results: list[tuple[Any, BaseException | None]] = []
        Job(coroutine, lambda value, error: results.append((value, error))).start()
        while not results:
            if select.select([runtime.wake_fd], [], [], runtime.timeout_s())[0]:
                os.eventfd_read(runtime.wake_fd)
            runtime.fire_timers()
            runtime.collect()
            runtime.step()
        value, error = results[0]
        if error is not None:
            raise error
        return value

    return drive
