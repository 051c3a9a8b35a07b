"""One layer of a chain: a sparse data file in which a page stands at its own offset, and the map of what is its own.

The base of a chain has no map: what no layer above it owns is the base's. The data files of sealed layers are opened
when they are needed, and at most so many of a server are open at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from shm_server.stores import linux
from shm_server.stores.base import LayerFile
from shm_server.stores.checked import CheckedReader, Checks
from shm_server.stores.clock import Clock
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.maplog import MapLog, Place, Run
from shm_server.stores.redo import sync_directory
from shm_server.stores.verified import Verified

Reader = DescriptorStore | CheckedReader


class Checking(NamedTuple):
    """With what the layers of one store are read."""

    checks: Checks
    verified: Verified


def data_name(number: int) -> str:
    """How the data file of a layer is called that is no base."""
    return f"{number}.data"


class _Data(DescriptorStore):
    """Closed when the last who uses it lets go of it."""

    def __del__(self) -> None:
        self.close()


class Layer:
    """``runs()`` first, then ``data``. What is_writable keeps its files open; the rest is opened as it is needed.

    ``open_reader`` is what ``reader`` gives, where that costs nothing; None: ask for it. Who uses it sets ``was_used``.
    """

    __slots__ = (
        "_data",
        "_directory",
        "_files",
        "_kept",
        "checking",
        "file",
        "is_writable",
        "log",
        "open_reader",
        "was_used",
    )

    def __init__(
        self,
        file: LayerFile,
        directory: Path,
        files: Clock,
        *,
        is_writable: bool,
        checking: Checking,
        data: DescriptorStore | None = None,
    ) -> None:
        """``checking`` is that of all layers of the store. ``data``: its data file, which was opened before there was
        a chain; it stays so, and is ours to close."""
        self.file = file
        self.log: MapLog | None = None
        self.was_used = True
        self.is_writable = is_writable
        self._directory = directory
        self._files = files
        self._kept = self._data = data
        self.open_reader: Reader | None = data
        self.checking = checking

    @property
    def data(self) -> DescriptorStore:
        """Its data file. Any thread; keep the reference while it is used."""
        data = self._data
        if data is None:
            data = self._data = open_data(self.file, self._directory, is_writable=self.is_writable)
            self.was_used = True  # or the file would be the first to go, where all others were used
            if not self.is_writable:
                self._files.add(self)
        self.was_used = True
        return data

    @property
    def reader(self) -> Reader:
        """What its pages are read through; keep it as ``data``."""
        reader = self.open_reader
        if reader is None:
            data, is_writable = self.data, self.is_writable
            reader = data if is_writable else CheckedReader(data, self.file, *self.checking)
            self.open_reader = reader
            if self._data is None or self.is_writable is not is_writable:
                # Sealed meanwhile; or thrown away, and its file would be open for good.
                self.open_reader = None
        self.was_used = True
        return reader

    @property
    def is_empty(self) -> bool:
        """It is written, and nothing in it is its own yet."""
        return self.log is not None and self.log.is_empty

    def throw_away(self) -> None:
        self._data = self.open_reader = None

    def has(self, place: Place) -> bool:
        """It is the layer of that place."""
        return not self.file.is_base and open_log(self.file, self._directory).has(place)

    def runs(self, since: Place | None = None) -> Sequence[Run]:
        """What it owns, oldest first; the base owns what is left. ``since``: only what came behind it."""
        if self.file.is_base:
            return ()
        log = open_log(self.file, self._directory)
        try:
            runs = log.open(is_sealed=self.file.is_sealed, since=since)
        except OSError:
            log.close()
            raise
        if self.is_writable:
            self.log = log
        else:
            log.close()
        return runs

    def seal(self) -> None:
        """It is below another one now, and durable."""
        self.is_writable = False
        self.checking.verified.forget()  # its pages may have been a lower layer's before
        self.log = None  # closed when the last sync() that still looks at it lets go
        self.open_reader = CheckedReader(self.data, self.file, *self.checking)  # before anybody makes its checksums
        if self._kept is None:
            self._files.add(self)

    def allocated_bytes(self) -> int:
        return linux.allocated_bytes(self._directory / self.file.name)

    def leave(self) -> None:
        """Nobody will come to it any more; who is reading it may go on."""
        checks, verified = self.checking
        checks.leave(self.file, verified)
        verified.forget()  # its pages are the lower one's now
        self.checking = Checking(checks, checks.verified())  # of who comes to it all the same, a moment too late
        self.was_used = False  # so that it is the next to go from the files that are open
        self.throw_away()

    def close(self) -> None:
        """Nothing is under way."""
        checks, verified = self.checking
        checks.leave(self.file, verified)
        if self._data is not None:
            self._data.close()
        if self._kept is not None:
            self._kept.close()
        self._data = self._kept = self.open_reader = None
        if self.log is not None:
            self.log.close()
            self.log = None


def close_all(layers: Sequence[Layer]) -> None:
    """The layers of one chain; nothing is under way."""
    layers[0]._files.discard(set(layers))
    for layer in layers:
        layer.close()


def open_log(file: LayerFile, directory: Path) -> MapLog:
    """The map of a layer; its create() or open() comes next."""
    return MapLog(_map_path(file, directory), file.number, file.uuid)


def _map_path(file: LayerFile, directory: Path) -> Path:
    return directory / f"{file.number}.map"


def create_files(file: LayerFile, directory: Path, size_bytes: int) -> None:
    """An empty layer, durably. What a crash left of one of this number is written over."""
    fd = os.open(directory / file.name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, size_bytes)
        os.fsync(fd)
    finally:
        os.close(fd)
    log = open_log(file, directory)
    try:
        log.create()
    finally:
        log.close()
    sync_directory(directory)


def remove_files(files: Iterable[LayerFile], directory: Path) -> None:
    """Durably; files that are not there are fine."""
    for file in files:
        (directory / file.name).unlink(missing_ok=True)
        _map_path(file, directory).unlink(missing_ok=True)
    sync_directory(directory)


def open_data(file: LayerFile, directory: Path, *, is_writable: bool) -> DescriptorStore:
    """The data file of a layer."""
    path = directory / file.name
    flags = os.O_RDWR if is_writable else os.O_RDONLY
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(errno.EIO, f"layer {file.number} is in the catalogue, but its file {path} is missing") from None
    try:
        return _Data(fd, is_memory=linux.filesystem_magic(fd) == linux.TMPFS_MAGIC)
    except OSError:
        os.close(fd)
        raise
