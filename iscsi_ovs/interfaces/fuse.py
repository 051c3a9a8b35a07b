"""The volumes of a server as files of a directory: what each call of Linux on that directory comes to.

The methods are libfuse's operations as mfusepy calls them, an OSError being the answer; reads and writes get the
kernel's own memory, so that payload is copied once, between there and a slot. Sizes, opens and growth are
interfaces.files', connections interfaces.lanes', the mount itself interfaces.mounting's. Nothing here imports mfusepy.

What there is not: directories, links, other names than NAME.raw, times and modes of one's own (accepted, not kept).
rename is EXDEV, so that mv copies. fallocate punches and zeroes, and can't reserve space (EOPNOTSUPP).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from iscsi_ovs.interfaces.files import File, Files, file_name, volume_name
from iscsi_ovs.interfaces.lanes import Lane, Lanes

# linux/falloc.h
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 0x01, 0x02, 0x10
NAME_BYTES_MAX = 63 + 4
BLOCK_BYTES = 4096

Attributes = dict[str, int]


class Opening:
    """An open file description of Linux: what its number (fh) stands for."""

    __slots__ = ("can_write", "file", "is_synchronous")

    def __init__(self, file: File, flags: int) -> None:
        self.file = file
        self.can_write = flags & os.O_ACCMODE != os.O_RDONLY
        self.is_synchronous = bool(flags & os.O_DSYNC)  # O_SYNC has this bit, too


class VolumeDirectory:
    """libfuse's operations on a directory of volumes. Called from many threads."""

    use_ns = True  # times are integers: nanoseconds
    flag_nopath = flag_nullpath_ok = True  # what is open comes with its number alone

    def __init__(self, lanes: Lanes, mounted: Callable[[], None]) -> None:
        self._lanes = lanes
        self._files = Files(lanes)
        self._mounted = mounted
        self._openings: dict[int, Opening] = {}
        self._next_number = 1
        self._since_ns = time.time_ns()

    def init(self, path: str) -> None:
        """The kernel has answered: the directory is mounted."""
        self._mounted()

    # The directory -------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, number: int | None = None) -> Attributes:
        if path == "/":
            return self._attributes(stat.S_IFDIR | 0o700, 0, 0) | {"st_nlink": 2}
        name = volume_name(path) if path is not None else self._opening(number).file.name
        if name is None:
            raise OSError(errno.ENOENT, "no such volume")
        info = self._files.stat(name)
        if info is None:
            return self._attributes(stat.S_IFREG | 0o600, 0, 0)
        return self._attributes(stat.S_IFREG | 0o600, info.size_bytes, info.allocated_bytes)

    def _attributes(self, mode: int, size_bytes: int, allocated_bytes: int) -> Attributes:
        """Times never change: a new one would make Linux drop the pages that it has of the file."""
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._since_ns)
        return times | {
            "st_mode": mode,
            "st_nlink": 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_size": size_bytes,
            "st_blocks": -(-allocated_bytes // 512),
            "st_blksize": BLOCK_BYTES,
        }

    def readdir(self, path: str | None, number: int) -> list[str]:
        return [".", "..", *map(file_name, self._files.names())]

    def statfs(self, path: str) -> dict[str, int]:
        """The space of the pool's file system, where that is one of this machine."""
        try:
            pool = os.statvfs(self._lanes.perform(_pool))
        except OSError:
            return {"f_bsize": BLOCK_BYTES, "f_frsize": BLOCK_BYTES, "f_namemax": NAME_BYTES_MAX}
        names = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {name: getattr(pool, name) for name in names} | {"f_namemax": NAME_BYTES_MAX}

    def unlink(self, path: str) -> None:
        name = volume_name(path)
        if name is None:
            raise OSError(errno.ENOENT, "no such volume")
        self._files.unlink(name)

    def rename(self, old: str, new: str) -> None:
        raise OSError(errno.EXDEV, "a volume can't get another name")

    def mkdir(self, path: str, mode: int) -> None:
        raise OSError(errno.EPERM, "there are no directories among volumes")

    def chmod(self, path: str | None, mode: int) -> None:
        """Accepted, so that cp -p and tar go on; a volume has no such thing."""

    def chown(self, path: str | None, uid: int, gid: int) -> None:
        """As chmod."""

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> None:
        """As chmod."""

    # Files ---------------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int) -> int:
        name = volume_name(path)
        if name is None:
            raise OSError(errno.EINVAL, "names here are [a-z0-9][a-z0-9.-]{0,62}, followed by .raw")
        return self._number(Opening(self._files.create(name), flags | os.O_RDWR))

    def open(self, path: str, flags: int) -> int:
        name = volume_name(path)
        if name is None:
            raise OSError(errno.ENOENT, "no such volume")
        for_writing = flags & os.O_ACCMODE != os.O_RDONLY
        file = self._files.open(name, for_writing=for_writing, truncate=bool(flags & os.O_TRUNC))
        return self._number(Opening(file, flags))

    def _number(self, opening: Opening) -> int:
        number = self._next_number
        self._next_number += 1
        self._openings[number] = opening
        return number

    def _opening(self, number: int | None) -> Opening:
        opening = None if number is None else self._openings.get(number)
        if opening is None:
            raise OSError(errno.EBADF, "no open file")
        return opening

    def release(self, path: str | None, number: int) -> None:
        opening = self._openings.pop(number)
        self._files.close(opening.file, for_writing=opening.can_write)

    def read(self, target: Any, size: int, offset: int, number: int) -> int:
        """READ, into the kernel's memory at a ctypes pointer."""
        return self._files.read(self._openings[number].file, target, size, offset)

    def write(self, source: Any, size: int, offset: int, number: int) -> int:
        """WRITE, from the kernel's memory."""
        opening = self._openings[number]
        return self._files.write(opening.file, source, size, offset, opening.is_synchronous)

    def flush(self, path: str | None, number: int) -> None:
        """Some descriptor was closed: what close(2) answers with, and the last chance to tell of a loss."""
        file = self._opening(number).file
        if not file.volume.is_gone:
            self._files.flush(file)

    def fsync(self, path: str | None, datasync: int, number: int) -> None:
        self._files.flush(self._opening(number).file)

    def truncate(self, path: str | None, length: int, number: int | None = None) -> None:
        name = volume_name(path) if path is not None else self._opening(number).file.name
        if name is None:
            raise OSError(errno.ENOENT, "no such volume")
        self._files.truncate(name, length)

    def fallocate(self, path: str | None, mode: int, offset: int, size: int, number: int) -> None:
        file = self._opening(number).file
        kind = mode & ~FALLOC_FL_KEEP_SIZE
        if kind == FALLOC_FL_PUNCH_HOLE:
            self._files.discard(file, offset, size)
        elif kind == FALLOC_FL_ZERO_RANGE:
            info = self._files.stat(file.name)
            if not mode & FALLOC_FL_KEEP_SIZE and (info is None or info.size_bytes < offset + size):
                self._files.grow(file.name, offset + size)
            self._files.write_zeroes(file, offset, size)
        else:
            raise OSError(errno.EOPNOTSUPP, "space can't be reserved")


def _pool(lane: Lane) -> str:
    found: str = lane.context.pool
    return found
