"""An open volume as block.Device: what every interface submits its requests to.

A handle belongs to one attachment: its number, its epoch and the slots of its pool mean nothing to another. When the
server is lost the handle stays valid as an object and refuses everything as unreachable; whoever owns it opens the
volume again and gets a new one. A buffer of a pool that is gone is refused the same way: its slot numbers would name
somebody else's memory in the new segment.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from iscsi_ovs import block
from iscsi_ovs.storage.attachment import Attachment
from iscsi_ovs.storage.errnos import os_error
from shm_server.abi import control, layout, ring

_UNREACHABLE = block.Error.UNREACHABLE
_READ = block.Operation.READ
_WRITE = block.Operation.WRITE


class DeviceHandle:
    """Implements block.Device. ``geometry`` and ``info`` follow the volume's resizes."""

    def __init__(
        self,
        attachment: Attachment,
        opened: control.Opened,
        access: str,
        close: Callable[[DeviceHandle, Callable[[OSError | None], None]], None],
    ) -> None:
        self._pool: Any = attachment.pool
        self._queue = attachment.queue
        self._submit = attachment.queue.submit
        self._submit_run = attachment.queue.submit_run
        self._submit_part = attachment.queue.submit_part
        self._close = close
        self.handle = opened.handle
        self.epoch = opened.epoch
        self.access = access
        self.is_closed = False
        self.update(opened.info)

    def update(self, info: control.VolumeInfo) -> None:
        """Take over what the server says about the volume now."""
        can_write = "w" in self.access
        self.info = info
        self.geometry = block.Geometry(info.size_bytes, generation=info.generation)
        self.features = block.Features(
            can_write,
            info.can_discard and can_write,
            can_compare="r" in self.access,
            can_copy=can_write,
            max_atomic_write_bytes=info.max_atomic_write_bytes if can_write else 0,
        )

    @property
    def is_lost(self) -> bool:
        """True when the attachment that this handle was opened on is gone."""
        return self._queue.is_closed

    def submit(self, request: block.Request) -> None:
        """Take a request; never blocks. The server sees it at the owner's next flush."""
        buffer: Any = request.buffer
        if buffer is None:
            if request.source is not None:
                self._submit_copy(request)
            else:
                self._submit(self.handle, self.epoch, request, ())
        elif buffer.pool is self._pool:
            operation = request.operation
            if buffer.first_slot >= 0 and (operation is _READ or operation is _WRITE):
                self._submit_run(self.handle, self.epoch, request, buffer.first_slot)
                return
            self._submit(self.handle, self.epoch, request, buffer.parts(_payload_bytes(request)))
        else:
            self._queue.refuse(request, _UNREACHABLE)

    def _submit_copy(self, request: block.Request) -> None:
        source: Any = request.source
        if source._queue is self._queue:
            parts = ring.copy_source(request.source_offset_bytes, source.handle, source.epoch)
            self._submit(self.handle, self.epoch, request, parts)
        else:
            self._queue.refuse(request, _UNREACHABLE)  # one of the two was opened on a server that is gone

    def submit_part(self, request: block.Request, part: ring.Part) -> None:
        """The same for a caller who knows where in the segment the payload lies; the part is its word."""
        self._submit_part(self.handle, self.epoch, request, part)

    def fence(self, done: Callable[[], None]) -> None:
        """Discard what is not started (it completes as CANCELLED); ``done`` when what is started has ended."""
        self.epoch = (self.epoch + 1) & layout.INDEX_MASK
        self._queue.fence(self.handle, self.epoch, done)

    def close(self, callback: Callable[[OSError | None], None]) -> None:
        """Close the handle: unstarted requests complete as CANCELLED, the callback comes when the rest has ended."""
        if self.is_closed:
            raise os_error(errno.EBADF, f"{self.info.name} is closed already")
        self.is_closed = True
        self._close(self, callback)


def _payload_bytes(request: block.Request) -> int:
    """How much of its buffer a request uses."""
    if request.operation is block.Operation.COMPARE_AND_WRITE:
        return 2 * request.length_bytes
    return request.pattern_bytes or request.length_bytes
