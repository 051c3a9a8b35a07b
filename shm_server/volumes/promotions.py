"""Clones that are becoming volumes of their own: which, how far that is durable, and the commit that makes it so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shm_server.stores.base import LayerFile
from shm_server.volumes.catalog import Catalog


class Promotion(NamedTuple):
    uuid: str
    layer: int  # the lowest that was made for the volume
    done_bytes: int


class Promotions:
    """Calls may come from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def all(self) -> list[Promotion]:
        """Of volumes that are there."""
        query = "SELECT uuid, layer, done_bytes FROM promotions ORDER BY layer"
        return [Promotion(*row) for row in self._catalog.select(query, ())]

    def begin(self, uuid: str, layer: int) -> None:
        with self._catalog.transaction() as execute:
            execute("INSERT OR IGNORE INTO promotions VALUES (?, ?, 0)", (uuid, layer))

    def keep(self, promotion: Promotion) -> None:
        """How far it is durable."""
        with self._catalog.transaction() as execute:
            execute("UPDATE promotions SET done_bytes = ? WHERE uuid = ?", (promotion.done_bytes, promotion.uuid))

    def end(self, uuid: str) -> bool:
        """It is not to be. False: there was none."""
        with self._catalog.transaction() as execute:
            return bool(execute("DELETE FROM promotions WHERE uuid = ?", (uuid,)).rowcount)

    def finish(self, promotion: Promotion) -> bool:
        """The layer has all that it had of others, durably: it is a base. False: it is no more to be."""
        with self._catalog.transaction() as execute:
            if execute("DELETE FROM promotions WHERE uuid = ?", (promotion.uuid,)).rowcount == 0:
                return False
            execute("UPDATE layers SET parent = NULL WHERE number = ?", (promotion.layer,))
        return True


def own_lowest(chain: Sequence[LayerFile], uuid: str) -> LayerFile | None:
    """Of a chain, the base first: the lowest layer of the volume's own, where it stands on others'."""
    own = next(layer for layer in chain if layer.uuid == uuid) if chain else None
    return None if own is None or own.is_base else own
