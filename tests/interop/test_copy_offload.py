"""Copy offload as QEMU does it: EXTENDED COPY between two LUNs of one target moves no data through the initiator.

Where the two are LUNs of two targets, QEMU may not and does not reach from one to the other: it copies by reading and
writing, and the result is the same.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.interop import initiators, processes
from tests.interop.serving import IQN_PREFIX, Serve, iscsi_ovs
from tests.interop.tgtd import free_port
from tests.traces.proxy import Proxy

pytestmark = pytest.mark.interop

SIZE = 16 << 20
CONFIGURATION = """\
[portal-group.all]
listen = ["127.0.0.1:{port}"]
[lun.one]
[lun.two]
[target.pair]
portal-group = "all"
lun.0 = "one"
lun.1 = "two"
[target.single]
portal-group = "all"
lun.0 = "two"
"""


class Counter:
    """What a recording proxy writes to: counts bytes instead."""

    def __init__(self) -> None:
        self.bytes = 0

    def connect(self) -> None:
        pass

    def data(self, flow: Any, from_initiator: bool, data: bytes) -> None:
        self.bytes += len(data)

    def end(self, flow: Any, from_initiator: bool) -> None:
        pass


@contextmanager
def target(serve: Serve, directory: Path) -> Iterator[int]:
    """`iscsi-ovs target` with the configuration above, on the volume server of ``serve``; gives its port."""
    port = free_port()
    path = directory / "config.toml"
    path.touch(mode=0o600)
    path.write_text(CONFIGURATION.format(port=port))
    command = iscsi_ovs("target", "--config", str(path), "--state-dir", str(serve.state_dir))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        for _ in ("pair", "single"):
            assert process.stdout.readline().startswith(b"ready ")
        yield port
        process.terminate()
        assert process.wait(20) == 0
    finally:
        processes.kill_all([process.pid] if process.poll() is None else [])
        process.wait(10)
        process.stdout.close()


@contextmanager
def counted(port: int) -> Iterator[tuple[int, Counter]]:
    """A proxy before the target: its port, and what has gone through it."""
    counter = Counter()
    outer = free_port()
    proxy = Proxy(("127.0.0.1", outer), ("127.0.0.1", port), counter)  # type: ignore[arg-type]
    thread = threading.Thread(target=proxy.run)
    thread.start()
    try:
        yield outer, counter
    finally:
        proxy.stop()
        thread.join(10)


def test_copy_offload(short_dir: Path) -> None:
    """Within a target's LUN map a copy of 16 MiB takes less than 1 MiB of traffic; the bytes are there all the same."""
    image, back = short_dir / "image", short_dir / "back"
    image.write_bytes(os.urandom(SIZE))
    with (
        Serve(short_dir / "s", {"one": str(SIZE), "two": str(SIZE)}) as serve,
        target(serve, short_dir) as inner,
        counted(inner) as (port, counter),
    ):
        pair, single = (f"iscsi://127.0.0.1:{port}/{IQN_PREFIX}{name}" for name in ("pair", "single"))
        initiators.upload(image, f"{pair}/0")
        before = counter.bytes
        assert before > SIZE
        offload = ("convert", "-C", "-n", "-f", "raw", "-O", "raw")
        initiators.run("qemu-img", *offload, f"{pair}/0", f"{pair}/1")
        assert counter.bytes - before < 1 << 20
        initiators.download(f"{single}/0", back)
        assert _digest(back) == _digest(image)
        # Another target's LUN is no business of this session: QEMU falls back to reading and writing.
        initiators.qemu_io(f"{pair}/1", f"write -P 0 0 {SIZE}")
        before = counter.bytes
        initiators.run("qemu-img", *offload, f"{pair}/0", f"{single}/0")
        assert counter.bytes - before > SIZE
        initiators.download(f"{pair}/1", back)
        assert _digest(back) == _digest(image)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
