"""Guest memory of every kind: what is mapped of it, and that a machine runs on it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from shm_server.interfaces import words
from shm_server.interfaces.guest_memory import whole_pages
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


@pytest.mark.parametrize("kind", [HugeFrontEnd, PackedHugeFrontEnd], ids=["split", "packed"])
def test_huge_pages(server: ServerProcess, tmp_path: Path, kind: type[FrontEnd]) -> None:
    """A machine whose memory is in huge pages (memory-backend-memfd,hugetlb=on) reads and writes as any other."""
    with tools.huge_pages(2 * MEMORY_BYTES // HUGE), Context(server.socket_path) as context:
        context.create_volume("disk", 16 * MIB)
        context.export_volume("disk", tmp_path / "vm.sock")
        data = os.urandom(96 << 10)
        with kind(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            assert front_end.request(OUT, 8, data) == (OK, b"")
            assert front_end.request(IN, 8, read_bytes=len(data)) == (OK, data)
            before = server.open_files()
        with kind(tmp_path / "vm.sock") as front_end:
            front_end.setup()
            assert front_end.request(IN, 8, read_bytes=512) == (OK, data[:512])
            assert server.open_files() == before
        context.unexport_volume("disk")


def test_a_page_that_is_not_there() -> None:
    """Written to by a system call it is EFAULT, and no signal."""
    with pytest.raises(OSError, match="Bad address"):
        words.write(PAGE, b"x" * 16)
