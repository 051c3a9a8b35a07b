"""What is under way on a ring, in memory that outlives us: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD.

The front end keeps the memory (a memfd of ours, sealed, so that a load here is no SIGBUS; huge pages are none of ours,
and a hole in them would be one) and hands it to the next server after our death. There every request that was taken and
not shown as used is found again, in the order in which they were taken, and done once more. The layout is that of
"Inflight I/O tracking", and so is the order of the steps: what is used is chained as a batch before the used index
changes, which one change does, and let go after it. Here are the memory and the part of a split ring;
packed_inflight.py has that of a packed one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Sequence

from shm_server.interfaces.guest_memory import is_sealed
from shm_server.interfaces.messages import ProtocolError
from shm_server.stores import linux

PAYLOAD = struct.Struct("<QQHH")  # size of the mapping, its offset, rings, entries of each
_HEAD = struct.Struct("<QHHHH")  # features, version, entries, last_batch_head, used_idx
_VERSION = 1
_STATE_BYTES = 16  # u8 inflight, 5 bytes, u16 next, u64 counter
_NEXT_OFFSET, _COUNTER_OFFSET = 6, 8
_PACKED_HEAD_BYTES = _PACKED_STATE_BYTES = 32
_ALIGNMENT = 64
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def ring_bytes(entries: int, *, is_packed: bool = False) -> int:
    size = _PACKED_HEAD_BYTES + _PACKED_STATE_BYTES * entries if is_packed else _HEAD.size + _STATE_BYTES * entries
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def create(rings: int, entries: int, *, is_packed: bool = False) -> int:
    """A descriptor of zeros for so many rings, which is the caller's to close."""
    fd = os.memfd_create("vhost-user-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, rings * ring_bytes(entries, is_packed=is_packed))
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


class Inflight:
    """The mapping of all rings."""

    def __init__(self, fd: int, size: int, offset: int, rings: int, entries: int, *, is_packed: bool = False) -> None:
        part = ring_bytes(entries, is_packed=is_packed)
        if offset or not rings or not entries or size < rings * part or os.fstat(fd).st_size < size:
            raise ProtocolError(f"memory for {rings} rings in flight of {size} bytes at {offset}")
        if linux.filesystem_magic(fd) != linux.TMPFS_MAGIC or not is_sealed(fd):
            raise ProtocolError("memory for what is in flight that is not the sealed one we gave")
        self.entries = entries
        self.is_packed = is_packed
        self._rings = rings
        self._part_bytes = part
        self._mapping = mmap.mmap(fd, size)

    def part(self, index: int, *, is_packed: bool = False) -> memoryview | None:
        """What belongs to a ring of either kind; None: there is nothing for it."""
        if is_packed != self.is_packed:
            raise ProtocolError("memory for what is in flight on the other kind of ring")
        if index >= self._rings:
            return None
        return memoryview(self._mapping)[index * self._part_bytes : (index + 1) * self._part_bytes]


class RingInflight:
    """One ring's part. The words it is made of are read back by nobody but a successor of ours."""

    def __init__(self, view: memoryview, entries: int) -> None:
        self._view = view
        self._entries = entries
        self._counter = 0

    def recover(self, used_index: int) -> list[int]:
        """Heads that were under way when our predecessor died, in their order. ``used_index``: as the guest sees it."""
        view = self._view
        _, version, _, head, known = _HEAD.unpack_from(view)
        if version == _VERSION:
            # "if the used_idx … does not match": it died between showing the last batch and letting go of it.
            for _ in range(min((used_index - known) & 0xFFFF, self._entries)):
                self._check(head)
                view[self._at(head)] = 0
                head = struct.unpack_from("<H", view, self._at(head) + _NEXT_OFFSET)[0]
        _HEAD.pack_into(view, 0, 0, _VERSION, self._entries, 0, used_index)
        found = [
            (struct.unpack_from("<Q", view, self._at(head) + _COUNTER_OFFSET)[0], head)
            for head in range(self._entries)
            if view[self._at(head)]
        ]
        found.sort()
        self._counter = (found[-1][0] + 1) & 0xFFFF_FFFF_FFFF_FFFF if found else 0
        return [head for _, head in found]

    def take(self, heads: Sequence[int]) -> None:
        """They are under way from now on."""
        for head in heads:
            self._check(head)
            at = self._at(head)
            struct.pack_into("<Q", self._view, at + _COUNTER_OFFSET, self._counter)
            self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
            self._view[at] = 1

    def chain(self, heads: Sequence[int]) -> None:
        """They are the batch that the next change of the used index shows."""
        last = struct.unpack_from("<H", self._view, 12)[0]
        for head in heads:
            struct.pack_into("<H", self._view, self._at(head) + _NEXT_OFFSET, last)
            last = head
        struct.pack_into("<H", self._view, 12, last)

    def let_go(self, heads: Sequence[int], used_index: int) -> None:
        """The used index shows them."""
        for head in heads:
            self._view[self._at(head)] = 0
        struct.pack_into("<H", self._view, 14, used_index)

    def _at(self, head: int) -> int:
        return _HEAD.size + _STATE_BYTES * head

    def _check(self, head: int) -> None:
        if head >= self._entries:
            raise ProtocolError(f"descriptor {head} in flight of {self._entries}")
