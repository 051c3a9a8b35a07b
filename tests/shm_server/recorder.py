"""What the store asks of the file system, noted; and what a power cut may leave of it.

``Recorder`` notes every write, sync, truncation, hole, new, renamed and removed name below a directory, by inode;
commits of the catalogue are noted as whole images (SQLite's own promise is taken for granted). ``after_cut`` builds
what a disk may hold when the power fails behind an event: of what was not synced each sector of 512 bytes has any of
the versions it went through, each change of a size has happened or not, and names have changed up to some point in
their order.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shm_server.stores import linux
from shm_server.volumes.catalog import Catalog

SECTOR = 512
_SYNCS = ("fdatasync", "fsync")
_SHARED = {  # whoever called these asked
    "sync_directory": "the directory",
    "DescriptorStore._make_durable": "the data",
    "DescriptorStore.sync_data": "the data",
    "MapLog.sync": "the map",
    "RedoFile.sync": "the record",
}


class Event(NamedTuple):
    kind: str  # write, size, sync, names, name, catalogue, mark
    inode: int = 0
    offset: int = 0
    data: bytes = b""
    name: str = ""
    site: str = ""  # of a sync: the function that asked for it


class Recorder:
    """Records from its making until the MonkeyPatch is undone. Copies inside the kernel become reads and writes."""

    def __init__(self, directory: Path, catalog: Catalog, patch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.events: list[Event] = []
        self.names = {path.name: path.stat().st_ino for path in directory.iterdir()}
        self.contents_at_begin = {path.stat().st_ino: path.read_bytes() for path in directory.iterdir()}
        self._catalog = catalog
        self._kept = [os.open(path, os.O_RDONLY) for path in directory.iterdir()]  # or their numbers would come again
        for name in ("open", "pwrite", "pwritev", "ftruncate", "rename", *_SYNCS):
            patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
        patch.setattr(os, "copy_file_range", _no_copy)
        patch.setattr(Path, "unlink", self._unlink(Path.unlink))
        patch.setattr(linux, "fallocate", self._fallocate(linux.fallocate))
        patch.setattr(Catalog, "transaction", self._transaction(Catalog.transaction))
        self.commit()

    def close(self) -> None:
        for fd in self._kept:
            os.close(fd)

    def mark(self, name: str) -> None:
        self.events.append(Event("mark", name=name))

    def commit(self) -> None:
        self.events.append(Event("catalogue", data=self._catalog._database.serialize()))

    def sites(self) -> list[str]:
        """Whoever asked for a sync."""
        return sorted({event.site for event in self.events if event.site})

    def _note(self, fd: int, kind: str, offset: int = 0, data: bytes = b"", site: str = "") -> None:
        status = os.fstat(fd)
        if status.st_nlink and os.readlink(f"/proc/self/fd/{fd}").startswith(str(self.directory)):
            self.events.append(Event(kind, status.st_ino, offset, data, site=site))

    def _open(self, call: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
            is_new = isinstance(path, Path) and path.parent == self.directory and not path.exists()
            fd = call(path, flags, *more, **named)
            if is_new and flags & os.O_CREAT:
                inode = os.fstat(fd).st_ino
                self.events.append(Event("name", inode, name=path.name))
                self._kept.append(call(path, os.O_RDONLY))
            elif flags & os.O_TRUNC and isinstance(path, Path) and path.parent == self.directory:
                self._note(fd, "size", 0)
            return fd

        return opened

    def _pwrite(self, call: Callable[..., int]) -> Callable[..., int]:
        def written(fd: int, data: Any, offset: int) -> int:
            done = call(fd, data, offset)
            self._note(fd, "write", offset, bytes(memoryview(data).cast("B")[:done]))
            return done

        return written

    def _pwritev(self, call: Callable[..., int]) -> Callable[..., int]:
        def written(fd: int, views: Any, offset: int, *flags: int) -> int:
            done = call(fd, views, offset, *flags)
            self._note(fd, "write", offset, b"".join(map(bytes, views))[:done])
            return done

        return written

    def _ftruncate(self, call: Callable[..., None]) -> Callable[..., None]:
        def truncated(fd: int, size: int) -> None:
            call(fd, size)
            self._note(fd, "size", size)

        return truncated

    def _fallocate(self, call: Callable[..., None]) -> Callable[..., None]:
        def allocated(fd: int, mode: int, offset: int, length: int) -> None:
            call(fd, mode, offset, length)
            if mode & linux.FALLOC_FL_PUNCH_HOLE:
                length = min(length, max(0, os.fstat(fd).st_size - offset))
                self._note(fd, "write", offset, bytes(length))

        return allocated

    def _sync(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def synced(fd: int) -> None:
            call(fd)
            frame, what = sys._getframe(1), "the file"
            while (shared := _SHARED.get(frame.f_code.co_qualname)) and (back := frame.f_back) is not None:
                frame, what = back, shared
            site = f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}, {what}"
            if os.readlink(f"/proc/self/fd/{fd}") == str(self.directory):
                self.events.append(Event("names", site=site))
            else:
                self._note(fd, "sync", site=site)

        return synced

    _fsync = _fdatasync = _sync

    def _rename(self, call: Callable[..., None]) -> Callable[..., None]:
        def renamed(old: Path, new: Path) -> None:
            inode = old.stat().st_ino
            call(old, new)
            self.events.append(Event("name", inode, name=new.name, data=old.name.encode()))

        return renamed

    def _unlink(self, call: Callable[..., None]) -> Callable[..., None]:
        def unlinked(path: Path, missing_ok: bool = False) -> None:
            was_there = path.exists()
            call(path, missing_ok=missing_ok)
            if was_there and path.parent == self.directory:
                self.events.append(Event("name", 0, name=path.name))

        return unlinked

    def _transaction(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def transaction(catalog: Catalog) -> Any:
            with call(catalog) as execute:
                yield execute
            if catalog is self._catalog:
                self.commit()

        return transaction


def _no_copy(*_: object) -> int:
    raise OSError(18, "no copying inside the kernel while it is recorded")


class _File:
    """What is durable of an inode, and what has happened since."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.pending: list[Event] = []

    def settle(self) -> None:
        for event in self.pending:
            _apply(self.content, event)
        self.pending.clear()

    def cut(self, choose: random.Random) -> bytes:
        content = bytearray(self.content)
        likely = choose.choice((0.0, 0.3, 0.7, 1.0))
        for event in self.pending:
            if event.kind == "size":
                if choose.random() < likely:
                    _apply(content, event)
                continue
            at = 0
            while at < len(event.data):
                step = min(len(event.data) - at, SECTOR - (event.offset + at) % SECTOR)
                if choose.random() < likely:
                    _apply(content, Event("write", 0, event.offset + at, event.data[at : at + step]))
                at += step
        return bytes(content)


def _apply(content: bytearray, event: Event) -> None:
    if event.kind == "size":
        del content[event.offset :]
        content.extend(bytes(event.offset - len(content)))
        return
    end = event.offset + len(event.data)
    if len(content) < end:
        content.extend(bytes(end - len(content)))
    content[event.offset : end] = event.data


class Image(NamedTuple):
    files: dict[str, bytes]
    catalogue: bytes
    marks: list[str]


class Disk:
    """The recording, played event by event. ``ignored`` is a site whose syncs do nothing."""

    def __init__(
        self, names: dict[str, int], contents: dict[int, bytes], events: list[Event], ignored: str = ""
    ) -> None:
        self._names = dict(names)
        self._pending_names: list[Event] = []
        self._files = {inode: _File(content) for inode, content in contents.items()}
        self._events = events
        self._ignored = ignored
        self._catalogue = b""
        self._marks: list[str] = []
        self.at = 0

    def step(self) -> Event:
        """Play one event."""
        event = self._events[self.at]
        self.at += 1
        if event.kind == "mark":
            self._marks.append(event.name)
            if event.name == "reboot":
                self._settle_all()
        elif event.kind == "catalogue":
            self._catalogue = event.data
        elif event.kind == "name":
            self._pending_names.append(event)
        elif event.kind in ("names", "sync"):
            if event.site == self._ignored:
                return event
            if event.kind == "sync":
                self._file(event.inode).settle()
            else:
                self._settle_names(len(self._pending_names))
        else:
            self._file(event.inode).pending.append(event)
        return event

    def _file(self, inode: int) -> _File:
        if inode not in self._files:
            self._files[inode] = _File(b"")
        return self._files[inode]

    def _settle_names(self, count: int) -> None:
        self._names = self._names_after(count)
        del self._pending_names[:count]

    def _names_after(self, count: int) -> dict[str, int]:
        names = dict(self._names)
        for event in self._pending_names[:count]:
            if event.inode:
                names[event.name] = event.inode
                names.pop(event.data.decode(), None)  # what it was called before
            else:
                names.pop(event.name, None)
        return names

    def _settle_all(self) -> None:
        for file in self._files.values():
            file.settle()
        self._settle_names(len(self._pending_names))

    def after_cut(self, seed: int) -> Image:
        """What the power leaves."""
        choose = random.Random(seed)
        names = self._names_after(choose.randint(0, len(self._pending_names)))
        files = {name: self._file(inode).cut(choose) for name, inode in names.items()}
        return Image(files, self._catalogue, list(self._marks))

    def after_death(self) -> Image:
        """What the kernel has: the process was killed, no more."""
        files = {}
        for name, inode in self._names_after(len(self._pending_names)).items():
            whole = _File(bytes(self._file(inode).content))
            whole.pending = list(self._file(inode).pending)
            whole.settle()
            files[name] = bytes(whole.content)
        return Image(files, self._catalogue, list(self._marks))
