"""The map of a layer: an append log that says which pages of its data file are its own.

    header (512 bytes) | record (32 bytes) | record | …

A record is a run of pages of one kind: DATA (the page stands in the data file), ZERO (it reads zeros, whatever older
layers have), or a BARRIER, which says how long the log was when a sync of the data file began that has succeeded since.
Data are with the kernel before their record is, so after the death of a process every record is believed. A power cut
may have kept a record without its data: where the log was last written in another boot than the one that runs, only
records that a barrier covers are believed. Who opens it to write then appends a BOOT, which voids the others for good.
A record never straddles a sector, each has a CRC32C that begins with the header's, and the first that does not fit ends
the log: a power cut may have kept what came behind it, and not that. It is damage, and EIO, where it was durable once:
a barrier says up to where the log itself was, when that was written, and the last of a layer that is sealed or closed
says nothing else. A dead process leaves no such gap. docs/ON-DISK.md is the long form of this.

Who knows already what the log says up to some ``Place`` (owners.py does) has only the rest read.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import crc32c

from shm_server.stores import linux
from shm_server.stores.base import DamagedMapError
from shm_server.stores.boot import boot_id

FORMAT = 1
PAGE_BYTES = 4096

DATA, ZERO, BARRIER, BOOT = 1, 2, 3, 4

_MAGIC = b"OVSLAYER"
_HEADER = struct.Struct("<8sIIQ16s16sI")  # magic, format, page bytes, layer, volume's uuid, boot id, crc32c
HEADER_BYTES = 512  # a sector: written whole or not at all
# crc32c, kind, first page, page count, its own offset in the log; of a barrier: what it covers, what is durable
_RECORD = struct.Struct("<IIQQQ")
_UNSUMMED = struct.Struct("<IQQQ")  # all of it but the checksum
RECORD_BYTES = _RECORD.size
_BOOT = struct.Struct("<QQ")  # 16 bytes, as a record's page and count
_READ_BYTES = 4096 * RECORD_BYTES
ROOM_BYTES = 64 << 10

assert HEADER_BYTES % RECORD_BYTES == 0
assert 512 % RECORD_BYTES == 0
assert 4 + _UNSUMMED.size == RECORD_BYTES


class Run(NamedTuple):
    """So many pages of one kind."""

    kind: int
    first: int
    pages: int


class Place(NamedTuple):
    """Behind a record of a log; whoever names it knows all that is before."""

    layer: int
    length: int  # up to here
    claimed: int  # where the last record of a run ends
    durable: int  # up to here records are believed after a power cut
    checksum: int  # of the record that ends there, or of the header: it is this log, and not one that was like it
    boot: bytes  # in which that record was written


def is_of_now(boot: bytes) -> bool:
    """Since then no power can have failed."""
    return boot == boot_id()


class MapLog:
    """One at a time may append or sync; whoever has the layer sees to that."""

    def __init__(self, path: Path, layer: int, uuid: str) -> None:
        self.path = path
        self._layer = layer
        self._uuid = bytes.fromhex(uuid)
        self._fd = -1
        self._seed = 0
        self._length = 0  # where the next record goes
        self._claimed = 0  # where the last record ends that is a run's
        self._durable = 0  # up to here records are believed after a power cut
        self._synced = 0  # up to here the log itself is durable
        self._told = 0  # and up to here a barrier says so
        self._last = 0  # the checksum of the last record, or of the header
        self._room = 0  # up to here the file has its space

    # Beginning ------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        """An empty map, durably but for its name: the caller syncs the directory."""
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.pwrite(self._fd, self._header(), 0)
        os.fsync(self._fd)
        self._length = self._claimed = self._durable = self._synced = self._told = HEADER_BYTES

    def open(self, *, is_sealed: bool = False, since: Place | None = None) -> Sequence[Run]:
        """Open it; the runs that are believed, oldest first. EPROTONOSUPPORT: a newer format; EIO: no map of ours, or
        it is damaged.

        ``is_sealed``: the layer is durable as a whole, so what its last barrier does not cover is nobody's, and nothing
        is written. ``since``: only those behind it; has() was asked.
        """
        boot = self._open()
        if since is None:
            since = Place(self._layer, HEADER_BYTES, HEADER_BYTES, HEADER_BYTES, self._seed, boot)
        runs, boot = self._scan(since)
        is_past = not is_of_now(boot)
        if is_sealed or is_past:
            self._void(runs, since.length)
        if not is_sealed:
            # Or what is behind a damaged record would count again once another stands in its place.
            if os.fstat(self._fd).st_size > self._length:
                os.ftruncate(self._fd, self._length)
                os.fdatasync(self._fd)
            if is_past:
                first, count = _BOOT.unpack(boot_id())
                self._put(self._record(BOOT, first, count, self._length))
            # Its writer may have died between barrier() and sync(): a barrier that was read is not a durable one.
            os.fdatasync(self._fd)
            self._synced = self._length
        return [run for run in runs if run is not None]

    def has(self, place: Place) -> bool:
        """The log is the one of that place, and as long at least. It is not open yet."""
        try:
            self._open()
            at = place.length - RECORD_BYTES
            if place.layer != self._layer or at % RECORD_BYTES or place.length < HEADER_BYTES:
                return False
            if place.length == HEADER_BYTES:
                return place.checksum == self._seed
            raw = os.pread(self._fd, RECORD_BYTES, at)
            return len(raw) == RECORD_BYTES and self._checksum(raw[4:]) == place.checksum == _RECORD.unpack(raw)[0]
        finally:
            self.close()

    def _open(self) -> bytes:
        """The boot id of when it was begun."""
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._damaged(f"the map {self.path} of layer {self._layer} is missing") from None
        return self._check_header(os.pread(self._fd, HEADER_BYTES, 0))

    def _scan(self, since: Place) -> tuple[list[Run | None], bytes]:
        """For every whole record behind ``since`` its run, if it is one, and the boot that the last was written in."""
        runs: list[Run | None] = []
        at, boot = since.length, since.boot
        self._claimed, self._durable, self._last = since.claimed, since.durable, since.checksum
        self._told = since.length
        while block := memoryview(os.pread(self._fd, _READ_BYTES, at)):
            whole = len(block) - len(block) % RECORD_BYTES
            begin = at
            for checksum, kind, first, count, own in _RECORD.iter_unpack(block[:whole]):
                start = at - begin
                if own != at or checksum != self._checksum(block[start + 4 : start + RECORD_BYTES]):
                    self._length = at
                    self._check_end(boot)
                    return runs, boot
                at += RECORD_BYTES
                self._last = checksum
                runs.append(Run(kind, first, count) if kind in (DATA, ZERO) else None)
                if kind == BARRIER:
                    self._durable = max(self._durable, first)
                    self._told = at if count == own else max(self._told, count)
                elif kind == BOOT:
                    boot = _BOOT.pack(first, count)
                    self._void(runs, since.length)
                else:
                    self._claimed = at
            if len(block) < _READ_BYTES:
                break
        self._length = at
        return runs, boot

    def _check_end(self, boot: bytes) -> None:
        """Of a log that goes on behind its last whole record. EIO: with one that was durable, or of a dead process."""
        at = self._length
        size = os.fstat(self._fd).st_size
        is_gap = is_of_now(boot) and size - at >= RECORD_BYTES and not self._has_record(at)  # if somebody just wrote it
        while not is_gap and (block := os.pread(self._fd, _READ_BYTES, at)):
            whole = len(block) - len(block) % RECORD_BYTES
            for start, (_, kind, _, told, own) in zip(
                range(0, whole, RECORD_BYTES), _RECORD.iter_unpack(block[:whole]), strict=True
            ):
                if kind == BARRIER and told > self._length and own == at + start and self._has_record(own):
                    is_gap = True
            at += len(block)
        if is_gap:
            raise self._damaged(f"{self.path} is damaged at byte {self._length}: who has which page is not known")

    def _has_record(self, at: int) -> bool:
        raw = os.pread(self._fd, RECORD_BYTES, at)
        return len(raw) == RECORD_BYTES and self._checksum(raw[4:]) == int.from_bytes(raw[:4], "little")

    def _void(self, runs: list[Run | None], begin: int) -> None:
        """What no barrier covers may have no data behind it; ``runs`` are the records from ``begin`` on."""
        covered = max(0, (self._durable - begin) // RECORD_BYTES)
        runs[covered:] = [None] * (len(runs) - covered)
        self._claimed = min(self._claimed, self._durable)

    def _header(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, FORMAT, PAGE_BYTES, self._layer, self._uuid, boot_id(), 0)[:-4]
        self._seed = self._last = crc32c.crc32c(fields)
        return (fields + self._seed.to_bytes(4, "little")).ljust(HEADER_BYTES, b"\0")

    def _check_header(self, raw: bytes) -> bytes:
        """The boot id in it."""
        if len(raw) < HEADER_BYTES or not raw.startswith(_MAGIC):
            raise self._damaged(f"{self.path} is no map of a layer")
        _, version, page_bytes, layer, uuid, boot, checksum = _HEADER.unpack_from(raw)
        if version > FORMAT:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"{self.path} has format {version}, this server knows up to {FORMAT}: a newer shm-server wrote it",
            )
        self._seed = crc32c.crc32c(raw[: _HEADER.size - 4])
        if checksum != self._seed or page_bytes != PAGE_BYTES:
            raise self._damaged(f"the header of {self.path} is damaged")
        if (layer, uuid) != (self._layer, self._uuid):
            raise self._damaged(f"{self.path} is the map of layer {layer}, not of layer {self._layer}")
        assert isinstance(boot, bytes)
        return boot

    def _damaged(self, words: str) -> DamagedMapError:
        return DamagedMapError(self.path, words)

    # Appending ------------------------------------------------------------------------------------------------------

    def append(self, kind: int, first: int, count: int) -> None:
        """The run is with the kernel when this returns. Where it raises, nothing of it is believed."""
        self.make_room()
        self._put(self._record(kind, first, count, self._length))
        self._claimed = self._length

    def make_room(self, records: int = 1) -> None:
        """For these and a barrier: a FLUSH must not fail on a full disk when what it covers had its place."""
        if self._length + (records + 1) * RECORD_BYTES <= self._room:
            return
        self._room = max(self._room, self._length)
        try:
            linux.fallocate(self._fd, linux.FALLOC_FL_KEEP_SIZE, self._room, ROOM_BYTES)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
        self._room += ROOM_BYTES

    @property
    def has_room(self) -> bool:
        """append() need not ask the file system for any."""
        return self._length + 2 * RECORD_BYTES <= self._room

    def _put(self, record: bytes) -> None:
        if os.pwrite(self._fd, record, self._length) < len(record):  # the next one is written over a part of one
            raise OSError(errno.ENOSPC, f"no room for a record in {self.path}")
        self._length += len(record)
        self._last = int.from_bytes(record[:4], "little")

    def is_behind(self, covered: int) -> bool:
        """There are runs before ``covered`` that a power cut would take."""
        return covered > self._durable

    def place(self) -> Place:
        """Behind the last record; the log is open to be written."""
        return Place(self._layer, self._length, self._claimed, self._durable, self._last, boot_id())

    @property
    def is_empty(self) -> bool:
        return self._claimed == HEADER_BYTES

    @property
    def claimed(self) -> int:
        """Hand this to barrier(), taken before the sync of the data began."""
        return self._claimed

    def barrier(self, covered: int) -> None:
        """The data of every run before ``covered`` are durable; so is this with the next sync()."""
        told = self._synced
        self._put(self._record(BARRIER, covered, told, self._length))
        self._told = max(self._told, told)

    def sync(self, covered: int) -> None:
        """Behind barrier(): now those runs are believed for good."""
        length = self._length
        os.fdatasync(self._fd)
        self._durable = max(self._durable, covered)
        self._synced = max(self._synced, length)

    def witness(self) -> None:
        """Nothing more is written, for now: say that all of it is durable. Not synced: without it nothing is wrong."""
        if self._synced > self._told and self._length == self._synced:
            with suppress(OSError):  # a full disk
                self.barrier(self._durable)
                self._told = self._length

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    # Records --------------------------------------------------------------------------------------------------------

    def _record(self, kind: int, first: int, count: int, offset: int) -> bytes:
        raw = _UNSUMMED.pack(kind, first, count, offset)
        return crc32c.crc32c(raw, self._seed).to_bytes(4, "little") + raw

    def _checksum(self, raw: bytes | memoryview) -> int:
        return crc32c.crc32c(raw, self._seed)
