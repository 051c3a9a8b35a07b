"""A volume server in a process of its own, and a client with the volume "demo" open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context, Volume
from tests.shm_client.calls import SIZE
from tests.storage.server_process import ServerProcess


@pytest.fixture
def server(short_dir: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(short_dir)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def context(server: ServerProcess) -> Iterator[Context]:
    with Context(server.socket_path) as made:
        made.create_volume("demo", SIZE)
        yield made


@pytest.fixture
def volume(context: Context) -> Iterator[Volume]:
    with context.open("demo") as opened:
        yield opened
