"""Volumes as files: who has a file open, how large it is, how it comes to be and grows; their snapshots, to be read.

What a path means is interfaces.tree's; names are the client library's here, of volumes and VOLUME@SNAPSHOT. A file
that was created and has no size yet is only known here: the first truncate or write gives it one, and that makes the
volume. Sizes are the server's: multiples of 4096 bytes, never smaller than before (EPERM). A volume is held for writing
from the first open for writing to the last close, over whichever lanes.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

from iscsi_ovs.interfaces.lanes import Lane, Lanes, Volume
from iscsi_ovs.interfaces.tree import file_name
from iscsi_ovs.shm_client import SnapshotStat, VolumeStat
from shm_server.abi import names

SIZE_STEP_BYTES = 4096  # the server rounds sizes up to this
CLOSE_LIMIT_S = 0.5  # a close whose release is on its way is waited for so long before unlink says EBUSY


class File:
    """A file that somebody has open, or that has no size yet."""

    __slots__ = ("change", "flushed", "is_volume", "latest", "name", "opens", "volume", "writers")

    def __init__(self, name: str, *, is_volume: bool) -> None:
        self.name = name
        self.volume = Volume(name)
        self.is_volume = is_volume  # False: of size 0, and unknown to the server
        self.latest = object()  # a new one behind everything that a flush would make durable
        self.flushed = self.latest  # which of them a flush has covered
        self.opens = 0
        self.writers = 0
        self.change = threading.RLock()  # held by who opens, closes, creates or grows it


class Files:
    """Every file that is open or has no size yet."""

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._files: dict[str, File] = {}
        self._lock = threading.Lock()
        self._closed = threading.Condition(self._lock)
        lanes.written = lambda: [file.volume for file in list(self._files.values()) if file.volume.is_written]

    # Looking -------------------------------------------------------------------------------------------------------

    def stat(self, name: str) -> VolumeStat | None:
        """None: it has no size yet. ENOENT."""
        file = self._files.get(name)
        if file is not None and not file.is_volume and not self._appeared(file):
            return None
        return self._stat(name)

    def names(self) -> list[str]:
        """Every file of the directory."""
        listed = {info.name for info in self._lanes.perform(_list)}
        pending = {name for name, file in list(self._files.items()) if not file.is_volume}
        return sorted(listed | pending)

    def stat_snapshot(self, name: str) -> tuple[VolumeStat, SnapshotStat]:
        """By VOLUME@SNAPSHOT. ENOENT."""
        return self._lanes.perform(_stat_snapshot, name)

    def volumes(self) -> list[str]:
        """Those that may have snapshots."""
        return sorted(info.name for info in self._lanes.perform(_list))

    def snapshots(self, volume: str) -> list[str]:
        """Of a volume, as VOLUME@SNAPSHOT. ENOENT."""
        return [names.join(volume, found.name) for found in self._lanes.perform(_list_snapshots, volume)]

    def _stat(self, name: str) -> VolumeStat:
        return self._lanes.perform(_stat, name)

    def _appeared(self, file: File) -> bool:
        """Whether somebody else has made a volume of that name meanwhile: then it is the file."""
        try:
            self._stat(file.name)
        except FileNotFoundError:
            return False
        self._become_volume(file)
        return True

    def _become_volume(self, file: File) -> None:
        """It has a size now; who opened it for writing holds it."""
        with file.change:
            if not file.is_volume:
                file.is_volume = True
                if file.writers:
                    self._hold(file)
                if not file.opens:
                    self._forget(file)

    # Opening and closing -------------------------------------------------------------------------------------------

    def create(self, name: str) -> File:
        """A new file of size 0, opened for writing. EEXIST."""
        with self._lock:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = File(name, is_volume=False)
                file.opens = file.writers = 1
                return file
        raise OSError(errno.EEXIST, f"{file_name(name)} exists")

    def open(self, name: str, *, for_writing: bool, truncate: bool) -> File:
        """ENOENT; EBUSY: somebody else writes it; EPERM: truncate to 0 what has a size; EROFS: a snapshot."""
        if names.is_snapshot(name) and (for_writing or truncate):
            raise OSError(errno.EROFS, "a snapshot can't be written")
        while True:
            with self._lock:
                file = self._files.setdefault(name, File(name, is_volume=True))
            with file.change:
                if self._files.get(name) is not file:
                    continue  # its last close was just then
                try:
                    self._open(file, for_writing, truncate)
                finally:
                    self._forget_unused(file)
                return file

    def _open(self, file: File, for_writing: bool, truncate: bool) -> None:
        if file.is_volume:
            if truncate:
                self._stat(file.name)
                raise OSError(errno.EPERM, "a volume can't shrink")
            if for_writing and not file.writers:
                self._hold(file)
            elif not for_writing and not file.opens:
                self._lanes.perform(Lane.open, file.volume, False)
        file.opens += 1
        file.writers += for_writing

    def _hold(self, file: File) -> None:
        """Take the writer's right, on one lane for the time being."""
        self._lanes.perform(Lane.open, file.volume, True)
        file.volume.is_written = True

    def close(self, file: File, *, for_writing: bool) -> None:
        """The kernel has released an open file."""
        with file.change:
            file.opens -= 1
            file.writers -= for_writing
            if not file.opens or (for_writing and not file.writers):
                file.volume.is_written = file.writers > 0
                self._lanes.let_go(file.volume)
                with self._closed:
                    self._closed.notify_all()
            self._forget_unused(file)

    def _forget_unused(self, file: File) -> None:
        if not file.opens and file.is_volume:
            self._forget(file)

    def _forget(self, file: File) -> None:
        with self._closed:
            if self._files.get(file.name) is file:
                del self._files[file.name]
            self._closed.notify_all()

    def unlink(self, name: str) -> None:
        """Remove the volume, or forget what had no size. EBUSY: it is open here or elsewhere; ENOENT."""
        with self._closed:
            file = self._wait(name, lambda file: not file.opens and not file.is_volume)
            if file is not None:
                del self._files[name]
                return
        self._lanes.perform(_remove, name)

    def rename(self, name: str, new_name: str) -> None:
        """Give it another name; who has it open to read goes on. EEXIST: there is one of that name, which would be lost
        with all its data; EBUSY: it is open for writing, here or elsewhere; ENOENT."""
        with self._closed:
            file = self._wait(name, lambda file: not file.writers)
        uuid = None if file is not None and not file.is_volume else self._stat(name).uuid
        if name == new_name:
            return
        if self._is_there(new_name):
            raise OSError(errno.EEXIST, f"{file_name(new_name)} exists")
        if uuid is not None:
            self._lanes.perform(_rename, name, new_name, uuid)
        with self._lock:
            if file is not None and self._files.get(name) is file:
                self._files[new_name] = self._files.pop(name)
                file.name = file.volume.name = new_name

    def _is_there(self, name: str) -> bool:
        if name in self._files:
            return True
        try:
            self._stat(name)
        except FileNotFoundError:
            return False
        return True

    def _wait(self, name: str, can_go: Callable[[File], bool]) -> File | None:
        """For who has ``_closed``: the file, when it is so far; None when it is closed. EBUSY: that takes too long."""
        deadline = time.monotonic() + CLOSE_LIMIT_S
        while (file := self._files.get(name)) is not None and not can_go(file):
            if not self._closed.wait(deadline - time.monotonic()):
                raise OSError(errno.EBUSY, f"{file_name(name)} is open")
        return file

    # Data ----------------------------------------------------------------------------------------------------------

    def read(self, file: File, target: Any, size: int, offset: int) -> int:
        """Into a ctypes pointer; short across the end, 0 beyond."""
        if not file.is_volume:
            return 0
        return self._lanes.perform(Lane.read, file.volume, target, size, offset)

    def write(self, file: File, source: Any, size: int, offset: int, fua: bool) -> int:
        """From a ctypes pointer; the volume grows, or comes to be, where it ends before the data."""
        if not file.is_volume:
            self.grow(file.name, offset + size)
        try:
            return self._lanes.perform(Lane.write, file.volume, source, size, offset, fua)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            self.grow(file.name, offset + size)
            return self._lanes.perform(Lane.write, file.volume, source, size, offset, fua)
        finally:
            file.latest = object()

    def flush(self, file: File) -> None:
        """Make durable what has been written when it is called. EIO: some of it may be lost.

        Nothing to do where a flush that has *completed* began behind the latest write: threads may be in both.
        """
        latest = file.latest
        if file.is_volume and file.flushed is not latest:
            self._lanes.perform(Lane.flush, file.volume)
            file.flushed = latest

    def discard(self, file: File, offset: int, length: int) -> None:
        """Give a range's space back."""
        self._within(file, Lane.discard, offset, length)

    def write_zeroes(self, file: File, offset: int, length: int) -> None:
        """Zero a range; its space stays allocated."""
        self._within(file, Lane.write_zeroes, offset, length)

    def _within(self, file: File, action: Callable[[Lane, Volume, int, int], None], offset: int, length: int) -> None:
        """As Linux does it, what lies beyond the end is nothing."""
        if not file.is_volume:
            return
        end = min(offset + length, self._stat(file.name).size_bytes)
        if offset < end:
            try:
                self._lanes.perform(action, file.volume, offset, end - offset)
            finally:
                file.latest = object()

    # Size ----------------------------------------------------------------------------------------------------------

    def truncate(self, name: str, size: int) -> None:
        """Give it this size, rounded up. EPERM: it has a larger one. ENOENT, EFBIG."""
        info = self.stat(name)
        if info is None or info.size_bytes < size:
            self.grow(name, size)
        elif info.size_bytes - size >= SIZE_STEP_BYTES:
            raise OSError(errno.EPERM, f"volume {name} has {info.size_bytes} bytes: a volume can't shrink")

    def grow(self, name: str, size: int) -> None:
        """Let it have ``size`` at least."""
        with self._lock:
            file = self._files.get(name)
        if file is None:
            self._lanes.perform(_grow, name, size)
            return
        with file.change:
            if file.is_volume or self._appeared(file):
                self._lanes.perform(_grow, name, size)
            elif size:
                self._lanes.perform(Lane.create, name, size)
                self._become_volume(file)


def _list(lane: Lane) -> list[VolumeStat]:
    found: list[VolumeStat] = lane.context.list_volumes()
    return found


def _stat(lane: Lane, name: str) -> VolumeStat:
    found: VolumeStat = lane.context.stat_volume(name)
    return found


def _stat_snapshot(lane: Lane, name: str) -> tuple[VolumeStat, SnapshotStat]:
    found: SnapshotStat = lane.context.stat_snapshot(*names.split(name))
    return _stat(lane, name), found


def _list_snapshots(lane: Lane, volume: str) -> list[SnapshotStat]:
    found: list[SnapshotStat] = lane.context.list_snapshots(volume)
    return found


def _remove(lane: Lane, name: str) -> None:
    lane.context.remove_volume(name)


def _rename(lane: Lane, name: str, new_name: str, uuid: str) -> None:
    """Twice is once, where the first answer was lost."""
    try:
        lane.context.rename(name, new_name)
    except FileNotFoundError:
        if lane.context.stat_volume(new_name).uuid != uuid:
            raise


def _grow(lane: Lane, name: str, size: int) -> None:
    """Two that grow it at once: the smaller one has what it wants."""
    if lane.context.stat_volume(name).size_bytes < size:
        try:
            lane.context.truncate_volume(name, size)
        except PermissionError:
            if lane.context.stat_volume(name).size_bytes < size:
                raise
