"""Targets on a real volume server, for tests of what goes wrong: on a thread of this process, or one to be killed."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iscsi_ovs import target as targets
from iscsi_ovs.net.portal import Address
from iscsi_ovs.shm_client import Context, Service
from iscsi_ovs.testing.socket_initiator import SocketInitiator
from tests.storage.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
BLOCK = 512
LIMIT_S = 15.0
TEST_UNIT_READY = bytes(6)
READ_CAPACITY_16 = bytes.fromhex("9e10 0000000000000000 00000020 0000")


def read_16(lba: int, blocks: int) -> bytes:
    return b"\x88\0" + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + b"\0\0"


def write_16(lba: int, blocks: int) -> bytes:
    return b"\x8a" + read_16(lba, blocks)[1:]


def isid(number: int) -> bytes:
    """The initiator port of session ``number``."""
    return b"\x80\x12\x34\x56" + number.to_bytes(2, "big")


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = LIMIT_S) -> None:
    """For what announces itself nowhere."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.005)


class Disk(SocketInitiator):
    """A session that reads and writes blocks, and judges their status."""

    def __init__(self, address: tuple[str, int], number: int = 1, **options: Any) -> None:
        super().__init__(*address, timeout_s=LIMIT_S, isid=isid(number), **options)

    def attention(self) -> None:
        """Take the unit attentions of a new nexus."""
        while self.command(TEST_UNIT_READY).status:
            pass

    def write(self, lba: int, data: bytes) -> None:
        result = self.command(write_16(lba, len(data) // BLOCK), write=data)
        assert result.status == 0, (result.status, result.sense.hex())

    def read(self, lba: int, blocks: int) -> bytes:
        result = self.command(read_16(lba, blocks), read=blocks * BLOCK)
        assert result.status == 0, (result.status, result.sense.hex())
        return bytes(result.data)

    def begin_write(self, lba: int, data: bytes) -> int:
        """Send it, don't wait. Its task tag."""
        tag = self.initiator.command(write_16(lba, len(data) // BLOCK), write=data)
        self.flush()
        return tag


class Bench:
    """A volume server with the volume "demo", and what is started on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server: ServerProcess
        self.targets: list[ThreadTarget | ProcessTarget] = []
        self.disks: list[Disk] = []

    def serve(self, size: int = 64 << 20, **own: Any) -> None:
        """``own``: the server's own section of vpool.json (delay …)."""
        self.server = ServerProcess(self.directory, **own)
        self.server.start()
        with self.context() as context:
            context.create_volume("demo", size)

    def context(self) -> Context:
        return Context(self.server.socket_path, words="a test")

    def target(self, *, is_ready: bool = True, segment_bytes: int = 1 << 40) -> ThreadTarget:
        """A target on a thread; ``is_ready``: wait until it has found the volume server."""
        made = ThreadTarget(self.server.socket_path, segment_bytes)
        self.targets.append(made)
        if is_ready:
            made.wait_ready()
        return made

    def target_process(self) -> ProcessTarget:
        made = ProcessTarget(self.server.socket_path, self.directory / "target.log")
        self.targets.append(made)
        return made

    def login(self, target: ThreadTarget | ProcessTarget, number: int = 1, volume: str = "demo", **keys: Any) -> Disk:
        """A session; its unit attentions are taken."""
        disk = Disk(target.address, number)
        self.disks.append(disk)
        disk.login(targets.Settings().iqn(volume), **keys)
        disk.attention()
        return disk

    def in_flight(self) -> int:
        """Operations that the server has started or queued."""
        with self.context() as context:
            return sum(handle.in_flight for handle in context.list_handles())

    def until_in_flight(self, count: int = 1) -> None:
        wait_until(lambda: self.in_flight() >= count, f"{count} operations in the volume server")

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self.server.stop)
            for target in self.targets:
                stack.callback(target.stop)
            for disk in self.disks:
                disk.close()


class ThreadTarget:
    """A TargetServer of this process, so that a test can look inside; its loop runs on a thread."""

    settings = targets.Settings()

    def __init__(self, socket_path: Path, segment_bytes: int = 1 << 40) -> None:
        self.ready = threading.Event()
        self.failures: list[BaseException] = []
        self.service = Service(str(socket_path), segment_bytes=segment_bytes, words="the target under test")
        self.server = targets.assemble(self.service, self.settings, lambda _: self.ready.set(), lambda _, iqn: None)
        self.server.listen(Address("127.0.0.1", 0))
        self._threshold = gc.get_threshold()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_ready(self) -> None:
        assert self.ready.wait(LIMIT_S)

    def _run(self) -> None:
        try:
            self.server.run()
        except BaseException as error:  # told by stop()
            self.failures.append(error)

    @property
    def address(self) -> tuple[str, int]:
        portal = self.server.portals[0]
        return portal.host, portal.port

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(LIMIT_S)
        gc.unfreeze()
        gc.set_threshold(*self._threshold)
        assert not self._thread.is_alive()
        if self.failures:
            raise self.failures[0]


class ProcessTarget:
    """``iscsi-ovs target`` as a process."""

    def __init__(self, socket_path: Path, log_path: Path) -> None:
        command = [sys.executable, "-m", "iscsi_ovs", "target", "--socket", str(socket_path), "--portal", "127.0.0.1:0"]
        self.log_path = log_path
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], LIMIT_S)[0], log_path.read_text()
        line = os.read(self.process.stdout.fileno(), 4096).decode()
        assert line.startswith("ready iscsi://"), line
        host, _, port = line.removeprefix("ready iscsi://").partition("/")[0].rpartition(":")
        self.address = host, int(port)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait(LIMIT_S)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(LIMIT_S) == 0, self.log_path.read_text()
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert "Traceback" not in self.log_path.read_text(), self.log_path.read_text()
