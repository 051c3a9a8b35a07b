"""What a client has while it is attached: the slot pool, the ring queue, both mapped from the server's descriptors.

The descriptors are closed as soon as they are mapped (the doorbells stay). At the end the rings are released and
unmapped in a fixed order; the *segment* is only let go of: buffers, and views that a caller or a socket still holds,
keep it mapped until the last of them is garbage, so a late ``release()`` or a late read of a view is harmless, and no
BufferError or SIGBUS can come of it. A buffer of an attachment that is gone is known by its pool.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

from iscsi_ovs import block
from iscsi_ovs.storage.queue import RingQueue
from iscsi_ovs.storage.slots import SlotPool
from shm_server.abi import control, layout, segment
from shm_server.abi.doorbell import Doorbell


class Attachment:
    """One Attached reply, mapped."""

    def __init__(self, attached: control.Attached, descriptors: list[int], later: deque[Callable[[], None]]) -> None:
        """Maps what the server sent; the descriptors are ours from here on. OSError where they are not as promised."""
        try:
            _check(attached, descriptors)
            rings = segment.map_rings(descriptors[1], attached.submission_entries, attached.completion_entries)
            slots = segment.map_slots(descriptors[0], attached.slot_count, attached.slot_bytes)
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        os.close(descriptors[0])
        os.close(descriptors[1])
        self.pool = SlotPool(memoryview(slots), attached.slot_bytes)
        self.queue = RingQueue(
            rings,
            attached.submission_entries,
            attached.completion_entries,
            (Doorbell(descriptors[2]), Doorbell(descriptors[3])),
            later,
        )

    def abandon(self) -> list[block.Completion]:
        """Unmap the rings; what was outstanding. The doorbells stay open, so that a loop can forget them first."""
        return self.queue.abandon()

    def close(self) -> None:
        """Close the doorbells. The segment is unmapped with its last buffer or view."""
        if not self.queue.is_closed:
            self.queue.abandon()
        self.queue.close_bells()


def _check(attached: control.Attached, descriptors: list[int]) -> None:
    segment.check_machine()
    if len(descriptors) != control.ATTACH_DESCRIPTORS:
        raise OSError(errno.EPROTO, f"attaching brought {len(descriptors)} descriptors, not four")
    sizes = attached.submission_entries, attached.completion_entries
    if not all(layout.is_ring_size(entries) for entries in sizes):
        raise OSError(errno.EPROTO, f"the server gave rings of {sizes[0]} and {sizes[1]} entries, which can't be")
    if attached.slot_bytes < 4096 or attached.slot_bytes & (attached.slot_bytes - 1) or attached.slot_count < 1:
        raise OSError(errno.EPROTO, f"the server gave {attached.slot_count} slots of {attached.slot_bytes} bytes")
