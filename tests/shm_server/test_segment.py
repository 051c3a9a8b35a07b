"""The segment: what a client can do to it, and what is left of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from shm_server.abi import layout, segment
from shm_server.abi.layout import Opcode
from shm_server.server import Server
from tests.shm_server.abi_client import AbiClient, RefusedError, leftover_segments
from tests.shm_server.conftest import ServerProcess


def test_a_shrunk_segment_costs_its_client_only(
    server: ServerProcess, demo: AbiClient, connect: Callable[..., AbiClient]
) -> None:
    """I/O on pages that a client took away gives EFAULT; the server lives and serves others."""
    demo.write(0, b"x" * 4096)
    os.ftruncate(demo.slots_fd, 0)
    for operation, length in (
        (Opcode.READ, 4096),
        (Opcode.WRITE, 4096),
        (Opcode.READ, 70_000),
        (Opcode.WRITE_SAME, 512),
    ):
        with pytest.raises(OSError) as caught:
            demo.do(operation, 0, length, [(0, 0, length)])
        assert caught.value.errno == errno.EFAULT
    parts = [(0, 0, 512), (1, 0, 512)]
    with pytest.raises(OSError) as caught:
        demo.do(Opcode.READ, 0, 1024, parts)
    assert caught.value.errno == errno.EFAULT
    other = connect(server, "demo", "r")
    assert other.read(0, 4096) == b"x" * 4096
    assert server.process.poll() is None


def test_half_a_segment_is_efault_too(demo: AbiClient) -> None:
    """A request that begins on pages that are there and runs into ones that are not fails, it is not short."""
    os.ftruncate(demo.slots_fd, 3 * 4096)
    for operation in (Opcode.READ, Opcode.WRITE):
        with pytest.raises(OSError) as caught:
            demo.do(operation, 0, 32768, [(0, 0, 32768)])
        assert caught.value.errno == errno.EFAULT


def test_the_ring_mapping_can_not_be_shrunk(demo: AbiClient) -> None:
    """It is sealed: shrinking, growing and taking the seals off are refused."""
    for size in (0, 1 << 24):
        with pytest.raises(PermissionError):
            os.ftruncate(demo.rings_fd, size)
    assert demo.read(0, 512) == bytes(512)


def test_nothing_is_in_dev_shm(demo: AbiClient) -> None:
    """The segment of an attached client has no name any more, so no crash can leave one."""
    assert leftover_segments() == []


def test_a_full_dev_shm_refuses_the_attach_by_name(
    in_process: Callable[..., Server], connect: Callable[..., AbiClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC with /dev/shm and the size in the sentence; the region is not charged for it."""
    server = in_process(region_bytes=1 << 20)
    client = connect(server)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(RefusedError, match=r"/dev/shm .*524288 bytes") as caught:
            client.attach(512 << 10)
        assert caught.value.errno == errno.ENOSPC
    client.attach(768 << 10)


@pytest.mark.parametrize(
    ("name", "at"), [("memfd_create", 1), ("eventfd", 1), ("eventfd", 2), ("dup", 1), ("dup", 2), ("dup", 3)]
)
def test_an_attach_without_a_descriptor_left_leaves_none_behind(
    in_process: Callable[..., Server],
    connect: Callable[..., AbiClient],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
) -> None:
    """Whichever can't be had: those before it are closed, and the region is free for the next attempt."""
    client = connect(in_process(region_bytes=1 << 20))
    before = len(os.listdir("/proc/self/fd"))
    original, calls = getattr(os, name), []

    def exhausted(*arguments: int) -> int:
        calls.append(name)
        if len(calls) == at:
            raise OSError(errno.EMFILE, "Too many open files")
        return int(original(*arguments))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, exhausted)
        with pytest.raises(RefusedError) as caught:
            client.attach(768 << 10)
    assert caught.value.errno == errno.EMFILE
    assert len(os.listdir("/proc/self/fd")) == before
    client.attach(768 << 10)


def test_map_checks_what_was_promised() -> None:
    """A mapping that is smaller, unsealed, or says something else in its header is refused by the client."""
    rings_fd = segment.create_rings(16, 32, layout.SLOT_BYTES, 4)
    segment.map_rings(rings_fd, 16, 32).close()
    with pytest.raises(OSError, match="handshake differs"):
        segment.map_rings(rings_fd, 16, 16)
    with pytest.raises(OSError, match="were promised"):
        segment.map_rings(rings_fd, 64, 64)
    os.close(rings_fd)
    bare = os.memfd_create("bare", os.MFD_ALLOW_SEALING)
    with pytest.raises(OSError, match="not sealed"):
        segment.map_rings(bare, 16, 16)
    os.close(bare)
    slots_fd = segment.create_slots(2)
    with pytest.raises(OSError, match="were promised"):
        segment.map_slots(slots_fd, 3, layout.SLOT_BYTES)
    assert os.fstat(slots_fd).st_blocks * 512 >= 2 * layout.SLOT_BYTES
    os.close(slots_fd)
