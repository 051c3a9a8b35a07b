"""Volumes and completions: the half of Open vStorage's client API that an opened ovs_ctx_t has.

A call is checked here (mode, range, buffer) as the C library did, becomes one block.Request with its payload named as
ring parts, and is either waited for or handed out as an AioCompletion. Waiting, batching and buffers are the Context's
(iscsi_ovs.shm_client), which this file knows as Owner only. Sizes and offsets are bytes, timeouts seconds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Protocol

from iscsi_ovs import block
from iscsi_ovs.storage.buffers import Buffer
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.storage.errnos import errno_of, os_error
from shm_server.abi import control

VolumeStat = control.VolumeInfo  # size_bytes is ovs_stat's st_size
Change = tuple[int, int, bool]  # offset, length in bytes, whether there is data; else it reads zeros


class Owner(Protocol):
    """What volumes and completions ask of their Context."""

    def check_buffer(self, buffer: Buffer, start: int, length: int) -> None:
        """EFAULT unless the bytes lie in a buffer that can be used in a request now."""

    def submitted(self) -> None:
        """A request was submitted: show it to the server, unless a batch is open."""

    def finish(self, completion: AioCompletion) -> int:
        """Wait for the completion; its result."""

    def suspend(self, completions: Sequence[AioCompletion], timeout_s: float | None = None) -> None:
        """Wait until one of them is done."""

    def close_volume(self, volume: Volume) -> None:
        """Close, and wait until what was started has ended."""

    def stat_volume(self, name: str) -> VolumeStat:
        """Ask the server."""

    def truncate_volume(self, name: str, size: int) -> VolumeStat:
        """Grow."""

    def list_changes(self, volume: Volume, base: Volume, offset: int) -> tuple[list[Change], int]:
        """What is otherwise than in ``base``, from ``offset`` on, and how far that is."""


class AioCompletion:
    """One asynchronous operation: what ovs_aiocb and ovs_completion_t are together."""

    __slots__ = ("_buffer", "_callback", "_done_bytes", "_number", "_volume", "detail", "done")

    def __init__(
        self, volume: Volume, buffer: Buffer | None, callback: Callable[[AioCompletion], object] | None
    ) -> None:
        self._volume = volume
        self._buffer = buffer
        self._callback = callback
        self._number = errno.EINPROGRESS
        self._done_bytes = 0
        self.detail = 0  # after EILSEQ: offset of the first byte that differs, from the request's start
        self.done = False

    def error(self) -> int:
        """0, EINPROGRESS, ECANCELED, or the errno that the operation failed with (ovs_aio_error)."""
        return self._number

    def result(self) -> int:
        """Bytes done, 0 for a flush; raises the OSError it failed with, EINPROGRESS before its end (ovs_aio_return)."""
        if self._number:
            raise os_error(self._number, f"volume {self._volume.name}")
        return self._done_bytes

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until done; EAGAIN where that takes longer (ovs_aio_wait_completion)."""
        if not self.done:
            self._volume._context.suspend([self], timeout_s)

    def _finish(self, completion: block.Completion) -> None:
        if self._buffer is not None:
            self._buffer.in_flight -= 1
        _, error, done_bytes, self.detail = completion
        self._number = 0 if error is None else errno_of(error)
        self._done_bytes = done_bytes
        self.done = True
        if self._callback is not None:
            self._callback(self)


Callback = Callable[[AioCompletion], object]

_READS_ONLY = (block.Operation.READ, block.Operation.COMPARE, block.Operation.EXTENTS)
_READS = (*_READS_ONLY, block.Operation.COMPARE_AND_WRITE, block.Operation.OR_WRITE)
_WRITES = [operation for operation in block.Operation if operation not in _READS_ONLY]


class Volume:
    """An open volume: the part of an ovs_ctx_t that ovs_ctx_init gives it. Made by Context.open."""

    def __init__(self, context: Owner, device: DeviceHandle, flags: int) -> None:
        self._context = context
        self._device = device
        self._can_write = flags != os.O_RDONLY
        # READ and WRITE stand first, and so are found at once.
        self._allowed = tuple(
            operation
            for operation in block.Operation
            if (operation not in _READS or flags != os.O_WRONLY) and (operation not in _WRITES or self._can_write)
        )
        self.name = device.info.name
        self.flags = flags

    @property
    def device(self) -> DeviceHandle:
        """The same volume as block.Device."""
        return self._device

    @property
    def size(self) -> int:
        """Bytes, as far as this client has heard; stat() asks."""
        return self._device.geometry.size_bytes

    # Synchronous -------------------------------------------------------------------------------------------------

    def read(self, buffer: Buffer, length: int, offset: int, *, buffer_offset: int = 0) -> int:
        """Read into the buffer; bytes done, short across the end, 0 beyond it (ovs_read).

        EBADF: write-only. EINVAL: length ≤ 0 or offset < 0. EFAULT: not (whole) in a buffer of this context. EIO.
        """
        return self._context.finish(self.aio_read(buffer, length, offset, buffer_offset=buffer_offset))

    def write(self, buffer: Buffer, length: int, offset: int, *, fua: bool = False, buffer_offset: int = 0) -> int:
        """Write from the buffer, all of it or nothing; ``fua``: durable before it returns (ovs_write).

        EBADF: read-only (EROFS: a snapshot). EINVAL, EFAULT: as read. EFBIG: across the end of the volume. ENOSPC, EIO.
        """
        return self._context.finish(self.aio_write(buffer, length, offset, fua=fua, buffer_offset=buffer_offset))

    def flush(self) -> None:
        """Make durable every write that has completed (ovs_flush). EBADF: read-only. EIO: some of them may be lost."""
        self._context.finish(self.aio_flush())

    def discard(self, offset: int, length: int) -> None:
        """Give the range's space back; it reads as zeros (beyond the C API). EBADF, EINVAL, EFBIG: as write.
        EOPNOTSUPP: the store can't."""
        self._context.finish(self.aio_discard(offset, length))

    def write_zeroes(self, offset: int, length: int, *, fua: bool = False, no_unmap: bool = False) -> None:
        """Zero the range; ``no_unmap``: keep its space allocated (beyond the C API). Errors: as write."""
        self._context.finish(self.aio_write_zeroes(offset, length, fua=fua, no_unmap=no_unmap))

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        """Whether there is data at ``offset``, and for how many of the ``length`` bytes that holds; what is no data
        reads as zeros; beyond the volume's end (False, 0) (beyond the C API). EBADF, EINVAL: as read.
        """
        completion = self._start(block.Request(block.Operation.EXTENTS, offset, length), None)
        holds_bytes = self._context.finish(completion)
        return bool(completion.detail), holds_bytes

    def changes(self, base: Volume) -> Iterator[Change]:
        """Where this is otherwise than ``base``, an open snapshot of its past: pages, in order, as the server's maps
        say it. Too much perhaps, never too little (beyond the C API). EINVAL: they have no past in common.
        """
        offset = 0
        while offset < self.size:
            found, next_offset = self._context.list_changes(self, base, offset)
            yield from found
            if next_offset <= offset:
                raise os_error(errno.EPROTO, f"the changes of {self.name} come no further than {offset}")
            offset = next_offset

    def compare(
        self, buffer: Buffer, length: int, offset: int, *, buffer_offset: int = 0, pattern: int = 0
    ) -> int | None:
        """Hold the volume against the buffer, in the server; where ``pattern`` is given, against so many bytes over and
        over. None: they are the same; else the offset of the first byte that differs, from the start of the range.
        """
        request = block.Request(block.Operation.COMPARE, offset, length, pattern_bytes=pattern)
        return self._differs(self._start(request, None, buffer, buffer_offset, pattern or length))

    def compare_and_write(
        self, buffer: Buffer, length: int, offset: int, *, fua: bool = False, buffer_offset: int = 0
    ) -> int | None:
        """The buffer holds what must be there, ``length`` bytes (at most 1 MiB), and behind it what is written then, as
        one against every handle of the volume. None: written; else as compare().
        """
        request = block.Request(block.Operation.COMPARE_AND_WRITE, offset, length, fua=fua)
        return self._differs(self._start(request, None, buffer, buffer_offset, 2 * length))

    def or_write(self, buffer: Buffer, length: int, offset: int, *, fua: bool = False, buffer_offset: int = 0) -> int:
        """Set the bits that are set in the buffer, as one against every handle of the volume (beyond the C API).
        Errors: as write."""
        request = block.Request(block.Operation.OR_WRITE, offset, length, fua=fua)
        return self._context.finish(self._start(request, None, buffer, buffer_offset, length))

    def write_atomic(self, buffer: Buffer, length: int, offset: int, *, buffer_offset: int = 0) -> int:
        """Write all or nothing, whenever a process dies or the power fails; durable when it returns. At most
        stat().max_atomic_write_bytes; EOPNOTSUPP where that is 0 (beyond the C API). Errors: as write.
        """
        request = block.Request(block.Operation.WRITE_ATOMIC, offset, length)
        return self._context.finish(self._start(request, None, buffer, buffer_offset, length))

    def copy_from(self, source: Volume, length: int, offset: int, source_offset: int) -> int:
        """Fill a range (at most 16 MiB) from another volume that is open here, or from this one, inside the server
        (beyond the C API). Errors: as write; EFBIG: across the end of either.
        """
        request = block.Request(
            block.Operation.COPY, offset, length, source=source.device, source_offset_bytes=source_offset
        )
        return self._context.finish(self._start(request, None))

    def _differs(self, completion: AioCompletion) -> int | None:
        try:
            self._context.finish(completion)
        except OSError as error:
            if error.errno != errno.EILSEQ:
                raise
            return completion.detail
        return None

    # Asynchronous ------------------------------------------------------------------------------------------------

    def aio_read(
        self, buffer: Buffer, length: int, offset: int, callback: Callback | None = None, *, buffer_offset: int = 0
    ) -> AioCompletion:
        """Start a read (ovs_aio_read, ovs_aio_readcb). A call that is wrong in itself raises at once, as in read."""
        return self._submit(block.Operation.READ, offset, length, callback, buffer, buffer_offset)

    def aio_write(
        self,
        buffer: Buffer,
        length: int,
        offset: int,
        callback: Callback | None = None,
        *,
        fua: bool = False,
        buffer_offset: int = 0,
    ) -> AioCompletion:
        """Start a write (ovs_aio_write, ovs_aio_writecb). The buffer is the server's until it is done."""
        return self._submit(block.Operation.WRITE, offset, length, callback, buffer, buffer_offset, fua)

    def aio_flush(self, callback: Callback | None = None) -> AioCompletion:
        """Start a flush of what has completed by now (ovs_aio_flushcb)."""
        return self._submit(block.Operation.FLUSH, 0, 0, callback)

    def aio_discard(self, offset: int, length: int, callback: Callback | None = None) -> AioCompletion:
        """Start a discard."""
        return self._submit(block.Operation.DISCARD, offset, length, callback)

    def aio_write_zeroes(
        self, offset: int, length: int, callback: Callback | None = None, *, fua: bool = False, no_unmap: bool = False
    ) -> AioCompletion:
        """Start zeroing."""
        return self._submit(block.Operation.WRITE_ZEROES, offset, length, callback, None, 0, fua, no_unmap)

    def _submit(
        self,
        operation: block.Operation,
        offset: int,
        length: int,
        callback: Callback | None,
        buffer: Buffer | None = None,
        buffer_offset: int = 0,
        fua: bool = False,
        no_unmap: bool = False,
    ) -> AioCompletion:
        request = block.Request(operation, offset, length, None, fua, no_unmap)
        return self._start(request, callback, buffer, buffer_offset, length)

    def _start(
        self,
        request: block.Request,
        callback: Callback | None,
        buffer: Buffer | None = None,
        buffer_offset: int = 0,
        buffer_length: int = 0,
    ) -> AioCompletion:
        """Check and submit; ``buffer_length`` bytes of the buffer belong to it."""
        operation, offset, length = request.operation, request.offset_bytes, request.length_bytes
        device = self._device
        if device.is_closed or operation not in self._allowed:
            raise self._refusal(f"{operation.name} on {self.name}")
        if (length <= 0 and operation != block.Operation.FLUSH) or not 0 <= offset < 1 << 63 or length >= 1 << 63:
            raise os_error(errno.EINVAL, f"{operation.name} of {length} bytes at {offset}")
        context = self._context
        completion = AioCompletion(self, buffer, callback)
        request.done = completion._finish
        if buffer is None:
            if operation in (block.Operation.READ, block.Operation.WRITE):
                raise os_error(errno.EFAULT, "no buffer")
            device.submit(request)
        else:
            if not device.is_lost:  # else every buffer is of before, and the answer is ECONNRESET
                context.check_buffer(buffer, buffer_offset, buffer_length)
            buffer.in_flight += 1
            device.submit_part(request, buffer.part(buffer_offset, buffer_length))
        context.submitted()
        return completion

    # The volume itself -------------------------------------------------------------------------------------------

    def stat(self) -> VolumeStat:
        """Size and identity as the server knows them now (ovs_stat)."""
        return self._context.stat_volume(self.name)

    def truncate(self, size: int) -> VolumeStat:
        """Grow the volume (ovs_truncate). EBADF: opened read-only. EPERM: smaller. EFBIG: over max_volume_size."""
        if self._device.is_closed or not self._can_write:
            raise self._refusal(f"truncating {self.name}")
        return self._context.truncate_volume(self.name, size)

    def _refusal(self, words: str) -> OSError:
        """Of what this volume was not opened for, or is closed for."""
        is_snapshot = self._device.info.is_read_only and not self._device.is_closed
        return os_error(errno.EROFS if is_snapshot else errno.EBADF, words)

    def close(self) -> None:
        """Close (ovs_ctx_destroy's half): what has not started ends as ECANCELED, what has is waited for."""
        if not self._device.is_closed:
            self._context.close_volume(self)

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
