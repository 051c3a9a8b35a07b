"""The file in which a chain keeps who owns each of its pages: four bytes a page, behind a header (docs/ON-DISK.md).

It is a cache of what the layers' maps say, so that opening a volume reads none of them: losing it costs time and never
a byte, and it is believed only where it can't be wrong. Its header names a ``Place`` in a layer's log: everything up to
there is in the table, perhaps more. While the volume is in use that holds for what the kernel has, so the table counts
as long as the same kernel runs, whoever was killed. After another start of the machine it counts only if it had been
made durable (``finish``) and not been touched since: before the first touch (``use``) the header says otherwise,
durably. What does not fit is unlinked, never written over: its name may come back with a power cut, and is then what it
was.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from array import array
from pathlib import Path

import crc32c

from shm_server.stores import linux
from shm_server.stores.maplog import PAGE_BYTES, Place, is_of_now

FORMAT = 1
HEADER_BYTES = 4096
_MAGIC = b"OVSOWNER"
# magic, format, page bytes, volume's uuid, boot id, layer, length, claimed, durable, checksum, is finished, crc32c
_HEADER = struct.Struct("<8sII16s16sQQQQIII")
assert _HEADER.size <= 512  # a sector: written whole or not at all


class Table:
    """Owners are bytes to it. Offsets are from the first owner."""

    def __init__(self, directory: Path, path: Path | None = None, uuid: str = "") -> None:
        """Without a path it is in the directory, and dies with who opened it."""
        self._directory = directory
        self._path = path
        self._uuid = bytes.fromhex(uuid)
        self._fd = -1
        self._is_finished = False
        self._is_memory = False

    # Beginning and end ----------------------------------------------------------------------------------------------

    def recall(self) -> Place | None:
        """What an earlier life knew, if it is to be believed: then use() it; or renew()."""
        if self._path is None:
            return None
        try:
            self._open(os.O_RDWR)
            raw = os.pread(self._fd, _HEADER.size, 0)
        except OSError:
            return None  # a missing file, mostly; whatever it is, there are the maps
        if len(raw) < _HEADER.size or crc32c.crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            return None
        magic, version, page_bytes, uuid, boot, layer, length, claimed, durable, checksum, is_finished, _ = (
            _HEADER.unpack(raw)
        )
        if (magic, version, page_bytes, uuid) != (_MAGIC, FORMAT, PAGE_BYTES, self._uuid):
            return None
        if not is_finished and not is_of_now(boot):
            return None
        self._is_finished = bool(is_finished)
        return Place(layer, length, claimed, durable, checksum, boot)

    def is_in_use(self) -> bool:
        """Or was, by who was killed since."""
        has_place = self.recall() is not None
        self.close()
        return has_place and not self._is_finished

    def use(self, place: Place) -> None:
        """It is going to be written: from now on it is to be believed as long as this kernel runs."""
        self.note(place)
        if self._is_finished:
            os.fdatasync(self._fd)
            self._is_finished = False

    def renew(self) -> None:
        """A new one, in which the base has all; of no meaning before note()."""
        self.close()
        if self._path is None:
            with tempfile.TemporaryFile(dir=self._directory) as file:
                self._fd = os.dup(file.fileno())
            self._look()
            return
        self._path.unlink(missing_ok=True)
        self._open(os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._is_finished = False

    def note(self, place: Place) -> None:
        """Everything up to there is in the table."""
        self._put_header(place, is_finished=False)

    def finish(self, place: Place) -> None:
        """The same, and all of that is durable; nothing is written any more."""
        if self._path is not None:
            os.fdatasync(self._fd)
            self._put_header(place, is_finished=True)  # not synced: without it the maps are read

    def give_up(self) -> None:
        """Nobody is to believe it."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()

    def _open(self, flags: int) -> None:
        assert self._path is not None
        self._fd = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
        self._look()

    def _look(self) -> None:
        self._is_memory = linux.filesystem_magic(self._fd) == linux.TMPFS_MAGIC

    def _put_header(self, place: Place, *, is_finished: bool) -> None:
        if self._path is None:
            return
        *fields, boot = place
        raw = _HEADER.pack(_MAGIC, FORMAT, PAGE_BYTES, self._uuid, boot, *fields, is_finished, 0)[:-4]
        os.pwrite(self._fd, raw + crc32c.crc32c(raw).to_bytes(4, "little"), 0)

    # Owners ---------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        """Shorter at the end of the file, behind which the base has all."""
        return os.pread(self._fd, length, HEADER_BYTES + offset)

    def read_now(self, offset: int, length: int) -> bytes | None:
        """None: not at once."""
        if self._is_memory:
            return self.read(offset, length)
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, (buffer,), HEADER_BYTES + offset, os.RWF_NOWAIT)
        except OSError:
            return None
        return bytes(buffer) if count == length else None

    def write(self, owners: array[int], offset: int) -> None:
        if os.pwrite(self._fd, owners, HEADER_BYTES + offset) < len(owners) * owners.itemsize:
            raise OSError(errno.ENOSPC, "no room for the owners of a volume's pages")

    def next_data(self, offset: int) -> int | None:
        """Where from ``offset`` on the file has something; None: nowhere."""
        try:
            return max(0, os.lseek(self._fd, HEADER_BYTES + offset, os.SEEK_DATA) - HEADER_BYTES)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return None
