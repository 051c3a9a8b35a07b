"""Who sees a page of a layer: volumes and snapshots above it, as far as no layer in between has the page itself."""

from __future__ import annotations

from collections.abc import Callable, Collection

from shm_server.stores.base import DamagedMapError, LayerFile
from shm_server.stores.maplog import PAGE_BYTES
from shm_server.volumes.lineage import Lineage

Owned = Callable[[LayerFile, Collection[int]], set[int]]  # which of these pages a layer has


def who_sees(lineage: Lineage, file: LayerFile, pages: Collection[int], owned: Owned) -> dict[int, tuple[str, ...]]:
    """Names, as one would open them, for each of the pages."""
    seen: dict[int, list[str]] = {page: [] for page in pages}
    waiting = [(file, set(pages))]
    while waiting:
        at, visible = waiting.pop()
        for name, size_bytes in lineage.called(at.number):
            for page in visible:
                if page * PAGE_BYTES < size_bytes:
                    seen[page].append(name)
        for above in lineage.standing_on(at.number):
            try:
                left = visible - owned(above, visible)
            except DamagedMapError:
                continue  # who stands on it can't be read
            if left:
                waiting.append((above, left))
    return {page: tuple(sorted(found)) for page, found in seen.items()}
