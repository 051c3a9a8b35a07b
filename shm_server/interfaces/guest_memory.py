"""Guest memory: the regions that a front end shares, each a file of its, mapped; addresses in, places in them out.

Data is touched by system calls only: slices of the mapping go straight to the store's preadv and pwritev. Rings and
headers are loads and stores where the file is a memfd that is sealed against shrinking, as QEMU's are; else they are
pread and pwrite on that file (huge pages have no write(2): words.write). So a VMM that shrinks the file is an error,
and no SIGBUS of the server's. What may be a region is checked here, once: a file in memory (memfd, tmpfs, hugetlbfs)
that is long enough, and of another user's only one that is sealed; no overlap, no overflow.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from shm_server.interfaces import words
from shm_server.interfaces.messages import ProtocolError, RegionPlace
from shm_server.stores import linux

MAX_REGIONS = 64
MAX_MEMORY_BYTES = 1 << 40  # of one guest: 64 of them leave half of our address space
_ADDRESS_END = 1 << 64
_HUGETLBFS_MAGIC = 0x958458F6


class Region:
    """One region. Owns ``fd``."""

    __slots__ = (
        "_is_huge", "_mapping", "_shift", "address", "can_load", "fd", "guest_end", "guest_start", "place", "size",
        "view",
    )  # fmt: skip

    def __init__(self, place: RegionPlace, fd: int) -> None:
        self.place = place
        self.guest_start = place.guest_address
        self.size = place.size_bytes
        self.guest_end = self.guest_start + self.size
        self.fd = fd
        self._is_huge = linux.filesystem_magic(fd) == _HUGETLBFS_MAGIC
        self.can_load = not self._is_huge and is_sealed(fd) and not _is_overcommit_strict()
        page = os.fstat(fd).st_blksize if self._is_huge else mmap.ALLOCATIONGRANULARITY
        begin, length = whole_pages(place.file_offset, place.size_bytes, page)
        self._shift = place.file_offset - begin
        try:
            self._mapping = mmap.mmap(fd, length if self._is_huge else self._shift + place.size_bytes, offset=begin)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"a region of guest memory can't be mapped: {error}") from None
        self.address = words.address_of(self._mapping) + self._shift
        self.view = memoryview(self._mapping)[self._shift : self._shift + place.size_bytes]

    def unpack(self, layout: struct.Struct, start: int) -> tuple[Any, ...]:
        """What stands at ``start``, which the caller has checked; each of its fields is looked at once."""
        if self.can_load:
            return layout.unpack_from(self.view, start)
        return layout.unpack(self.read(start, layout.size))

    def look(self, start: int, length: int) -> tuple[memoryview | bytes, int]:
        """Something to unpack from, and where in that ``start`` is. It may be memory that changes meanwhile."""
        return (self.view, start) if self.can_load else (self.read(start, length), 0)

    def read(self, start: int, length: int) -> bytes:
        """A copy of ``length`` bytes from ``start``, which the caller has checked."""
        if self.can_load:
            return self.view[start : start + length].tobytes()
        data = os.pread(self.fd, length, self.place.file_offset + start)
        if len(data) != length:
            raise ProtocolError("guest memory was shrunk")
        return data

    def write(self, start: int, data: bytes) -> None:
        if self.can_load:
            self.view[start : start + len(data)] = data
        elif self._is_huge:
            words.write(self.address + start, data)
        elif os.pwrite(self.fd, data, self.place.file_offset + start) != len(data):
            raise ProtocolError("guest memory could not be written")

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1
        self.view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass  # a slice lives on in some traceback: the mapping goes with it


def whole_pages(offset: int, length: int, page_bytes: int) -> tuple[int, int]:
    """Offset and length of what must be mapped: huge pages are mapped, and unmapped, as a whole."""
    begin = offset // page_bytes * page_bytes
    end = -(-(offset + length) // page_bytes) * page_bytes
    return begin, end - begin


Piece = tuple[Region, int, int]  # region, start in it, length


class GuestMemory:
    """The regions in force."""

    def __init__(self, trusts_unsealed: bool) -> None:
        self._trusts_unsealed = trusts_unsealed  # the front end is of our own uid
        self.regions: list[Region] = []
        self._starts: list[int] = []
        self.recent: Region | None = None  # where the last piece was found

    def detach(self) -> list[Region]:
        """All regions, which are in force no more and the caller's to close."""
        regions, self.regions = self.regions, []
        self._sort()
        return regions

    def fill(self, places: Sequence[RegionPlace], descriptors: list[int]) -> None:
        """SET_MEM_TABLE, when what was there is gone. Takes the descriptors that it comes to own out of the list."""
        if len(places) != len(descriptors):
            raise ProtocolError(f"{len(places)} regions of memory with {len(descriptors)} descriptors")
        for place in places:
            self.add(place, descriptors)

    def add(self, place: RegionPlace, descriptors: list[int]) -> None:
        """ADD_MEM_REG, with the first descriptor of the list, which is taken out of it."""
        if not descriptors:
            raise ProtocolError("a region of memory without a descriptor")
        if len(self.regions) >= MAX_REGIONS:
            raise ProtocolError(f"more than {MAX_REGIONS} regions of memory")
        self._check(place)
        _check_file(place, descriptors[0], self._trusts_unsealed)
        region = Region(place, descriptors[0])
        del descriptors[0]
        self.regions.append(region)
        self._sort()

    def remove(self, place: RegionPlace) -> Region:
        """REM_MEM_REG: "guest address, size and user address" name it. It is the caller's to close."""
        for region in self.regions:
            if (region.place.guest_address, region.place.size_bytes, region.place.user_address) == (
                place.guest_address, place.size_bytes, place.user_address,
            ):  # fmt: skip
                self.regions.remove(region)
                self._sort()
                return region
        raise ProtocolError(f"no region of memory at {place.guest_address:#x}")

    def _sort(self) -> None:
        self.regions.sort(key=lambda region: region.place.guest_address)
        self._starts = [region.guest_start for region in self.regions]
        self.recent = None

    def _check(self, place: RegionPlace) -> None:
        if not place.size_bytes:
            raise ProtocolError("a region of memory of no bytes")
        if sum([region.size for region in self.regions], place.size_bytes) > MAX_MEMORY_BYTES:
            raise ProtocolError(f"more than {MAX_MEMORY_BYTES >> 40} TiB of guest memory")
        for start in (place.guest_address, place.user_address, place.file_offset):
            if start + place.size_bytes > _ADDRESS_END:
                raise ProtocolError(f"a region of {place.size_bytes} bytes at {start:#x} overflows")
        for region in self.regions:
            other = region.place
            for start, other_start in (
                (place.guest_address, other.guest_address),
                (place.user_address, other.user_address),
            ):
                if start < other_start + other.size_bytes and other_start < start + place.size_bytes:
                    raise ProtocolError(f"regions of memory at {start:#x} and {other_start:#x} overlap")

    def pieces(self, address: int, length: int) -> list[Piece]:
        """Where ``length`` bytes from guest address ``address`` lie; they may run on into the next region."""
        found: list[Piece] = []
        region = self.recent
        if region is not None and length and 0 <= (start := address - region.guest_start) <= region.size - length:
            return [(region, start, length)]
        while length:
            at = bisect.bisect_right(self._starts, address) - 1
            if at < 0 or address >= self.regions[at].guest_end:
                raise ProtocolError(f"guest address {address:#x} is outside of its memory")
            region = self.recent = self.regions[at]
            count = min(length, region.guest_end - address)
            found.append((region, address - region.guest_start, count))
            address += count
            length -= count
        return found

    def of_user(self, address: int, length: int, alignment: int) -> tuple[Region, int]:
        """Where a ring lies, whose address is the front end's. All of it must be in one region."""
        for region in self.regions:
            start = address - region.place.user_address
            if start >= 0 and start + length <= region.place.size_bytes:
                if (region.place.guest_address + start) % alignment or (region.address + start) % alignment:
                    raise ProtocolError(f"a ring at {address:#x} is not aligned to {alignment}")
                return region, start
        raise ProtocolError(f"a ring of {length} bytes at {address:#x} is outside of the guest's memory")


def close_regions(regions: Sequence[Region]) -> None:
    """On a thread: where we are the last to have a guest's memory, all of it is given back now."""
    for region in regions:
        region.close()


def _check_file(place: RegionPlace, fd: int, trusts_unsealed: bool) -> None:
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise ProtocolError("guest memory that is not open for reading and writing")
    end, file_bytes = place.file_offset + place.size_bytes, os.fstat(fd).st_size
    if end > file_bytes:
        raise ProtocolError(f"guest memory up to byte {end} of a file of {file_bytes}")
    if not trusts_unsealed and not is_sealed(fd):
        raise ProtocolError("guest memory of another user must be sealed against shrinking (memory-backend-memfd is)")


def is_sealed(fd: int) -> bool:
    """Against shrinking: only memfds can be."""
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False


@cache
def _is_overcommit_strict() -> bool:
    """Then a page that the VMM has given back may not come again, and a load there is SIGBUS."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
