"""A virtqueue as the front end sets it up: its size, addresses, descriptors and state; and what it asks of a ring.

From start to stop there is a ring behind it, split or packed ("Virtual I/O Device 1.2", 2.7 and 2.8), as was
negotiated.
"""

from __future__ import annotations

import os
import struct

from shm_server import eventfds
from shm_server.interfaces.guest_memory import GuestMemory
from shm_server.interfaces.messages import ProtocolError
from shm_server.interfaces.packed import INITIAL_BASE, PackedRing
from shm_server.interfaces.rings import Ring
from shm_server.interfaces.split import SplitRing

MAX_ENTRIES = 1024  # "Queue Size value is always a power of 2": of ours, at most this

_CALL = struct.pack("<Q", 1)


class Virtqueue:
    def __init__(self, index: int, *, is_trusted: bool = True) -> None:
        """``is_trusted``: the front end is of our own user's."""
        self.index = index
        self._is_trusted = is_trusted
        self.entries = 0
        self.is_enabled = False
        self.is_packed = False
        self.has_event_index = False
        self.has_indirect = False
        self.kick_fd = self.call_fd = self.error_fd = -1
        self.addresses: tuple[int, int, int] | None = None  # descriptors; what the device, what the driver writes
        self._base: int | None = None  # None: nobody said
        self.ring: Ring | None = None

    @property
    def base(self) -> int:
        """Where the ring is, or begins when it is started."""
        if self.ring is not None:
            return self.ring.base
        if self._base is None:
            return INITIAL_BASE if self.is_packed else 0
        return self._base

    @property
    def in_flight(self) -> int:
        return self.ring.in_flight if self.ring is not None else 0

    def resolve(self, memory: GuestMemory) -> None:
        """Find the ring in memory, again whenever that has changed."""
        if self.kick_fd < 0:
            return  # it is not started: what stands here may be of before
        if self.addresses is None or not self.entries:
            raise ProtocolError(f"ring {self.index} is started without its size and addresses")
        if self.ring is None:
            self.ring = PackedRing(self) if self.is_packed else SplitRing(self)
        self.ring.resolve(memory, self.addresses)

    def reset(self) -> None:
        """As it was before anybody said anything, when it has stopped."""
        self._base = None
        self.is_enabled = self.is_packed = self.has_event_index = self.has_indirect = False

    def set_features(self, *, is_packed: bool, has_event_index: bool, has_indirect: bool) -> None:
        if is_packed != self.is_packed:
            self._check_stopped()
        self.is_packed = is_packed
        self.has_event_index = has_event_index
        self.has_indirect = has_indirect

    def set_base(self, base: int) -> None:
        self._check_stopped()
        self._base = base

    def set_entries(self, count: int) -> None:
        self._check_stopped()
        if not 0 < count <= MAX_ENTRIES or count & (count - 1):
            raise ProtocolError(f"a ring of {count} entries: a power of two, at most {MAX_ENTRIES}")
        self.entries = count

    def set_descriptor(self, name: str, fd: int) -> None:
        """kick_fd, call_fd or error_fd; the one before is closed."""
        if (old := getattr(self, name)) >= 0:
            os.close(old)
        setattr(self, name, fd)

    def _check_stopped(self) -> None:
        """ "Client must … stop the ring" before it changes what that stands on."""
        if self.ring is not None:
            raise ProtocolError(f"ring {self.index} is changed while it runs")

    def stop(self) -> None:
        """GET_VRING_BASE: "the back-end must … stop the ring"."""
        if self.ring is not None:
            self._base = self.ring.base
            self.ring = None
        self.addresses = None
        for name in ("kick_fd", "call_fd", "error_fd"):
            self.set_descriptor(name, -1)

    def call(self) -> None:
        """Interrupt the guest."""
        if self.call_fd < 0:
            return
        try:
            if self._is_trusted:
                os.write(self.call_fd, _CALL)
            else:
                eventfds.signal(self.call_fd)
        except BlockingIOError:
            pass  # a call that it has not seen yet is there already
        except OSError as error:
            raise ProtocolError(f"ring {self.index} can't be called: {error.strerror}") from None
