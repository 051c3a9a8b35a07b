"""A sparse file per volume: <pool>/volumes/NAME.raw. The space a volume takes is what was written and not discarded.

Beside it, from its first WRITE ATOMIC on, NAME.redo (redo.py). A volume that has, or had, snapshots is a chain of
layers: NAME.raw is the base as it is, each layer above it is N.data and N.map (docs/ON-DISK.md).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterable
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from shm_server.stores import linux
from shm_server.stores.base import Chain, LayerFile, Store
from shm_server.stores.checked import Checks
from shm_server.stores.clock import Clock
from shm_server.stores.descriptor import DescriptorStore
from shm_server.stores.layer import Checking, Layer, create_files, remove_files
from shm_server.stores.layered import LayeredStore
from shm_server.stores.linux import allocated_bytes
from shm_server.stores.maplog import Place
from shm_server.stores.merging import merge
from shm_server.stores.owners import CHUNK_BYTES, Owners
from shm_server.stores.promoting import give_up, promote
from shm_server.stores.redo import MAX_ATOMIC_WRITE_BYTES, RedoFile, make_directory, sync_directory
from shm_server.stores.sealed import SealedStore
from shm_server.stores.summing import LayerChecks
from shm_server.stores.table import Table

T = TypeVar("T")

DEFAULT_MAP_CACHE_BYTES = 64 << 20
MAX_OPEN_LAYERS = 16384  # data files of sealed layers
OTHER_DESCRIPTORS = 4096  # that are allowed, or half of them if that is less: everything else that is open


class FileStores:
    is_persistent = True
    can_layer = True
    max_atomic_write_bytes = MAX_ATOMIC_WRITE_BYTES

    def __init__(self, directory: Path, map_cache_bytes: int = DEFAULT_MAP_CACHE_BYTES) -> None:
        self._directory = directory
        self._map_cache = Clock(map_cache_bytes // CHUNK_BYTES)
        allowed = linux.allow_descriptors()
        self._open_layers = Clock(min(MAX_OPEN_LAYERS, allowed - min(OTHER_DESCRIPTORS, allowed // 2)))
        self._ends: dict[int, Place] = {}  # of maps (merging.py)
        self._sealed_bytes: dict[int, tuple[int, int]] = {}  # what data and map of sealed layers take, by number
        self._checks = Checks(directory)
        self.layer_checks = LayerChecks(self._checks)
        make_directory(directory)

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.raw"

    def _redo_path(self, name: str) -> Path:
        return self._directory / f"{name}.redo"

    def _owners_path(self, name: str) -> Path:
        return self._directory / f"{name}.owners"

    def _owners(self, name: str = "", uuid: str = "") -> Owners:
        """Of the pages of a chain; kept over its closing, if it has a name."""
        path = self._owners_path(name) if name else None
        return Owners(Table(self._directory, path, uuid), self._map_cache)

    def create(self, name: str, size_bytes: int) -> None:
        path = self.path(name)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise FileExistsError(
                errno.EEXIST, f"{path} exists, but no volume {name} is in the catalogue: move it away"
            ) from None
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(fd)
        sync_directory(self._directory)

    def open(self, name: str, size_bytes: int, uuid: str, chain: Chain = ()) -> Store:
        if len(chain) > 1:
            return self._open_chain(name, size_bytes, uuid, chain)
        path = self.path(name)
        try:
            self._owners_path(name).unlink(missing_ok=True)  # of a chain that it once was
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OSError(errno.EIO, f"volume {name} is in the catalogue, but its file {path} is missing") from None
        try:
            actual = os.fstat(fd).st_size
            if actual < size_bytes:
                raise OSError(errno.EIO, f"{path} has {actual} bytes, volume {name} has {size_bytes}")
            # A loss that the kernel has not reported yet is reported here, not to somebody's FLUSH (CONTRACTS 1).
            os.fdatasync(fd)
            is_memory = linux.filesystem_magic(fd) == linux.TMPFS_MAGIC
            redo = RedoFile(self._redo_path(name), uuid)
            try:
                store = DescriptorStore(fd, is_memory=is_memory, redo=redo)
                redo.replay(store.write_bytes, store.sync_data, actual)
            except OSError:
                redo.close()
                raise
            return store
        except OSError:
            os.close(fd)
            raise

    def _open_chain(self, name: str, size_bytes: int, uuid: str, chain: Chain) -> Store:
        checking = self._checking()
        layers = [self._layer(file, checking, is_writable=not file.is_sealed or file is chain[-1]) for file in chain]
        redo = RedoFile(self._redo_path(name), uuid)
        store = LayeredStore(layers, self._owners(name, uuid), redo)
        try:
            store.load()
            top = layers[-1]
            actual = top.data.size_bytes()
            if actual < size_bytes and top.is_empty:
                top.data.resize(size_bytes)  # of a snapshot that failed half-way, before the volume grew
            elif actual < size_bytes:
                raise OSError(errno.EIO, f"the top layer of {name} has {actual} bytes, the volume has {size_bytes}")
            store.sync()  # as in open(): what was lost is reported here; and what a crash left in a map is durable
            redo.replay(store.write_bytes, store.sync, size_bytes)
        except OSError:
            store.close()
            raise
        return store

    def open_sealed(self, name: str, chain: Chain) -> Store:
        return self._open_sealed(chain)

    def _open_sealed(self, chain: Chain) -> SealedStore:
        checking = self._checking()
        layers = [self._layer(file, checking, is_writable=False) for file in chain]
        redo = RedoFile(self._redo_path("none"), "")  # which nothing ever comes to
        store = LayeredStore(layers, self._owners(), redo)
        try:
            store.load()
        except OSError:
            store.close()
            raise
        return SealedStore(store)

    def base_name(self, name: str) -> str:
        return self.path(name).name

    def create_layer(self, layer: LayerFile, size_bytes: int) -> None:
        create_files(layer, self._directory, size_bytes)

    def top_number(self, store: Store) -> int:
        return store.stack.top.file.number if isinstance(store, LayeredStore) else 0

    def push(self, store: Store, chain: Chain) -> Store:
        if isinstance(store, LayeredStore):
            # More than the last, where a push() that failed has left an empty one that only the catalogue knows.
            top = self.top_number(store)
            for file in reversed(list(takewhile(lambda file: file.number != top, reversed(chain)))):
                store.push(self._layer(file, store.stack.base.checking, is_writable=True))
            return store
        assert isinstance(store, DescriptorStore)
        assert store.redo is not None
        checking = self._checking()
        layers = [self._layer(chain[0], checking, is_writable=True, data=store)]
        layers += (self._layer(file, checking, is_writable=True) for file in chain[1:])
        name = store.redo.path.stem  # the volume's
        layered = LayeredStore(layers, self._owners(name, chain[0].uuid), store.redo)
        layered.load()
        return layered

    def _checking(self) -> Checking:
        """For the layers of a store that is opened."""
        return Checking(self._checks, self._checks.verified())

    def _layer(
        self, file: LayerFile, checking: Checking, *, is_writable: bool, data: DescriptorStore | None = None
    ) -> Layer:
        return Layer(file, self._directory, self._open_layers, is_writable=is_writable, checking=checking, data=data)

    def seal(self, store: Store) -> None:
        assert isinstance(store, LayeredStore)
        store.seal()

    def merge(self, upper: LayerFile, lower: LayerFile) -> Generator[None, None, None]:
        return self._changing(lower, merge(upper, lower, self._checks, self._ends))

    def merged(self, store: Store, upper: int) -> None:
        if isinstance(store, LayeredStore | SealedStore):
            store.replace(upper)

    def promote(self, chain: Chain, done_bytes: int) -> Generator[tuple[int, bool], None, None]:
        steps = promote(chain[-1], lambda: self._open_sealed(chain), self._checks, done_bytes)
        return self._changing(chain[-1], steps)

    def give_up(self, chain: Chain) -> Generator[tuple[int, bool], None, None]:
        return self._changing(chain[-1], give_up(chain[-1], lambda: self._open_sealed(chain), self._checks))

    def _changing(self, layer: LayerFile, steps: Iterable[T]) -> Generator[T, None, None]:
        """These steps change what a sealed layer takes."""
        try:
            yield from steps
        finally:
            self._sealed_bytes.pop(layer.number, None)

    def promoted(self, store: Store, number: int) -> None:
        if isinstance(store, LayeredStore | SealedStore):
            store.rebase(number)

    def adopt(self, base: LayerFile, name: str) -> None:
        if base.name != self.base_name(name):
            self.path(name).unlink(missing_ok=True)  # of another time, which did not come to its end
            os.link(self._directory / base.name, self.path(name))
            sync_directory(self._directory)

    def is_in_use(self, name: str, uuid: str) -> bool:
        return Table(self._directory, self._owners_path(name), uuid).is_in_use()

    def made_plain(self, name: str) -> None:
        self._owners_path(name).unlink(missing_ok=True)

    def drop_atomic_write(self, name: str) -> None:
        self._redo_path(name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def remove_layers(self, layers: Iterable[LayerFile]) -> None:
        layers = list(layers)
        remove_files(layers, self._directory)
        self.layer_checks.remove(layer.number for layer in layers)

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)  # first: a store that stays keeps its record
        self._redo_path(name).unlink(missing_ok=True)
        self._owners_path(name).unlink(missing_ok=True)
        sync_directory(self._directory)

    def allocated_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        return allocated_bytes(self.path(name)) + sum(self._layer_bytes(layer)[0] for layer in layers)

    def _layer_bytes(self, layer: LayerFile) -> tuple[int, int]:
        """Of its data and of its map. Asked once, where that does not change."""
        known = self._sealed_bytes.get(layer.number)
        if known is None:
            stem = f"{self._directory}/{layer.number}"  # no Path: there may be ten thousand
            known = allocated_bytes(f"{self._directory}/{layer.name}"), allocated_bytes(f"{stem}.map")
            if layer.is_sealed:
                self._sealed_bytes[layer.number] = known
        return known

    def footprint_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        total = sum(map(allocated_bytes, (self.path(name), self._redo_path(name), self._owners_path(name))))
        for layer in layers:
            total += sum(self._layer_bytes(layer)) + self._checks.sums_bytes(layer.number)
        return total

    def close(self) -> None:
        self._checks.close()
