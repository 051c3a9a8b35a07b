"""The volumes of a server as files of a directory, with their snapshots below it: what each call of Linux comes to.

The methods are libfuse's operations as mfusepy calls them, an OSError being the answer; reads and writes get the
kernel's own memory, so that payload is copied once, between there and a slot. Sizes, opens and growth are
interfaces.files', connections interfaces.lanes', the mount itself interfaces.mounting's. Nothing here imports mfusepy.

What there is not: directories of one's own, links, other names than NAME.raw, times and modes of one's own (accepted,
not kept). fallocate punches and zeroes, and can't reserve space (EOPNOTSUPP). What stands in .snapshots is EROFS for
whatever would change it.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import Any

from iscsi_ovs.interfaces import tree
from iscsi_ovs.interfaces.files import File, Files
from iscsi_ovs.interfaces.lanes import Lane, Lanes
from iscsi_ovs.interfaces.tree import Kind, Place
from shm_server.abi import names

# linux/falloc.h
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 0x01, 0x02, 0x10
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
        self._directories: dict[int, Place] = {}  # those that somebody reads
        self._next_number = 1
        self._since_ns = time.time_ns()

    def init(self, path: str) -> None:
        """The kernel has answered: the directory is mounted."""
        self._mounted()

    # The directory -------------------------------------------------------------------------------------------------

    def getattr(self, path: str | None, number: int | None = None) -> Attributes:
        place = _find(path) if path is not None else Place(Kind.FILE, self._opening(number).file.name)
        if place.kind is Kind.FILE:
            return self._file_attributes(place.name)
        if place.kind is Kind.SNAPSHOTS_OF and self._files.stat(place.name) is None:
            raise OSError(errno.ENOENT, "it has no snapshots, for it is no volume yet")
        mode = 0o700 if place.kind is Kind.VOLUMES else 0o500
        return self._attributes(stat.S_IFDIR | mode, 0, 0, self._since_ns) | {"st_nlink": 2}

    def _file_attributes(self, name: str) -> Attributes:
        if names.is_snapshot(name):
            info, found = self._files.stat_snapshot(name)
            created_ns = int(found.created_s * 1e9)
            return self._attributes(stat.S_IFREG | 0o400, info.size_bytes, info.allocated_bytes, created_ns)
        known = self._files.stat(name)
        sizes = (0, 0) if known is None else (known.size_bytes, known.allocated_bytes)
        return self._attributes(stat.S_IFREG | 0o600, *sizes, self._since_ns)

    def _attributes(self, mode: int, size_bytes: int, allocated_bytes: int, time_ns: int) -> Attributes:
        """Times never change: a new one would make Linux drop the pages that it has of the file."""
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), time_ns)
        return times | {
            "st_mode": mode,
            "st_nlink": 1,
            "st_uid": os.getuid(),
            "st_gid": os.getgid(),
            "st_size": size_bytes,
            "st_blocks": -(-allocated_bytes // 512),
            "st_blksize": BLOCK_BYTES,
        }

    def opendir(self, path: str) -> int:
        place = _find(path)
        if place.kind is Kind.FILE:
            raise OSError(errno.ENOTDIR, "a file")
        number = self._take_number()
        self._directories[number] = place
        return number

    def releasedir(self, path: str | None, number: int) -> None:
        del self._directories[number]

    def readdir(self, path: str | None, number: int) -> list[str]:
        place = self._directories[number]
        if place.kind is Kind.VOLUMES:
            return [".", "..", tree.SNAPSHOTS, *map(tree.file_name, self._files.names())]
        if place.kind is Kind.SNAPSHOTS:
            return [".", "..", *self._files.volumes()]
        return [".", "..", *map(tree.file_name, self._files.snapshots(place.name))]

    def statfs(self, path: str) -> dict[str, int]:
        """The space of the pool's file system, where that is one of this machine."""
        try:
            pool = os.statvfs(self._lanes.perform(_pool))
        except OSError:
            return {"f_bsize": BLOCK_BYTES, "f_frsize": BLOCK_BYTES, "f_namemax": tree.NAME_BYTES_MAX}
        fields = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail")
        return {name: getattr(pool, name) for name in fields} | {"f_namemax": tree.NAME_BYTES_MAX}

    def unlink(self, path: str) -> None:
        _check_present(path)
        self._files.unlink(_file(path))

    def rename(self, old: str, new: str) -> None:
        """Nothing is written over: EEXIST, where Linux would let go of what has the name."""
        _check_present(old, new)
        self._files.rename(_file(old), _new_file(new))

    def mkdir(self, path: str, mode: int) -> None:
        _check_present(path)
        raise OSError(errno.EPERM, "there are no directories among volumes")

    def rmdir(self, path: str) -> None:
        self.mkdir(path, 0)

    def chmod(self, path: str | None, mode: int) -> None:
        """Accepted, so that cp -p and tar go on; a volume has no such thing."""
        _check_present(path or "")

    def chown(self, path: str | None, uid: int, gid: int) -> None:
        """As chmod."""
        _check_present(path or "")

    def utimens(self, path: str | None, times: tuple[int, int] | None = None) -> None:
        """As chmod."""
        _check_present(path or "")

    # Files ---------------------------------------------------------------------------------------------------------

    def create(self, path: str, mode: int, flags: int) -> int:
        _check_present(path)
        return self._number(Opening(self._files.create(_new_file(path)), flags | os.O_RDWR))

    def open(self, path: str, flags: int) -> int:
        for_writing = flags & os.O_ACCMODE != os.O_RDONLY
        file = self._files.open(_file(path), for_writing=for_writing, truncate=bool(flags & os.O_TRUNC))
        return self._number(Opening(file, flags))

    def _number(self, opening: Opening) -> int:
        number = self._take_number()
        self._openings[number] = opening
        return number

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number += 1
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
        _check_present(path or "")
        self._files.truncate(_file(path) if path is not None else self._opening(number).file.name, length)

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


def _find(path: str) -> Place:
    place = tree.find(path)
    if place is None:
        raise OSError(errno.ENOENT, "no such volume")
    return place


def _file(path: str) -> str:
    """The volume or snapshot that it is."""
    place = _find(path)
    if place.kind is not Kind.FILE:
        raise OSError(errno.EISDIR, "a directory")
    return place.name


def _new_file(path: str) -> str:
    """The volume that it is to be."""
    place = tree.find(path)
    if place is None or place.kind is not Kind.FILE:
        raise OSError(errno.EINVAL, f"names here are {names.VOLUME_RULE}, followed by {tree.SUFFIX}")
    return place.name


def _check_present(*paths: str) -> None:
    """EROFS where something is to be changed among snapshots."""
    if any(map(tree.is_past, paths)):
        raise OSError(errno.EROFS, "snapshots can't be changed")


def _pool(lane: Lane) -> str:
    found: str = lane.context.pool
    return found
