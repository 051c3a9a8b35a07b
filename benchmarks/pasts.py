"""Volumes with a past, made in the pool of a server that is not running: many snapshots, and what was written between.

Two maps. OLD: all data are older than the snapshots, but for the last page, which is written between each two of them
so that there are as many layers. SCATTERED: the pages are written in an order of chance, as many between one pair of
snapshots and the next, so each page's neighbours were last written between other pairs. What is made are a pool's own
files and rows, by the server's own classes, in the order in which it makes them itself: only nobody asked it to, over
a socket, ten thousand times.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from shm_server.stores.base import LayerFile, Store
from shm_server.stores.file import FileStores
from shm_server.volumes.catalog import Catalog
from shm_server.volumes.lineage import Lineage, Snapshot

OLD, SCATTERED = "old", "scattered"
PAGE_BYTES = 4096


def add_past(pool: Path, name: str, kind: str, snapshots: int) -> None:
    """Give a volume of the pool, which has none yet, so many snapshots."""
    catalog = Catalog(pool / "catalogue.sqlite")
    try:
        record = next(record for record in catalog.load() if record.name == name)
        stores = FileStores(pool / "volumes")
        lineage = Lineage(catalog)
        store = stores.open(name, record.size_bytes, record.uuid)
        chain: list[LayerFile] = []
        try:
            for number, pages in enumerate(pages_between(kind, record.size_bytes // PAGE_BYTES, snapshots)):
                _write(store, pages, number)
                layer = lineage.begin_layer(record.uuid)
                stores.create_layer(layer, record.size_bytes)
                lineage.push(record.uuid, layer, stores.base_name(name))
                chain = [*chain, layer] if chain else lineage.chain(record.uuid)
                store = stores.push(store, chain)
                store.sync()
                snapshot = Snapshot(f"s{number}", chain[-2].number, record.size_bytes, float(number), uuid.uuid4().hex)
                lineage.seal(record.uuid, snapshot)
                stores.seal(store)
        finally:
            store.close()
    finally:
        catalog.close()


def pages_between(kind: str, pages: int, snapshots: int, seed: int = 1) -> list[Sequence[int]]:
    """What is written before each snapshot."""
    if kind == OLD:
        return [(pages - 1,)] * snapshots
    order = list(range(pages))
    random.Random(seed).shuffle(order)
    ends = [pages * number // snapshots for number in range(snapshots + 1)]
    return [order[first:end] for first, end in pairwise(ends)]


def _write(store: Store, pages: Sequence[int], number: int) -> None:
    for page in pages:
        data = memoryview((number << 32 | page).to_bytes(8, "little") * (PAGE_BYTES // 8))
        store.write((data,), page * PAGE_BYTES)
