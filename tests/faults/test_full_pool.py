"""A pool that gets full, on a small file system of its own, over iSCSI: a warning, then no space, never a loss."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from iscsi_ovs.testing.socket_initiator import SocketInitiator
from tests.interop.serving import Serve
from tests.test_cli import session
from tests.tools import small_file_system

MIB = 1 << 20
POOL_MIB = 48
BLOCK_BYTES = 512
SOFT_THRESHOLD_REACHED = (0x6, 0x38, 0x07)
SPACE_ALLOCATION_FAILED = (0x7, 0x27, 0x07)
LIMIT_S = 20.0
TEST_UNIT_READY = bytes(6)


@pytest.fixture
def serve() -> Iterator[Serve]:
    with tempfile.TemporaryDirectory(prefix="ovs-", dir="/dev/shm") as name:
        directory = Path(name)
        vpool = {
            "backend_connection_manager": {"local_connection_path": str(directory / "pool")},
            "filesystem": {"fs_enable_shm_interface": True},
            "shm_interface": {"shm_region_size": 32 * MIB},
            "shm_server": {"soft_threshold_percent": 50},
        }
        with (
            small_file_system(directory / "pool", f"{POOL_MIB}m"),
            Serve(directory / "s", {"demo": "256M", "ballast": "256M"}, vpool=vpool) as running,
        ):
            yield running
            assert running.stop() == 0, running.log_tail()


def sense_of(disk: SocketInitiator, cdb: bytes, write: bytes | None = None) -> tuple[int, ...]:
    """Key, code and qualifier; nothing where it is GOOD."""
    result = disk.command(cdb) if write is None else disk.command(cdb, write=write)
    return () if result.status == 0 else (result.sense[2] & 0xF, *result.sense[12:14])


def write_mib(disk: SocketInitiator, number: int, data: bytes) -> tuple[int, ...]:
    first, count = number * MIB // BLOCK_BYTES, MIB // BLOCK_BYTES
    return sense_of(disk, b"\x2a\0" + first.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0", data)


def read_mib(disk: SocketInitiator, number: int) -> bytes:
    first, count = number * MIB // BLOCK_BYTES, MIB // BLOCK_BYTES
    cdb = b"\x28\0" + first.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"
    return bytes(disk.command(cdb, read=MIB).data)


def unmap_mib(disk: SocketInitiator, number: int, count: int) -> tuple[int, ...]:
    descriptor = (number * MIB // BLOCK_BYTES).to_bytes(8, "big") + (count * MIB // BLOCK_BYTES).to_bytes(4, "big")
    return sense_of(disk, b"\x42" + bytes(6) + b"\0\x18\0", b"\0\x16\0\x10" + bytes(4) + descriptor + bytes(4))


def clear_attentions(disk: SocketInitiator) -> None:
    while sense_of(disk, TEST_UNIT_READY):
        pass


@pytest.mark.parametrize("is_chain", [False, True], ids=["plain", "with a snapshot"])
def test_first_a_warning_then_no_space_then_it_goes_on(serve: Serve, is_chain: bool) -> None:
    """38/07 once on every nexus, 07/27/07 for what finds no room, at no time a loss of what was acknowledged; a discard
    makes room again, and so does a volume that goes."""
    with (
        Context(state_dir=serve.state_dir) as context,
        session(serve, "demo") as disk,
        session(serve, "ballast") as other,
    ):
        if is_chain:
            context.create_snapshot("demo", "before")
        for each in (disk, other):
            clear_attentions(each)
        written: dict[int, bytes] = {}

        def write(number: int) -> tuple[int, ...]:
            data = os.urandom(MIB)
            if not (sense := write_mib(disk, number, data)):
                written[number] = data
            return sense

        warned = [sense for number in range(POOL_MIB * 6 // 10) if (sense := write(number))]
        deadline = time.monotonic() + LIMIT_S
        while not warned and time.monotonic() < deadline:
            warned += [sense] if (sense := sense_of(disk, TEST_UNIT_READY)) else []
        assert warned == [SOFT_THRESHOLD_REACHED]
        assert sense_of(other, TEST_UNIT_READY) == SOFT_THRESHOLD_REACHED
        assert (sense_of(disk, TEST_UNIT_READY), sense_of(other, TEST_UNIT_READY)) == ((), ())
        assert context.stat_pool().is_threshold_reached

        for number in range(POOL_MIB * 6 // 10, POOL_MIB):
            if sense := write(number):
                break
        assert sense == SPACE_ALLOCATION_FAILED
        assert write_mib(other, 0, os.urandom(MIB)) == SPACE_ALLOCATION_FAILED
        assert all(read_mib(disk, number) == data for number, data in written.items())
        assert not context.stat_volume("demo").failed

        assert unmap_mib(disk, 0, 4) == ()
        for number in range(4):
            del written[number]
            assert read_mib(disk, number) == bytes(MIB)
        assert [write(number) for number in (100, 101)] == [(), ()]
        other.logout()
        context.remove_volume("ballast", force=True)
        assert all(read_mib(disk, number) == data for number, data in written.items())


def test_what_takes_space_can_go_when_there_is_none(serve: Serve) -> None:
    """Not one block is left: a snapshot and a volume are removed all the same, and then there is room again."""
    pool = serve.state_dir.parent / "pool"
    with Context(state_dir=serve.state_dir) as context, session(serve, "demo") as disk:
        for name in ("demo", "ballast"):
            context.create_snapshot(name, "before")
        clear_attentions(disk)
        with (pool / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert os.statvfs(pool).f_bavail == 0
        with pytest.raises(OSError, match=r"No space left|disk is full"):
            context.create_snapshot("ballast", "after")
        assert write_mib(disk, 0, os.urandom(MIB)) == SPACE_ALLOCATION_FAILED
        context.remove_snapshot("demo", "before")
        assert context.list_snapshots("demo") == []
        context.remove_volume("ballast")
        assert [volume.name for volume in context.list_volumes()] == ["demo"]
        (pool / "fill").unlink()
        clear_attentions(disk)
        assert write_mib(disk, 0, os.urandom(MIB)) == ()


def test_pages_say_where_it_stands(serve: Serve) -> None:
    """Log page 0C: what is left, and used; mode page 1C/02: where the threshold is, which initiators can not set."""
    with session(serve, "demo") as disk:
        clear_attentions(disk)
        log = bytes(disk.command(b"\x4d\0\x4c\0\0\0\0\0\xff\0", read=255).data)
        codes = [int.from_bytes(log[at : at + 2], "big") for at in (4, 16)]
        available, used = (int.from_bytes(log[at : at + 4], "big") for at in (8, 20))
        assert (codes, used) == ([1, 2], 0)
        assert POOL_MIB * 9 // 10 <= available <= POOL_MIB
        mode = bytes(disk.command(b"\x5a\x08\x1c\x02\0\0\0\0\xff\0", read=255).data)[8:]
        assert mode[:4] == b"\x5c\x02\0\x14"
        assert mode[16:18] == b"\x80\x01"
        assert int.from_bytes(mode[20:24], "big") == POOL_MIB // 2
        changeable = bytes(disk.command(b"\x5a\x08\x5c\x02\0\0\0\0\xff\0", read=255).data)[8:]
        assert changeable[4:] == bytes(20)
        recovery = bytes(disk.command(b"\x5a\x08\x01\0\0\0\0\0\xff\0", read=255).data)[8:]
        assert recovery[7] == 0x80
