"""A snapshot as a disk of its own, read by initiators of other projects while its volume is written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.interop import initiators
from tests.interop.initiators import InitiatorError
from tests.interop.serving import Serve
from tests.test_cli import session

pytestmark = pytest.mark.interop

SIZE = 8 << 20


def write(context: Context, name: str, data: bytes) -> None:
    with context.open(name) as volume:
        buffer = context.allocate(len(data))
        buffer.data[:] = data
        volume.write(buffer, len(data), 0)
        context.deallocate(buffer)


def test_a_snapshot_is_a_disk_beside_its_volume(short_dir: Path) -> None:
    """qemu-img copies the snapshot's bytes off it while the volume is written over and over; nobody can open it for
    writing; it can't be removed while a session has it."""
    data = os.urandom(SIZE)
    with Serve(short_dir / "s", {"demo": "8M"}) as serve, Context(state_dir=serve.state_dir) as context:
        write(context, "demo", data)
        context.create_snapshot("demo", "monday")
    is_over = threading.Event()
    with Serve(short_dir / "s", {"demo": "8M"}, snapshots=["demo@monday"]) as serve:
        url = serve.url("demo:monday")
        copy = short_dir / "copy"

        def scribble() -> None:
            with Context(state_dir=serve.state_dir) as context:
                while not is_over.is_set():
                    write(context, "demo", os.urandom(SIZE))

        writer = threading.Thread(target=scribble)
        writer.start()
        try:
            initiators.run("qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(copy))
        finally:
            is_over.set()
            writer.join()
        assert copy.read_bytes() == data
        with pytest.raises(InitiatorError, match="write protected"):
            initiators.run("qemu-io", "-f", "raw", "-c", "write 0 512", url)
        assert "demo:monday" in initiators.run("iscsi-ls", serve.portal_url)
        words = r"snapshot demo@monday is held by iscsi target pid \d+, 1 session"
        with (
            session(serve, "demo:monday"),
            Context(state_dir=serve.state_dir) as context,
            pytest.raises(OSError, match=words),
        ):
            context.remove_snapshot("demo", "monday")
