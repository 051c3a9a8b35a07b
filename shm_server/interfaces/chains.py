"""Requests as a guest describes them: chains of descriptors, of either kind of ring, checked while they are followed.

A descriptor is an address and a length in guest memory, to be read by us or to be written; a table of them elsewhere in
memory may stand for a whole chain ("indirect"). What every kind of ring must refuse is refused here; where the
descriptors stand and which come next is the ring's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from shm_server.interfaces.guest_memory import GuestMemory, Piece
from shm_server.interfaces.messages import ProtocolError

if TYPE_CHECKING:
    from shm_server.interfaces.rings import Ring

MAX_CHAIN = 1024  # descriptors of one request; preadv takes no more pieces
DESCRIPTOR_BYTES = 16
NEXT, WRITE, INDIRECT = 1, 2, 4


class Chain:
    """One request: the guest's buffers, those that we read and those that we write, in their order."""

    __slots__ = ("head", "noted", "readable", "ring", "slots", "writable")

    def __init__(self, ring: Ring, head: int) -> None:
        self.ring = ring
        self.head = head  # how the ring knows it: the first descriptor's index (split), the buffer's ID (packed)
        self.slots = 1  # of the ring that it takes (packed)
        self.noted = -1  # where its being under way is noted (packed)
        self.readable: list[Piece] = []
        self.writable: list[Piece] = []

    def add(self, memory: GuestMemory, address: int, length: int, flags: int) -> None:
        """The next buffer."""
        if flags & WRITE:
            self.writable += memory.pieces(address, length)
        elif self.writable:
            raise ProtocolError("a descriptor to be read behind one to be written")
        else:
            self.readable += memory.pieces(address, length)


def indirect_table(
    memory: GuestMemory, address: int, length: int, flags: int, *, is_allowed: bool
) -> tuple[memoryview | bytes, int]:
    """The table that an indirect descriptor with these flags names: something to unpack from, and where it begins."""
    # "A driver MUST NOT set both VIRTQ_DESC_F_INDIRECT and VIRTQ_DESC_F_NEXT"; nor nest them.
    if not is_allowed or flags & NEXT:
        raise ProtocolError(f"an indirect descriptor with flags {flags:#x} where none may be")
    if length % DESCRIPTOR_BYTES or not 0 < length <= DESCRIPTOR_BYTES * MAX_CHAIN:
        raise ProtocolError(f"an indirect table of {length} bytes")
    pieces = memory.pieces(address, length)
    if len(pieces) == 1:
        region, start, _ = pieces[0]
        return region.look(start, length)
    return b"".join([region.read(start, size) for region, start, size in pieces]), 0


TABLE = struct.Struct("<QIHH")  # address, length; then flags and next (split), or ID and flags (packed)
