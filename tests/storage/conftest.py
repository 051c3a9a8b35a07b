"""Fixtures of the storage tests: a fake server, and a Service that steps together with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs import block
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.storage.service import Service
from shm_server.abi import control
from tests.storage.fake_server import FakeServer

MEBIBYTE = 1 << 20


class Pair:
    """A service and the fake server it talks to, stepped in turn: no threads, no waiting."""

    def __init__(self, fake: FakeServer, service: Service) -> None:
        self.fake = fake
        self.service = service
        self.attached: list[list[control.VolumeInfo]] = []
        self.lost: list[OSError] = []
        self.completions: list[block.Completion] = []
        service.on_attached = self.attached.append
        service.on_lost = self.lost.append

    def turn(self, turns: int = 1) -> None:
        for _ in range(turns):
            self.service.flush()
            self.fake.step()
            self.service.control_ready()
            self.service.collect()

    def until(self, condition: Callable[[], object], turns: int = 200) -> None:
        for _ in range(turns):
            if condition():
                return
            self.turn()
        raise AssertionError("it never came true")

    def open(self, name: str = "demo", access: str = "rw") -> DeviceHandle:
        answers: list[DeviceHandle | OSError] = []
        self.service.open(name, access, "", "", answers.append)
        self.until(lambda: answers)
        assert isinstance(answers[0], DeviceHandle), answers[0]
        return answers[0]

    def request(self, operation: block.Operation, offset: int = 0, length: int = 4096) -> block.Request:
        """A request whose completion is kept in ``completions``, with a buffer where it needs one."""
        buffer = None
        if operation in (block.Operation.READ, block.Operation.WRITE):
            buffer = self.service.pool.allocate(length)
            assert buffer is not None
        return block.Request(operation, offset, length, buffer, done=self.completions.append)


@pytest.fixture
def fake(short_dir: Path) -> Iterator[FakeServer]:
    server = FakeServer(short_dir / "shm.sock")
    server.volumes["demo"] = bytearray(MEBIBYTE)
    yield server
    server.close()


@pytest.fixture
def pair(fake: FakeServer) -> Iterator[Pair]:
    """Connected and attached."""
    made = Pair(fake, Service(str(fake.path), segment_bytes=4 * MEBIBYTE, ring_entries=16, words="a test"))
    made.service.connect()
    made.until(lambda: made.attached)
    yield made
    made.service.close()
