"""Where the bytes of volumes live, and the door to it: ``open_stores``.

A ``Store`` is one volume's bytes: reads and writes by system calls straight between the store and the memory handed
in, which is never touched from Python. ``Stores`` is the place that makes, opens and removes them. Nothing here knows
a ring, a client or a catalogue; errors are OSError with the errno of the system call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shm_server.stores.base import Store, Stores
from shm_server.stores.delay import DelayRule, DelayStores
from shm_server.stores.file import DEFAULT_MAP_CACHE_BYTES, FileStores
from shm_server.stores.memory import MemoryStores
from shm_server.stores.null import NullStores

__all__ = ["DEFAULT_MAP_CACHE_BYTES", "DelayRule", "Store", "Stores", "open_stores"]

KINDS = ("file", "memory", "null")


def open_stores(
    kind: str,
    directory: Path,
    delays: Sequence[DelayRule] = (),
    map_cache_bytes: int = DEFAULT_MAP_CACHE_BYTES,
) -> Stores:
    """The stores of a pool: ``kind`` is one of KINDS, ``directory`` is the pool's, ``delays`` are for tests."""
    stores: Stores
    if kind == "file":
        stores = FileStores(directory / "volumes", map_cache_bytes)
    elif kind == "memory":
        stores = MemoryStores()
    elif kind == "null":
        stores = NullStores(directory / "volumes")
    else:
        raise ValueError(f"no store is called {kind!r}: {', '.join(KINDS)}")
    return DelayStores(stores, delays) if delays else stores
