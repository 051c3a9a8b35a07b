"""The virtio block device: what "Virtual I/O Device 1.2", 5.2 says, on a handle of a volume.

A request comes as a chain of guest buffers: a header of 16 bytes first, a status byte last, data in between; it may be
cut up anywhere. A read or write that the store can do at once is done at once, between guest memory and store with no
copy in between; everything else is a coroutine on the volume, as an entry of a ring would be (dispatch.py). What goes
wrong with a request is its status; what can't be a request is a ProtocolError.
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from shm_server.dispatch import errno_of
from shm_server.interfaces.chains import MAX_CHAIN, Chain
from shm_server.interfaces.guest_memory import Piece
from shm_server.interfaces.messages import PROTOCOL_FEATURES_BIT, ProtocolError
from shm_server.runtime import Job, Suspension
from shm_server.volumes.handle import Handle
from shm_server.volumes.volume import check_cancelled

log = logging.getLogger(__name__)

SECTOR_BYTES = 512
MAX_QUEUES = 8
STEP_BYTES = 1 << 20  # moved in one go
ID_BYTES = 20
MAX_SEGMENTS = 126  # of data, so that header and status fit a ring of 128 beside them
MAX_DISCARD_SECTORS = 1 << 22  # 2 GiB
MAX_DISCARD_SEGMENTS = 16
PHYSICAL_BLOCK_EXPONENT = 3
PHYSICAL_BLOCK_SECTORS = 1 << PHYSICAL_BLOCK_EXPONENT

HEADER = struct.Struct("<IIQ")  # type, reserved, sector
RANGE = struct.Struct("<QII")  # sector, sectors, flags
CONFIG = struct.Struct("<QIIHBBIBBHIBBHIIIIIB3x")
WRITEBACK_OFFSET = 32

F_SEG_MAX, F_RO, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY, F_CONFIG_WCE, F_MQ, F_DISCARD, F_WRITE_ZEROES = (
    2, 5, 6, 9, 10, 11, 12, 13, 14,
)  # fmt: skip
RING_F_INDIRECT_DESC, RING_F_EVENT_IDX, F_VERSION_1, F_RING_PACKED = 28, 29, 32, 34

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
UNMAP = 1

_STATUS = tuple(bytes((status,)) for status in range(3))


class UnsupportedError(Exception):
    """Answered with VIRTIO_BLK_S_UNSUPP."""


class _Request:
    """One that is not done at once; a task of its handle."""

    __slots__ = ("chain", "job", "sector", "status_at", "written_bytes")

    def __init__(self, chain: Chain, sector: int, status_at: Piece) -> None:
        self.chain = chain
        self.sector = sector
        self.status_at = status_at
        self.written_bytes = 0  # into the guest's buffers, without the status
        self.job: Job | None = None

    def cancel(self) -> None:
        if self.job is not None:
            self.job.cancel(OSError(errno.ECANCELED, "the front end has gone"))

    def is_cancelled(self) -> bool:
        return self.job is not None and self.job.cancelled


class BlockDevice:
    """``done(chain, written)`` is called for each request whose status has been written; None: it could not be."""

    def __init__(self, handle: Handle, done: Callable[[Chain, int | None], None]) -> None:
        self.handle = handle
        self._volume = handle.volume
        self._done = done
        self.features = 0  # what the guest has accepted
        self.is_writeback = True
        self.is_gone = False  # its memory must not be touched any more
        self._kinds: dict[int, Callable[[_Request], Coroutine[Suspension, Any, int]]] = {
            T_IN: self._read,
            T_OUT: self._write,
            T_FLUSH: self._flush,
            T_GET_ID: self._get_id,
            T_DISCARD: self._discard,
            T_WRITE_ZEROES: self._write_zeroes,
        }

    # What it is -----------------------------------------------------------------------------------------------------

    @property
    def offered(self) -> int:
        bits = [F_SEG_MAX, F_BLK_SIZE, F_FLUSH, F_TOPOLOGY, F_CONFIG_WCE, F_MQ]
        bits += [RING_F_INDIRECT_DESC, RING_F_EVENT_IDX, F_VERSION_1, F_RING_PACKED, PROTOCOL_FEATURES_BIT]
        bits += [F_DISCARD, F_WRITE_ZEROES] if self.handle.can_write else [F_RO]
        return sum(1 << bit for bit in bits)

    def has(self, bit: int) -> bool:
        return bool(self.features >> bit & 1)

    def config(self) -> bytes:
        """struct virtio_blk_config."""
        return CONFIG.pack(
            self._volume.size_bytes // SECTOR_BYTES,
            0,  # size_max, not offered
            MAX_SEGMENTS,
            *(0, 0, 0),  # geometry, not offered
            SECTOR_BYTES,
            *(PHYSICAL_BLOCK_EXPONENT, 0, PHYSICAL_BLOCK_SECTORS, 0),  # and no alignment offset, no optimal size
            *(int(self.is_writeback), 0, MAX_QUEUES),
            *(MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, PHYSICAL_BLOCK_SECTORS),
            *(MAX_DISCARD_SECTORS, 1, 1),  # write zeroes: sectors, segments, and they may unmap
        )

    def set_config(self, offset: int, data: bytes) -> None:
        """ "The driver MAY write to writeback"; nothing else can be written."""
        if offset != WRITEBACK_OFFSET or len(data) != 1 or data[0] > 1:
            raise ProtocolError(f"{len(data)} bytes written to the configuration at {offset}")
        self.is_writeback = bool(data[0])

    @property
    def _is_durable(self) -> bool:
        """ "if VIRTIO_BLK_F_FLUSH is not negotiated … the device MAY assume writethrough": without it we must."""
        return not self.is_writeback or not self.has(F_FLUSH)

    # The way of a request -------------------------------------------------------------------------------------------

    def start(self, chain: Chain) -> None:
        """Do it, or begin to."""
        readable, writable = chain.readable, chain.writable
        if readable and readable[0][2] == HEADER.size:
            region, start, _ = readable.pop(0)
            kind, _, sector = region.unpack(HEADER, start)
        else:
            kind, _, sector = HEADER.unpack(_cut_front(readable, HEADER.size))
        status_at = writable.pop() if writable and writable[-1][2] == 1 else _cut_last(writable)
        if kind <= T_OUT and self._do_now(chain, kind, sector * SECTOR_BYTES, status_at):
            return
        perform = self._kinds.get(kind)
        if perform is None:
            self._finish(chain, status_at, S_UNSUPP, 0)
            return
        request = _Request(chain, sector, status_at)
        self.handle.tasks.add(request)
        request.job = Job(perform(request), lambda status, error: self._ended(request, status, error))
        request.job.start()

    def _do_now(self, chain: Chain, kind: int, offset: int, status_at: Piece) -> bool:
        """An ordinary read or write that the store does at once. False: it takes the long way."""
        handle = self.handle
        if kind == T_IN:
            pieces, now = chain.writable, handle.read_now
        else:
            pieces, now = chain.readable, None if self._is_durable else handle.write_now
        length = sum([piece[2] for piece in pieces])
        if (
            now is None
            or not length
            or length > STEP_BYTES
            or length % SECTOR_BYTES
            or offset + length > self._volume.size_bytes
            or len(pieces) > MAX_CHAIN
        ):
            return False
        views = [region.view[start : start + size] for region, start, size in pieces]
        try:
            done = now(views, offset)
        except OSError as error:
            log.warning("%s: %s of %d bytes at %d: %s", handle.words, _name(kind), length, offset, error)
            self._finish(chain, status_at, S_IOERR, 0)
            return True
        if done != length:
            return False
        self._count(kind, length)
        self._finish(chain, status_at, S_OK, length if kind == T_IN else 0)
        return True

    def _count(self, kind: int, length: int) -> None:
        if kind == T_IN:
            self.handle.reads += 1
            self.handle.read_bytes += length
        else:
            self.handle.writes += 1
            self.handle.written_bytes += length

    def _finish(self, chain: Chain, status_at: Piece, status: int, written_bytes: int) -> None:
        region, start, _ = status_at
        region.write(start, _STATUS[status])
        self._done(chain, written_bytes + 1)

    def _ended(self, request: _Request, status: int | None, error: BaseException | None) -> None:
        if isinstance(error, UnsupportedError):
            status = S_UNSUPP
        elif error is not None:
            status = S_IOERR
            if errno_of(error) not in (errno.ECANCELED, errno.EBUSY):
                log.warning("%s: a request at sector %d: %s", self.handle.words, request.sector, error)
        assert status is not None
        if not self.is_gone:
            try:
                self._finish(request.chain, request.status_at, status, request.written_bytes)
            except (OSError, ProtocolError) as lost:
                log.warning("%s: a request can't be answered: %s", self.handle.words, lost)
                self._done(request.chain, None)
        self.handle.end_task(request)

    # What each kind does --------------------------------------------------------------------------------------------

    def _check(self, offset: int, length: int) -> None:
        if length % SECTOR_BYTES:
            raise OSError(errno.EINVAL, f"{length} bytes are no whole sectors")
        # "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total": how many were written is 32 bits.
        if length >= 1 << 32:
            raise OSError(errno.EINVAL, f"{length} bytes in one request")
        self._volume.check_range(offset, length)

    async def _move(self, request: _Request, kind: int, pieces: list[Piece]) -> None:
        """Step by step, so that a guest with much to move does not hold up the others."""
        offset, length = request.sector * SECTOR_BYTES, sum(piece[2] for piece in pieces)
        self._check(offset, length)
        volume = self._volume
        parts = _steps(pieces)
        for part in parts:
            check_cancelled(request.is_cancelled)
            views = [region.view[start : start + size] for region, start, size in part]
            size = sum(map(len, views))
            try:
                if kind == T_IN:
                    await volume.read(views, offset, size)
                else:
                    await volume.write(views, offset, size, is_durable=False)
            finally:
                for view in views:
                    view.release()
            offset += size
            if len(parts) > 1:
                await volume.runtime.pause
        self._count(kind, length)

    async def _read(self, request: _Request) -> int:
        await self._move(request, T_IN, request.chain.writable)
        request.written_bytes = sum(piece[2] for piece in request.chain.writable)
        return S_OK

    async def _write(self, request: _Request) -> int:
        self._check_writable()
        await self._move(request, T_OUT, request.chain.readable)
        if self._is_durable:
            await self._volume.flush()
        return S_OK

    async def _flush(self, request: _Request) -> int:
        await self._volume.flush()
        return S_OK

    async def _get_id(self, request: _Request) -> int:
        """ "20 byte … string": as much of the serial number, the volume's UUID, as there is room for."""
        left = self._volume.uuid.encode()[:ID_BYTES]
        request.written_bytes = len(left)
        for region, start, length in request.chain.writable:
            region.write(start, left[:length])
            left = left[length:]
        if left:
            raise OSError(errno.EINVAL, f"a buffer too small for {ID_BYTES} bytes of an ID")
        return S_OK

    async def _discard(self, request: _Request) -> int:
        for offset, length, flags in self._ranges(request, MAX_DISCARD_SEGMENTS):
            if flags:  # "the device MUST … VIRTIO_BLK_S_UNSUPP … if the unmap flag is set for discard"
                raise UnsupportedError
            await self._volume.discard(offset, length, request.is_cancelled)
        if self._is_durable:
            await self._volume.flush()
        return S_OK

    async def _write_zeroes(self, request: _Request) -> int:
        for offset, length, flags in self._ranges(request, 1):
            if flags & ~UNMAP:
                raise UnsupportedError
            await self._volume.write_zeroes(
                offset, length, request.is_cancelled, is_durable=self._is_durable, may_unmap=bool(flags & UNMAP)
            )
        return S_OK

    def _ranges(self, request: _Request, most: int) -> list[tuple[int, int, int]]:
        """The ranges of a discard or zeroing in bytes, all checked before the first is touched."""
        self._check_writable()
        size = sum(piece[2] for piece in request.chain.readable)
        if size % RANGE.size or not 0 < size <= most * RANGE.size:
            raise UnsupportedError
        raw = _cut_front(request.chain.readable, size)
        found = []
        for sector, sectors, flags in RANGE.iter_unpack(raw):
            if sectors > MAX_DISCARD_SECTORS:
                raise UnsupportedError
            self._volume.check_write(sector * SECTOR_BYTES, sectors * SECTOR_BYTES)
            found.append((sector * SECTOR_BYTES, sectors * SECTOR_BYTES, flags))
        return found

    def _check_writable(self) -> None:
        if not self.handle.can_write:
            raise OSError(errno.EBADF, "the export is read-only")


def _cut_front(pieces: list[Piece], length: int) -> bytes:
    """A copy of the first ``length`` bytes, which are taken away from ``pieces``."""
    data = b""
    while length:
        if not pieces:
            raise ProtocolError("a request without a whole header")
        region, start, size = pieces[0]
        count = min(size, length)
        data += region.read(start, count)
        length -= count
        if count == size:
            del pieces[0]
        else:
            pieces[0] = (region, start + count, size - count)
    return data


def _cut_last(pieces: list[Piece]) -> Piece:
    """The place of the last byte, which is taken away from ``pieces``: the status."""
    if not pieces:
        raise ProtocolError("a request without a byte for its status")
    region, start, size = pieces[-1]
    if size == 1:
        del pieces[-1]
    else:
        pieces[-1] = (region, start, size - 1)
    return region, start + size - 1, 1


def _steps(pieces: list[Piece]) -> list[list[Piece]]:
    """``pieces`` in parts of at most STEP_BYTES and MAX_CHAIN pieces."""
    parts: list[list[Piece]] = []
    room = count = 0
    for region, start, length in pieces:
        while length:
            if not room or count == MAX_CHAIN:
                parts.append([])
                room, count = STEP_BYTES, 0
            size = min(length, room)
            parts[-1].append((region, start, size))
            start, length, room, count = start + size, length - size, room - size, count + 1
    return parts


def _name(kind: int) -> str:
    return "a read" if kind == T_IN else "a write"
