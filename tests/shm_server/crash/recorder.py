"""What the server asks of the file system, noted in one order: the stores' calls, and SQLite's (database.py).

``Recorder`` notes every write, sync, size, hole, new, renamed and removed name below a directory, by inode, until its
MonkeyPatch is undone. What it notes must be all there is: a life compares what was noted with the files at its end.
It can also let the process die behind any event: from then on nothing that the "dead" code does reaches a file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shm_server.stores import linux

_SHARED = {  # whoever called these asked
    "sync_directory": "the directory",
    "DescriptorStore._make_durable": "the data",
    "DescriptorStore.sync_data": "the data",
    "MapLog.sync": "the map",
    "RedoFile.sync": "the record",
}


class Event(NamedTuple):
    """``kind``: write, size (of the file ``offset`` bytes), sync, datasync; of a directory: name, names (all that there
    are become durable); expect."""

    kind: str
    inode: int = 0  # of "name": 0, where it is gone; -1: a directory
    offset: int = 0
    data: Any = b""  # of "name": what it was called before; of "expect": what may be found from here on
    name: str = ""
    site: str = ""  # of a sync: the function that asked for it


class Died(BaseException):
    """The process is dead, as far as the code under test goes."""


class Recorder:
    """Copies inside the kernel become reads and writes."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.events: list[Event] = []
        self.is_dead = False
        self.dies_at = sys.maxsize  # how many events there will be
        self._root = f"{directory}/"
        self._kept: list[int] = []  # or their numbers would come again
        self._patch = patch
        self._calls: dict[str, Callable[..., Any]] = {}
        for name in (
            *("open", "write", "pwrite", "pwritev", "ftruncate", "truncate", "posix_fallocate", "mkdir"),
            *("fsync", "fdatasync", "rename", "replace", "link", "unlink", "remove", "rmdir"),
        ):
            self._calls[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, f"_{name}"))
        self._calls["fallocate"] = linux.fallocate
        patch.setattr(linux, "fallocate", self._fallocate)
        patch.setattr(os, "copy_file_range", _no_copy)

    def end(self) -> None:
        """Nothing is recorded any more."""
        self._patch.undo()
        for fd in self._kept:
            os.close(fd)

    def note(self, event: Event) -> None:
        """It has happened; perhaps it was the last thing to."""
        self.events.append(event)
        if len(self.events) >= self.dies_at:
            self.is_dead = True

    def expect(self, what: Any) -> None:
        self.events.append(Event("expect", data=what))

    def revive(self) -> None:
        """Another process."""
        self.is_dead = False
        self.dies_at = sys.maxsize

    def sites(self) -> list[str]:
        """Whoever asked for a sync."""
        return sorted({event.site for event in self.events if event.site})

    # Files ----------------------------------------------------------------------------------------------------------

    def relative(self, path: Any) -> str:
        """Below the directory; "" where it is not."""
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not isinstance(name, str) or not name.startswith(self._root):
            return ""
        if self.is_dead:
            raise Died
        return name[len(self._root) :]

    def _ours(self, fd: int) -> int:
        """The file's inode; 0: it is none of ours, or has no name."""
        status = os.fstat(fd)
        if not status.st_nlink or not os.readlink(f"/proc/self/fd/{fd}").startswith(self._root):
            return 0
        if self.is_dead:
            raise Died
        return status.st_ino

    def _done(self, event: Event) -> None:
        self.note(event)
        if self.is_dead:
            raise Died

    def keep(self, name: str) -> int:
        """The inode of a new file."""
        fd = self._calls["open"](self._root + name, os.O_RDONLY)
        self._kept.append(fd)
        return os.fstat(fd).st_ino

    def _open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        name = self.relative(path) if flags & (os.O_CREAT | os.O_TRUNC) and not flags & os.O_DIRECTORY else ""
        is_new = name != "" and not os.path.exists(path)
        fd: int = self._calls["open"](path, flags, *more, **named)
        if name:
            try:
                if is_new:
                    self._done(Event("name", self.keep(name), name=name))
                elif flags & os.O_TRUNC:
                    self._done(Event("size", os.fstat(fd).st_ino))
            except Died:
                os.close(fd)
                raise
        return fd

    def _write(self, fd: int, data: Any) -> int:
        inode = self._ours(fd)
        offset = os.lseek(fd, 0, os.SEEK_CUR) if inode else 0
        done: int = self._calls["write"](fd, data)
        if inode:
            self._done(Event("write", inode, offset, bytes(memoryview(data).cast("B")[:done])))
        return done

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        inode = self._ours(fd)
        done: int = self._calls["pwrite"](fd, data, offset)
        if inode:
            self._done(Event("write", inode, offset, bytes(memoryview(data).cast("B")[:done])))
        return done

    def _pwritev(self, fd: int, views: Any, offset: int, *flags: int) -> int:
        inode = self._ours(fd)
        done: int = self._calls["pwritev"](fd, views, offset, *flags)
        if inode:
            self._done(Event("write", inode, offset, b"".join(map(bytes, views))[:done]))
        return done

    def _ftruncate(self, fd: int, size: int) -> None:
        inode = self._ours(fd)
        self._calls["ftruncate"](fd, size)
        if inode:
            self._done(Event("size", inode, size))

    def _truncate(self, path: Any, size: int) -> None:
        assert not self.relative(path), "unheard of: teach the recorder"
        self._calls["truncate"](path, size)

    def _posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        inode = self._ours(fd)
        self._calls["posix_fallocate"](fd, offset, length)
        if inode:
            self._done(Event("size", inode, max(os.fstat(fd).st_size, offset + length)))

    def _fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        inode = self._ours(fd)
        self._calls["fallocate"](fd, mode, offset, length)
        if inode and mode & (linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_ZERO_RANGE):
            length = min(length, max(0, os.fstat(fd).st_size - offset))
            self._done(Event("write", inode, offset, bytes(length)))

    # Syncs ----------------------------------------------------------------------------------------------------------

    def _fsync(self, fd: int) -> None:
        self._sync(fd, "sync", self._calls["fsync"])

    def _fdatasync(self, fd: int) -> None:
        self._sync(fd, "datasync", self._calls["fdatasync"])

    def _sync(self, fd: int, kind: str, call: Callable[[int], None]) -> None:
        frame, what = sys._getframe(2), "the file"
        while (shared := _SHARED.get(frame.f_code.co_qualname)) and (back := frame.f_back) is not None:
            frame, what = back, shared
        site = f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}, {what}"
        path = os.readlink(f"/proc/self/fd/{fd}") + "/"
        if not path.startswith(self._root):
            call(fd)
        elif os.path.isdir(path):
            if self.is_dead:
                raise Died
            call(fd)
            self._done(Event("names", name=path[len(self._root) : -1], site=site))
        else:
            inode = self._ours(fd)
            call(fd)
            if inode:
                self._done(Event(kind, inode, site=site))

    # Names ----------------------------------------------------------------------------------------------------------

    def _mkdir(self, path: Any, *more: Any, **named: Any) -> None:
        name = self.relative(path)
        self._calls["mkdir"](path, *more, **named)
        if name:
            self._done(Event("name", -1, name=name))

    def _rename(self, old: Any, new: Any) -> None:
        self._move("rename", old, new)

    def _replace(self, old: Any, new: Any) -> None:
        self._move("replace", old, new)

    def _move(self, call: str, old: Any, new: Any) -> None:
        was, name = self.relative(old), self.relative(new)
        inode = os.stat(old).st_ino
        self._calls[call](old, new)
        if name:
            self._done(Event("name", inode, name=name, data=was))

    def _link(self, old: Any, new: Any, **named: Any) -> None:
        name = self.relative(new)
        self._calls["link"](old, new, **named)
        if name:
            self._done(Event("name", os.stat(new).st_ino, name=name, data=""))

    def _unlink(self, path: Any, **named: Any) -> None:
        name = self.relative(path)
        self._calls["unlink"](path, **named)
        if name:
            self._done(Event("name", 0, name=name))

    def _remove(self, path: Any) -> None:
        self._unlink(path)

    def _rmdir(self, path: Any, **named: Any) -> None:
        assert not self.relative(path), "unheard of: teach the recorder"
        self._calls["rmdir"](path, **named)


def _no_copy(*_: object) -> int:
    raise OSError(18, "no copying inside the kernel while it is recorded")
