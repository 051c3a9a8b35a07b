"""Guest memory of every kind: what is mapped of it, and that a machine runs on it."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from shm_server.interfaces import guest_memory, words
from shm_server.interfaces.guest_memory import Region, whole_pages
from shm_server.interfaces.messages import RegionPlace
from shm_server.stores import linux
from tests import tools
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.packed_front_end import PackedFrontEnd
from tests.shm_server.vhost_front_end import GUEST_BASE, IN, MEMORY_BYTES, OK, OUT, USER_BASE, FrontEnd

MIB = 1 << 20
PAGE, HUGE = 4096, 2 * MIB
SPLIT = 0x1A000  # where the memory is cut into two regions, as the hole of a PC cuts it


@pytest.mark.parametrize(
    ("offset", "length", "page", "mapped"),
    [
        (0, HUGE, HUGE, (0, HUGE)),
        (0, SPLIT, HUGE, (0, HUGE)),
        (SPLIT, HUGE, HUGE, (0, 2 * HUGE)),
        (HUGE + 1, 1, HUGE, (HUGE, HUGE)),
        (3 * HUGE, 2 * HUGE, HUGE, (3 * HUGE, 2 * HUGE)),
        (SPLIT + 1, 10, PAGE, (SPLIT, PAGE)),
    ],
)
def test_whole_pages_are_mapped(offset: int, length: int, page: int, mapped: tuple[int, int]) -> None:
    """A region may begin and end anywhere in a huge page; a mapping can't."""
    assert whole_pages(offset, length, page) == mapped


class HugeFrontEnd(FrontEnd):
    """Its memory is two huge pages, in two regions that are cut in the first; the rings lie in the second region."""

    memory_flags = FrontEnd.memory_flags | os.MFD_HUGETLB

    def share_memory(self) -> None:
        places = [(0, SPLIT), (SPLIT, MEMORY_BYTES - SPLIT)]
        regions = [struct.pack("<QQQQ", GUEST_BASE + at, size, USER_BASE + at, at) for at, size in places]
        self.acknowledged(5, struct.pack("<II", len(regions), 0) + b"".join(regions), [self.memory_fd] * len(regions))


class PackedHugeFrontEnd(HugeFrontEnd, PackedFrontEnd):
    pass


def test_huge_pages(server: ServerProcess, tmp_path: Path) -> None:
    """A machine whose memory is in huge pages (memory-backend-memfd,hugetlb=on) reads and writes as any other."""
    with tools.huge_pages(2 * MEMORY_BYTES // HUGE), Context(server.socket_path) as context:
        context.create_volume("disk", 16 * MIB)
        context.export_volume("disk", tmp_path / "vm.sock")
        opened = set()
        for kind in (HugeFrontEnd, PackedHugeFrontEnd, HugeFrontEnd):
            data = os.urandom(96 << 10)
            with kind(tmp_path / "vm.sock") as front_end:
                front_end.setup()
                assert front_end.request(OUT, 8, data) == (OK, b"")
                assert front_end.request(IN, 8, read_bytes=len(data)) == (OK, data)
                opened.add(server.open_files())
        assert len(opened) == 1
        context.unexport_volume("disk")


@pytest.mark.parametrize(
    ("seals", "is_strict", "can_load"),
    [(fcntl.F_SEAL_SHRINK, False, True), (fcntl.F_SEAL_SHRINK, True, False), (fcntl.F_SEAL_GROW, False, False)],
    ids=["sealed", "overcommit is strict", "not sealed"],
)
def test_what_is_loaded_from(monkeypatch: pytest.MonkeyPatch, seals: int, is_strict: bool, can_load: bool) -> None:
    """Only what can't shrink, on a machine that gives pages whenever they are touched; either way it is the same."""
    monkeypatch.setattr(guest_memory, "_is_overcommit_strict", lambda: is_strict)
    fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 2 * PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    region = Region(RegionPlace(GUEST_BASE, PAGE, USER_BASE, PAGE), fd)
    assert region.can_load is can_load
    os.pwrite(fd, b"abcdefgh", PAGE + 16)
    layout = struct.Struct("<HI")
    assert region.unpack(layout, 16) == layout.unpack(b"abcdef")
    buffer, start = region.look(16, 8)
    assert bytes(buffer[start : start + 8]) == region.read(16, 8) == b"abcdefgh"
    region.write(18, b"XY")
    assert os.pread(fd, 8, PAGE + 16) == b"abXYefgh"
    region.close()


def test_memory_that_is_given_back(server: ServerProcess, tmp_path: Path) -> None:
    """Pages that a front end gives back under a running ring are zeros for the server, and nothing worse."""
    with Context(server.socket_path) as context:
        context.create_volume("disk", 16 * MIB)
        context.export_volume("disk", tmp_path / "vm.sock")
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.seal().setup()
            assert front_end.request(OUT, 0, b"x" * 512)[0] == OK
            linux.fallocate(
                front_end.memory_fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, 0, MEMORY_BYTES
            )
            os.eventfd_write(front_end.kick, 1)
            with pytest.raises(EOFError):  # an available index of 0 is behind us
                front_end.stop_ring()
        with FrontEnd(tmp_path / "vm.sock") as front_end:
            front_end.seal().setup()
            assert front_end.request(IN, 0, read_bytes=512) == (OK, b"x" * 512)


def test_a_page_that_is_not_there() -> None:
    """Written to by a system call it is EFAULT, and no signal."""
    with pytest.raises(OSError, match="Bad address"):
        words.write(PAGE, b"x" * 16)
