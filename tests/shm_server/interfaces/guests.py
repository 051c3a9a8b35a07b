"""A guest in a memfd and a virtqueue on it, in this process: what both kinds of ring are tested with."""

from __future__ import annotations

import fcntl
import os
import struct

from shm_server.interfaces.guest_memory import GuestMemory, close_regions
from shm_server.interfaces.messages import RegionPlace
from shm_server.interfaces.rings import Ring
from shm_server.interfaces.virtqueue import Virtqueue

SIZE, GUEST, USER = 1 << 20, 0x4000_0000, 0x7000_0000_0000
DRIVER, DEVICE, ENTRIES = 0x1000, 0x2000, 8  # where driver and device write, beside the descriptors at 0


class Guest:
    def __init__(self, *, is_packed: bool, base: int | None = None, is_sealed: bool = False) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, 2 * SIZE)
        if is_sealed:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.memory = GuestMemory(trusts_unsealed=True)
        # two regions side by side for the guest, of one file, apart in the front end
        places = [RegionPlace(GUEST, SIZE, USER, 0), RegionPlace(GUEST + SIZE, SIZE, 2 * USER, SIZE)]
        self.memory.fill(places, [os.dup(self.fd), os.dup(self.fd)])
        self.queue = Virtqueue(0)
        self.queue.set_features(is_packed=is_packed, has_event_index=False, has_indirect=True)
        self.start(base)

    def start(self, base: int | None = None) -> None:
        """… its ring, with what stands in memory."""
        queue = self.queue
        queue.set_entries(ENTRIES)
        if base is not None:
            queue.set_base(base)
        queue.addresses = (USER, USER + DEVICE, USER + DRIVER)
        queue.kick_fd = os.eventfd(0)
        queue.call_fd = os.eventfd(0, os.EFD_NONBLOCK)
        queue.is_enabled = True
        queue.resolve(self.memory)

    @property
    def ring(self) -> Ring:
        assert self.queue.ring is not None
        return self.queue.ring

    def put(self, offset: int, layout: str, *values: int) -> None:
        os.pwrite(self.fd, struct.pack(layout, *values), offset)

    def get(self, offset: int, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, os.pread(self.fd, struct.calcsize(layout), offset))

    def calls(self) -> int:
        assert self.queue.call_fd >= 0
        try:
            return os.eventfd_read(self.queue.call_fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        self.queue.stop()
        close_regions(self.memory.detach())
        os.close(self.fd)
