"""What a recording leaves on a disk: when the process dies, and when the power fails.

``Disk`` plays a recording event by event. ``after_death`` is all that the kernel had. ``after_cut`` is one of the many
states that a power cut may leave: of what was not synced each sector of 512 bytes has any of the versions that it went
through, a file's size is any that it had, and the names of a directory have changed up to some point in their order.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.shm_server.crash.recorder import Event

SECTOR = 512
_ZEROS = bytes(SECTOR)
NOTHING, EVERYTHING, MOMENT, CHANCE, FILES = range(5)  # ways in which a power cut comes
_WAYS = (NOTHING, EVERYTHING, MOMENT, MOMENT, CHANCE, CHANCE, CHANCE, FILES)

Runs = list[tuple[int, bytes]]


class Content(NamedTuple):
    """A file: its size, and what is not zeros of it."""

    size: int
    runs: Runs

    def write(self, path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(fd, self.size)
            for offset, data in self.runs:
                os.pwrite(fd, data[: max(0, self.size - offset)], offset)
        finally:
            os.close(fd)


class Image(NamedTuple):
    directories: frozenset[str]
    files: Mapping[str, Content]

    def write(self, directory: Path, kept: Mapping[str, Content]) -> None:
        """Into a directory that has what ``kept`` says, unchanged, and perhaps more."""
        for name in self.directories:
            os.makedirs(directory / name, exist_ok=True)
        for name in self.files:
            if kept.get(name) is not self.files[name]:
                self.files[name].write(f"{directory}/{name}")


class _File:
    """What is durable of an inode, and what has happened since."""

    def __init__(self) -> None:
        self.sectors: dict[int, bytes] = {}
        self.size = 0
        self._versions: dict[int, list[tuple[int, bytes]]] = {}  # of a sector, since when, what
        self._sizes: list[tuple[int, int]] = []
        self._end = 0  # of what was written and not synced
        self._durable: Content | None = None
        self._latest: Content | None = None

    def fill(self, content: Content) -> None:
        self.size = content.size
        for offset, data in content.runs:
            for at in range(0, len(data), SECTOR):
                self.sectors[(offset + at) // SECTOR] = data[at : at + SECTOR].ljust(SECTOR, b"\0")

    def _now(self, sector: int) -> bytes:
        versions = self._versions.get(sector)
        return versions[-1][1] if versions else self.sectors.get(sector, _ZEROS)

    @property
    def _size_now(self) -> int:
        return self._sizes[-1][1] if self._sizes else self.size

    def write(self, at: int, offset: int, data: bytes) -> None:
        self._latest = None
        done = 0
        while done < len(data):
            sector, start = divmod(offset + done, SECTOR)
            step = min(len(data) - done, SECTOR - start)
            piece = data[done : done + step]
            if step < SECTOR:
                old = self._now(sector)
                piece = old[:start] + piece + old[start + step :]
            self._versions.setdefault(sector, []).append((at, piece))
            done += step
        self._end = max(self._end, offset + done)
        if offset + done > self._size_now:
            self._sizes.append((at, offset + done))

    def resize(self, at: int, size: int) -> None:
        self._latest = None
        if size < self._size_now:
            for sector in [each for each in {*self.sectors, *self._versions} if (each + 1) * SECTOR > size]:
                kept = max(0, size - sector * SECTOR)
                self._versions.setdefault(sector, []).append((at, self._now(sector)[:kept].ljust(SECTOR, b"\0")))
        self._sizes.append((at, size))

    def settle(self, *, is_data: bool) -> None:
        """``is_data``: fdatasync, which may leave out a growth that none of the data needs."""
        if self._versions or self._sizes:
            for sector, versions in self._versions.items():
                self.sectors[sector] = versions[-1][1]
            size, at = self._size_now, self._sizes[-1][0] if self._sizes else 0
            self.size = min(size, max(self.size, self._end)) if is_data else size
            self._end = 0
            self._versions.clear()
            self._sizes[:] = [(at, size)] if self.size != size else []
            self._durable = None

    def durable(self) -> Content:
        if self._durable is None:
            self._durable = _content(self.size, self.sectors)
        return self._durable

    def latest(self) -> Content:
        if self._latest is None:
            latest = {sector: versions[-1][1] for sector, versions in self._versions.items()}
            self._latest = _content(self._size_now, {**self.sectors, **latest})
        return self._latest

    def cut(self, choose: random.Random, way: int, moment: int) -> Content:
        if way == NOTHING or not (self._versions or self._sizes):
            return self.durable()
        if way == EVERYTHING:
            return self.latest()
        if way == FILES:
            return self.cut(choose, choose.choice((NOTHING, EVERYTHING, MOMENT)), choose.randint(0, moment))
        sectors, size = dict(self.sectors), self.size
        likely = choose.choice((0.1, 0.3, 0.7, 0.9))
        for sector, versions in self._versions.items():
            if way == MOMENT:
                versions = [each for each in versions if each[0] <= moment]
            elif choose.random() > likely:
                continue
            elif len(versions) > 1:
                versions = versions[: choose.randint(1, len(versions))]
            if versions:
                sectors[sector] = versions[-1][1]
        sizes = [each for each in self._sizes if each[0] <= moment] if way == MOMENT else self._sizes
        if sizes:
            if way == MOMENT or choose.random() < 0.6:
                size = sizes[-1][1]
            else:
                size = choose.choice((self.size, *(each[1] for each in sizes)))
        return _content(size, sectors)


def _content(size: int, sectors: Mapping[int, bytes]) -> Content:
    runs: Runs = []
    pieces: list[bytes] = []
    begin = end = -1
    for sector in sorted(sectors):
        data = sectors[sector]
        if data == _ZEROS:
            continue
        if sector != end:
            if pieces:
                runs.append((begin * SECTOR, b"".join(pieces)))
            begin, pieces = sector, []
        pieces.append(data)
        end = sector + 1
    if pieces:
        runs.append((begin * SECTOR, b"".join(pieces)))
    return Content(size, runs)


class Disk:
    """``ignored`` is a site whose syncs do nothing."""

    def __init__(self, begin: Image, inodes: Mapping[str, int], events: list[Event], ignored: str = "") -> None:
        """``inodes`` of the files of ``begin``, all of which is durable."""
        self._names: dict[str, int] = {**dict.fromkeys(begin.directories, -1), **inodes}
        self._changes: dict[str, list[tuple[int, Event]]] = {}  # of names, by directory
        self._files: dict[int, _File] = {}
        for name, inode in inodes.items():
            self._file(inode).fill(begin.files[name])
        self._events = events
        self._ignored = ignored
        self.expected: Any = None
        self.at = 0

    def step(self) -> Event:
        """Play one event."""
        event = self._events[self.at]
        self.at += 1
        if event.kind == "write":
            self._file(event.inode).write(self.at, event.offset, event.data)
        elif event.kind == "size":
            self._file(event.inode).resize(self.at, event.offset)
        elif event.kind == "expect":
            self.expected = event.data
        elif event.kind == "name":
            self._changes.setdefault(event.name.rpartition("/")[0], []).append((self.at, event))
        elif event.site == self._ignored:
            pass
        elif event.kind in ("sync", "datasync"):
            self._file(event.inode).settle(is_data=event.kind == "datasync")
        elif event.kind == "names":
            for _, change in self._changes.pop(event.name, ()):
                _rename(self._names, change)
        return event

    def _file(self, inode: int) -> _File:
        if inode not in self._files:
            self._files[inode] = _File()
        return self._files[inode]

    def after_cut(self, seed: int) -> Image:
        """What the power leaves."""
        choose = random.Random(seed)
        way = choose.choice(_WAYS)
        moment = choose.randint(max(0, self.at - choose.choice((4, 20, 200))), self.at)
        names = dict(self._names)
        for changes in self._changes.values():
            if way == MOMENT:
                count = sum(at <= moment for at, _ in changes)
            else:
                count = {NOTHING: 0, EVERYTHING: len(changes)}.get(way, choose.randint(0, len(changes)))
            for _, change in changes[:count]:
                _rename(names, change)
        return _image(names, {inode: self._file(inode).cut(choose, way, moment) for inode in {*names.values()} - {-1}})

    def after_death(self) -> Image:
        """What the kernel has: the process was killed, no more."""
        names = dict(self._names)
        for changes in self._changes.values():
            for _, change in changes:
                _rename(names, change)
        return _image(names, {inode: self._file(inode).latest() for inode in {*names.values()} - {-1}})


def _rename(names: dict[str, int], change: Event) -> None:
    if change.inode:
        names[change.name] = change.inode
        if change.data:
            names.pop(change.data, None)
    else:
        names.pop(change.name, None)


def _image(names: Mapping[str, int], contents: Mapping[int, Content]) -> Image:
    """What lies in a directory that is not there is not there."""
    directories = frozenset(name for name, inode in names.items() if inode == -1)
    files = {
        name: contents[inode]
        for name, inode in names.items()
        if inode != -1 and ("/" not in name or name.rpartition("/")[0] in directories)
    }
    return Image(directories, files)


def read_image(directory: Path) -> tuple[Image, dict[str, int]]:
    """What lies in a directory, all of it durable, and the inodes."""
    directories, files, inodes = set(), {}, {}
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_dir():
            directories.add(name)
        else:
            data = path.read_bytes()
            sectors = {at // SECTOR: data[at : at + SECTOR].ljust(SECTOR, b"\0") for at in range(0, len(data), SECTOR)}
            files[name] = _content(len(data), sectors)
            inodes[name] = path.stat().st_ino
    return Image(frozenset(directories), files), inodes
