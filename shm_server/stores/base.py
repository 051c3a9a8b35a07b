"""The Store protocol: one volume's bytes, and the protocol of the place where stores are made."""

from __future__ import annotations

import errno
from collections.abc import Collection, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

Views = Sequence[memoryview]

# What a store may do on the loop's thread in one go where memory is all it touches.
INLINE_BYTES = 1 << 20


class StoreFailedError(OSError):
    """Nothing can be said of what the store holds, before it has been opened again."""


class BadPageError(OSError):
    """A page of a sealed layer is not what its checksum says. ``offset`` is its first byte's, in the layer and in every
    volume that sees it."""

    def __init__(self, path: Path, layer: int, page: int, offset: int) -> None:
        words = f"{path}, layer {layer}: page {page}, at byte {offset}, is not what its checksum says"
        super().__init__(errno.EIO, words)
        self.layer = layer
        self.page = page
        self.offset = offset


class DamagedMapError(OSError):
    """Which pages a layer has is not known; ``path`` is its map's."""

    def __init__(self, path: Path, words: str) -> None:
        super().__init__(errno.EIO, words)
        self.path = path


class Store(Protocol):
    """One volume's bytes. Offsets and lengths are bytes and lie within the size; the caller has checked that.

    ``read_now`` and ``write_now`` never block for long: they move what can be moved at once and return how many bytes
    that was (0: nothing). The others do the whole thing or raise OSError, and may block: they run on a thread, unless
    ``inline_bytes`` says that so much may be done on the loop's thread.
    """

    can_discard: bool
    descriptor: int  # a file that has the bytes at the same offsets, for copy_file_range(2); -1: none
    max_atomic_write_bytes: int  # 0: write_atomic() can't
    inline_bytes: int  # punch, zero and fill of up to so many bytes may run inline; 0: on a thread
    is_sync_instant: bool  # sync() has nothing to wait for: it may run inline

    def read_now(self, views: Views, offset: int, /) -> int: ...

    def write_now(self, views: Views, offset: int, /) -> int: ...

    def read(self, views: Views, offset: int) -> int:
        """Fill the views; returns their length."""
        ...

    def write(self, views: Views, offset: int) -> int:
        """Write all of the views; returns their length."""
        ...

    def write_atomic(self, data: bytes, offset: int) -> None:
        """Write all or nothing, whenever the process dies or the power fails; durable at the end. One at a time.

        StoreFailedError: what is there now is known only when the store has been opened again.
        """
        ...

    def fill(self, pattern: memoryview, offset: int) -> int:
        """Write ordinary memory (WRITE SAME, zeros); as write(), but never counted as a client's write."""
        ...

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        """Write bytes of another store (or of this one, where the ranges share none), if need be by a buffer."""
        ...

    def punch(self, offset: int, length: int) -> None:
        """Give the space back; the range reads zeros afterwards, its unaligned edges too."""
        ...

    def zero(self, offset: int, length: int) -> bool:
        """Make the range read zeros with its space kept; False: can't, write zeros instead."""
        ...

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        """Is there data at ``offset`` (a hole reads zeros), and for how many of the ``length`` bytes that holds."""
        ...

    def sync(self) -> None:
        """Everything written before is durable when this returns."""
        ...

    def scrub(self) -> None:
        """Durably forget every copy of data that is kept beside the store (after a sanitize operation)."""
        ...

    def resize(self, size_bytes: int) -> None:
        """Grow, durably. StoreFailedError: as sync() failing."""
        ...

    @property
    def dirty_bytes(self) -> int:
        """Bytes written since the last sync began, where a budget bounds them; else 0."""
        ...

    def allocated_bytes(self) -> int: ...

    @property
    def must_settle(self) -> bool:
        """settle() is to be called before close()."""
        ...

    def settle(self) -> None:
        """As sync(), for the last time, and so that open() finds quickly what is there. Nothing else is under way."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer, as the catalogue knows it."""

    number: int
    uuid: str  # of the volume that it was made for
    name: str  # of its data file
    is_base: bool
    is_sealed: bool  # durable as a whole, and never written again


Chain = Sequence[LayerFile]


@dataclass
class Findings:
    """What is wrong with a layer. Numbers of pages, but for ``pages``, which counts them."""

    pages: int = 0  # held against their checksums
    bad: list[int] = field(default_factory=list)  # not what their checksum says
    lost: list[int] = field(default_factory=list)  # with data, and without the checksum that they had
    damaged_blocks: list[int] = field(default_factory=list)  # of the file of checksums
    is_header_damaged: bool = False  # of that file

    @property
    def is_clean(self) -> bool:
        return not (self.bad or self.lost or self.damaged_blocks or self.is_header_damaged)


class LayerChecks(Protocol):
    """The checksums of sealed layers. Iterators work in steps, and say how many bytes each has read."""

    @property
    def looks(self) -> Sequence[Look]:
        """Empty while no sealed layer is open; always the same object."""
        ...

    def is_complete(self, file: LayerFile) -> bool:
        """There is nothing that complete() would do."""
        ...

    def complete(self, file: LayerFile) -> Iterator[int]:
        """Make the checksums that are missing."""
        ...

    def scrub(self, file: LayerFile, found: Findings) -> Iterator[int]:
        """Hold every page against its checksum, from the medium where that can be, and note what is wrong."""
        ...

    def allocated_bytes(self, file: LayerFile) -> int:
        """About what scrub() will have read."""
        ...

    def check_map(self, file: LayerFile) -> None:
        """All of it is whole, where it has one: DamagedMapError."""
        ...

    def owned(self, file: LayerFile, pages: Collection[int]) -> set[int]:
        """Which of them a layer that is no base has, and hides in those below it; as far as that is durable."""
        ...

    def renew(self, file: LayerFile) -> None:
        """What is damaged in its checksums is made anew by complete(), from the data as they are."""
        ...

    def remove(self, numbers: Iterable[int]) -> None:
        """Of layers that are no more."""
        ...

    def keep(self, numbers: Container[int]) -> None:
        """Remove those of all other layers, which a crash has left."""
        ...


class Look(Protocol):
    def look(self) -> None:
        """Before reads that came in are served: what was written since by somebody else is verified anew."""
        ...


class Stores(Protocol):
    """A place for stores. ``is_persistent``: they outlive the process.

    Where ``can_layer`` a store may be a chain of layers, the base first, the one that is written last. Which they are
    the caller knows, and keeps; a store without a chain is what create() made.
    """

    is_persistent: bool
    can_layer: bool
    max_atomic_write_bytes: int  # of each store

    @property
    def layer_checks(self) -> LayerChecks | None:
        """None: not where it can't layer."""
        ...

    def create(self, name: str, size_bytes: int) -> None:
        """Make the store, durably. One of that name that is there already is FileExistsError."""
        ...

    def open(self, name: str, size_bytes: int, uuid: str, chain: Chain = ()) -> Store:
        """``uuid`` is the volume's: what was left by another of this name is not this one's."""
        ...

    def open_sealed(self, name: str, chain: Chain) -> Store:
        """What a chain of sealed layers holds, to be read: any number of these, beside whoever stands on them."""
        ...

    def remove(self, name: str) -> None:
        """Remove the store, durably; one that is not there is fine. Layers are not its."""
        ...

    def base_name(self, name: str) -> str:
        """How the file is called that create() makes, which becomes the base of a chain."""
        ...

    def create_layer(self, layer: LayerFile, size_bytes: int) -> None:
        """Make an empty layer, durably."""
        ...

    def top_number(self, store: Store) -> int:
        """Of the layer that is written; 0: it has no layers."""
        ...

    def push(self, store: Store, chain: Chain) -> Store:
        """What an open store is, with a new layer on top: the last of ``chain``, which begins above its top, or below
        that. Nothing but sync() is under way.

        Where it raises, the store is as it was.
        """
        ...

    def seal(self, store: Store) -> None:
        """All below its top is durable, and the caller has noted that."""
        ...

    def merge(self, upper: LayerFile, lower: LayerFile) -> Generator[None, None, None]:
        """Copy what the upper has into the lower, in steps; durable at the end. Nobody may see the lower directly."""
        ...

    def merged(self, store: Store, upper: int) -> None:
        """What the open store has of the layer ``upper``, if anything, it finds in the one below from now on."""
        ...

    def promote(self, chain: Chain, done_bytes: int) -> Generator[tuple[int, bool], None, None]:
        """Copy what the last of ``chain`` has of those below it into it; so many bytes were done before. Each step says
        how many are, and whether durably; all of it at the end."""
        ...

    def give_up(self, chain: Chain) -> Generator[tuple[int, bool], None, None]:
        """Give back what promote() has copied."""
        ...

    def promoted(self, store: Store, number: int) -> None:
        """What the open store has of layers below that one, if it has it, it finds in that one from now on."""
        ...

    def adopt(self, base: LayerFile, name: str) -> None:
        """What a layer has, which stays, is what create() makes under this name, durably."""
        ...

    def is_in_use(self, name: str, uuid: str) -> bool:
        """Of a store with layers: nobody has settled what was written to it since this machine was started."""
        ...

    def made_plain(self, name: str) -> None:
        """It has no chain any more: forget what was kept of that."""
        ...

    def drop_atomic_write(self, name: str) -> None:
        """What was left to be done at the next open() is not to be done, durably. The store is not open."""
        ...

    def remove_layers(self, layers: Iterable[LayerFile]) -> None:
        """Remove them, durably; those that are not there are fine."""
        ...

    def allocated_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        """Space taken by the data of a store that need not be open, and of ``layers``."""
        ...

    def footprint_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        """And by all that is kept beside these data: what comes back when they are removed."""
        ...

    def close(self) -> None: ...


class WithoutLayers:
    """For Stores whose stores are no chains."""

    can_layer = False
    layer_checks: LayerChecks | None = None

    def open_sealed(self, name: str, chain: Chain) -> Store:
        raise no_layers()

    def base_name(self, name: str) -> str:
        return name

    def create_layer(self, layer: LayerFile, size_bytes: int) -> None:
        raise no_layers()

    def top_number(self, store: Store) -> int:
        return 0

    def push(self, store: Store, chain: Chain) -> Store:
        raise no_layers()

    def seal(self, store: Store) -> None:
        raise no_layers()

    def merge(self, upper: LayerFile, lower: LayerFile) -> Generator[None, None, None]:
        raise no_layers()

    def merged(self, store: Store, upper: int) -> None:
        pass

    def promote(self, chain: Chain, done_bytes: int) -> Generator[tuple[int, bool], None, None]:
        raise no_layers()

    def give_up(self, chain: Chain) -> Generator[tuple[int, bool], None, None]:
        raise no_layers()

    def promoted(self, store: Store, number: int) -> None:
        pass

    def adopt(self, base: LayerFile, name: str) -> None:
        raise no_layers()

    def is_in_use(self, name: str, uuid: str) -> bool:
        return False

    def made_plain(self, name: str) -> None:
        pass

    def drop_atomic_write(self, name: str) -> None:
        raise no_layers()  # nobody asks for a volume that can't be rolled back

    def remove_layers(self, layers: Iterable[LayerFile]) -> None:
        pass


def no_layers() -> OSError:
    return OSError(errno.EOPNOTSUPP, "volumes of this store can't have snapshots")


def views_after(views: Views, done_bytes: int) -> list[memoryview]:
    """What is left of ``views`` behind their first ``done_bytes`` bytes."""
    left = []
    for view in views:
        size = len(view)
        if done_bytes >= size:
            done_bytes -= size
        else:
            left.append(view[done_bytes:] if done_bytes else view)
            done_bytes = 0
    return left


def views_until(views: Views, length: int) -> list[memoryview]:
    """The first ``length`` bytes of ``views``."""
    head = []
    for view in views:
        if length <= 0:
            break
        head.append(view[:length] if len(view) > length else view)
        length -= len(view)
    return head


def copy_by_buffer(target: Store, source: Store, source_offset: int, offset: int, length: int) -> None:
    """Store.copy_from for any two stores."""
    buffer = memoryview(bytearray(min(length, INLINE_BYTES)))
    for at in range(0, length, INLINE_BYTES):
        piece = buffer[: length - at]
        source.read((piece,), source_offset + at)
        target.fill(piece, offset + at)
