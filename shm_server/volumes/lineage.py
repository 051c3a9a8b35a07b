"""What stands on what: layers, the chains of volumes, their snapshots and clones, in the catalogue; each change is one
commit.

A layer has a parent; a volume has a top, and its chain is the way from there to the base. A snapshot is a name for a
layer that is sealed: durable as a whole and never written again. A clone is a volume whose top has a snapshot's layer
for its parent. A volume that never had anything of this has no row here: its store is a plain one.

Files are made before a commit that names them (their layer is "creating" until then) and removed after the commit
that forgets them (it is "garbage" until then), so a crash leaves no file that nobody knows.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, NamedTuple

from shm_server.abi import names
from shm_server.stores.base import LayerFile
from shm_server.stores.layer import data_name
from shm_server.volumes import labels
from shm_server.volumes.catalog import Catalog, Record, enter, forget_snapshots, refuse_clones

_SNAPSHOT = "name, layer, size_bytes, created_s, identity, labels, metadata"
_COLUMNS = "layers.number, layers.uuid, layers.file, layers.parent IS NULL, layers.state = 'sealed'"
_CHAIN_FROM = """
WITH RECURSIVE chain(number, depth) AS (
    SELECT layer, 0 FROM {}
    UNION ALL SELECT layers.parent, depth + 1 FROM chain JOIN layers USING (number) WHERE layers.parent IS NOT NULL
)
"""
# From the top down to, but without, a layer.
_ABOVE = """
WITH RECURSIVE chain(number, depth) AS (
    SELECT layer, 0 FROM tops WHERE uuid = ?1
    UNION ALL SELECT layers.parent, depth + 1 FROM chain JOIN layers USING (number) WHERE layers.parent != ?2
)
"""
_CHAIN = _CHAIN_FROM.format("tops WHERE uuid = ?")
_SNAPSHOT_CHAIN = _CHAIN_FROM.format("snapshots WHERE uuid = ? AND name = ?")
# From the layer below a volume's top down to the first that is sealed.
_OPEN_BELOW = """
WITH RECURSIVE below(number) AS (
    SELECT layers.parent FROM tops JOIN layers ON layers.number = tops.layer WHERE tops.uuid = ?
    UNION ALL SELECT layers.parent FROM below JOIN layers USING (number)
    WHERE layers.state = 'open' AND layers.parent IS NOT NULL
)
"""
# What no snapshot names, and nobody but one layer stands on. Both must be sealed.
_MERGEABLE = """
SELECT upper.number, lower.number FROM layers AS lower JOIN layers AS upper ON upper.parent = lower.number
WHERE lower.state = 'sealed' AND upper.state = 'sealed'
AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = lower.number)
AND NOT EXISTS (SELECT 1 FROM layers AS other WHERE other.parent = lower.number AND other.number != upper.number)
AND NOT EXISTS (SELECT 1 FROM promotions WHERE layer = lower.number)
"""
_COLLAPSIBLE = """
FROM tops JOIN layers AS top ON top.number = tops.layer JOIN layers AS base ON base.number = top.parent
JOIN volumes ON volumes.uuid = tops.uuid
WHERE base.parent IS NULL AND base.uuid = top.uuid AND volumes.state = 'ready' AND NOT volumes.is_template
AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = base.number)
AND NOT EXISTS (SELECT 1 FROM layers AS other WHERE other.parent = base.number AND other.number != top.number)
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    layer: int
    size_bytes: int
    created_s: float  # since 1970
    identity: str  # 32 hex digits, its own for ever: what it is called as a disk, whichever layer it is the name of
    labels: str = "{}"  # as labels.encode() has them
    metadata: bytes = b""


class Merge(NamedTuple):
    upper: LayerFile
    lower: LayerFile


class Lineage:
    """Calls may come from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # Chains ---------------------------------------------------------------------------------------------------------

    def chain(self, uuid: str) -> list[LayerFile]:
        """The layers of a volume, its base first; none where it is a plain store."""
        rows = self._catalog.select(
            f"{_CHAIN} SELECT {_COLUMNS} FROM chain JOIN layers USING (number) ORDER BY depth DESC", (uuid,)
        )
        return [_layer(*row) for row in rows]

    def above(self, uuid: str, number: int) -> list[LayerFile]:
        """The layers of a volume above that one, the top last; it does not matter how many there are below."""
        query = f"{_ABOVE} SELECT {_COLUMNS} FROM chain JOIN layers USING (number) ORDER BY depth DESC"
        return [_layer(*row) for row in self._catalog.select(query, (uuid, number))]

    def snapshot_chain(self, uuid: str, name: str) -> list[LayerFile]:
        """The layers that a snapshot is, all of them sealed, the base first. ENOENT."""
        rows = self._catalog.select(
            f"{_SNAPSHOT_CHAIN} SELECT {_COLUMNS} FROM chain JOIN layers USING (number) ORDER BY depth DESC",
            (uuid, name),
        )
        if not rows:
            raise _no_snapshot(name)
        return [_layer(*row) for row in rows]

    def layer_of_snapshot(self, uuid: str, name: str) -> LayerFile:
        """The one that it is the name of. ENOENT."""
        return self._layers(self.snapshot(uuid, name).layer)[0]

    def layers_of(self, uuid: str) -> list[LayerFile]:
        """Every layer that was made for a volume, but its base, which goes by the volume's name."""
        query = (
            f"SELECT {_COLUMNS} FROM layers WHERE uuid = ? "
            "AND (parent IS NOT NULL OR file = number || '.data' OR state IN ('creating', 'garbage'))"
        )
        return [_layer(*row) for row in self._catalog.select(query, (uuid,))]

    def begin_layer(self, uuid: str) -> LayerFile:
        """A number for a layer whose files are now to be made."""
        with self._catalog.transaction() as execute:
            row = execute("INSERT INTO layers (uuid, file, state) VALUES (?, '', 'creating') RETURNING number", (uuid,))
            (number,) = row.fetchone()
            name = data_name(number)
            execute("UPDATE layers SET file = ? WHERE number = ?", (name, number))
        return LayerFile(number, uuid, name, is_base=False, is_sealed=False)

    def push(self, uuid: str, layer: LayerFile, base_name: str) -> None:
        """``layer`` is the volume's top now. ``base_name`` is the file of its store, where that is a plain one."""
        with self._catalog.transaction() as execute:
            row = execute("SELECT layer FROM tops WHERE uuid = ?", (uuid,)).fetchone()
            if row is None:
                query = "INSERT INTO layers (uuid, file, state) VALUES (?, ?, 'open') RETURNING number"
                row = execute(query, (uuid, base_name)).fetchone()
            _stand(execute, layer, row[0])

    # Snapshots ------------------------------------------------------------------------------------------------------

    def snapshots(self, uuid: str, after: str = "", limit: int = -1) -> list[Snapshot]:
        """By name."""
        query = f"SELECT {_SNAPSHOT} FROM snapshots WHERE uuid = ? AND name > ? ORDER BY name LIMIT ?"
        return [Snapshot(*row) for row in self._catalog.select(query, (uuid, after, limit))]

    def snapshot(self, uuid: str, name: str) -> Snapshot:
        """ENOENT."""
        query = f"SELECT {_SNAPSHOT} FROM snapshots WHERE uuid = ? AND name = ?"
        rows = self._catalog.select(query, (uuid, name))
        if not rows:
            raise _no_snapshot(name)
        return Snapshot(*rows[0])

    def later_snapshots(self, uuid: str, name: str) -> list[Snapshot]:
        """Those that a rollback to this one drops. ENOENT; ENOTEMPTY: clones stand on them."""
        with self._catalog.transaction() as execute:
            layers = _later(execute, uuid, name)
            return [snapshot for snapshot in _snapshots(execute, uuid) if snapshot.layer in layers]

    def make_template(self, uuid: str) -> None:
        """All below the top is durable, and what the volume is for ever; its snapshots go. ENOTEMPTY: clones stand on
        them."""
        with self._catalog.transaction() as execute:
            _check_childless(execute, uuid)
            _seal(execute, uuid)
            forget_snapshots(execute, "uuid = ?", (uuid,))
            execute("UPDATE volumes SET is_template = 1 WHERE uuid = ?", (uuid,))

    def check_childless(self, uuid: str) -> None:
        """ENOTEMPTY: clones stand on its snapshots."""
        with self._catalog.transaction() as execute:
            _check_childless(execute, uuid)

    def seal(self, uuid: str, snapshot: Snapshot | None = None) -> None:
        """All below the top is durable; ``snapshot`` is a name for it. EEXIST."""
        with self._catalog.transaction() as execute:
            _seal(execute, uuid)
            if snapshot is not None:
                _check_new(execute, uuid, snapshot.name)
                places = ", ".join("?" * (1 + len(fields(snapshot))))
                execute(f"INSERT INTO snapshots (uuid, {_SNAPSHOT}) VALUES ({places})", (uuid, *astuple(snapshot)))

    def label(self, uuid: str, name: str, changes: Mapping[str, str | None], metadata: bytes | None = None) -> Snapshot:
        """Other labels (None: no more) and, unless None, metadata. ENOENT; EINVAL, E2BIG."""
        with self._catalog.transaction() as execute:
            query = f"SELECT {_SNAPSHOT} FROM snapshots WHERE uuid = ? AND name = ?"
            if (row := execute(query, (uuid, name)).fetchone()) is None:
                raise _no_snapshot(name)
            found = Snapshot(*row)
            wanted = labels.changed(labels.decode(found.labels), changes)
            metadata = found.metadata if metadata is None else metadata
            labels.check(wanted, metadata)
            found = replace(found, labels=labels.encode(wanted), metadata=metadata)
            query = "UPDATE snapshots SET labels = ?, metadata = ? WHERE uuid = ? AND name = ?"
            execute(query, (found.labels, metadata, uuid, name))
        return found

    def check_new(self, uuid: str, name: str) -> None:
        """EEXIST."""
        with self._catalog.transaction() as execute:
            _check_new(execute, uuid, name)

    def remove_snapshot(self, uuid: str, name: str) -> Snapshot:
        """ENOENT; ENOTEMPTY: clones stand on it. Its layer stays, until it is merged or garbage."""
        found = self.snapshot(uuid, name)
        with self._catalog.transaction() as execute:
            layer = _layer_of_snapshot(execute, uuid, name)
            refuse_clones(execute, "ours.number = ?", (layer,), f"snapshot {name}")
            forget_snapshots(execute, "uuid = ? AND name = ?", (uuid, name))
        return found

    def rollback(self, record: Record, name: str, layer: LayerFile) -> Record:
        """The volume is what the snapshot was, with ``layer`` on top; later snapshots go. ENOENT; ENOTEMPTY: clones
        stand on later ones. Returns the volume as it is now."""
        uuid = record.uuid
        with self._catalog.transaction() as execute:
            stays = _layer_of_snapshot(execute, uuid, name)
            (size_bytes,) = execute(
                "SELECT size_bytes FROM snapshots WHERE uuid = ? AND name = ?", (uuid, name)
            ).fetchone()
            for number in _later(execute, uuid, name):
                forget_snapshots(execute, "layer = ?", (number,))
                execute("UPDATE layers SET state = 'garbage', parent = NULL WHERE number = ?", (number,))
            _stand(execute, layer, stays)
            generation = record.generation + 1
            execute("UPDATE volumes SET size_bytes = ?, generation = ? WHERE uuid = ?", (size_bytes, generation, uuid))
        return replace(record, size_bytes=size_bytes, generation=generation)

    def clone(self, source_uuid: str, snapshot: str, record: Record, layer: LayerFile) -> None:
        """A new volume, at once whole, whose top ``layer`` stands on the snapshot; without a name on what the template
        is. ENOENT; EINVAL: it is no template."""
        with self._catalog.transaction() as execute:
            if snapshot:
                parent = _layer_of_snapshot(execute, source_uuid, snapshot)
            else:
                parent = _layer_of_template(execute, source_uuid)
            enter(execute, record, "ready")
            _stand(execute, layer, parent)

    # What can go ----------------------------------------------------------------------------------------------------

    def numbers(self) -> set[int]:
        """Of all layers."""
        return {row[0] for row in self._catalog.select("SELECT number FROM layers", ())}

    def numbers_of(self, uuid: str) -> list[int]:
        """Of the layers that were made for a volume, its base too."""
        return [row[0] for row in self._catalog.select("SELECT number FROM layers WHERE uuid = ?", (uuid,))]

    def sealed(self, numbers: Collection[int] | None = None) -> list[LayerFile]:
        """Every layer that is, or those of the numbers that are; the oldest first."""
        if numbers is None:
            return self._layers_where("state = 'sealed'")
        found = (self._layers_where("state = 'sealed' AND number = ?", number) for number in sorted(numbers))
        return list(itertools.chain.from_iterable(found))

    def standing_on(self, number: int) -> list[LayerFile]:
        """The layers right above one."""
        return self._layers_where("parent = ?", number)

    def _layers_where(self, condition: str, *values: int) -> list[LayerFile]:
        query = f"SELECT {_COLUMNS} FROM layers WHERE {condition} ORDER BY number"
        return [_layer(*row) for row in self._catalog.select(query, values)]

    def called(self, number: int) -> list[tuple[str, int]]:
        """The volume and the snapshots that a layer is the uppermost of: names as one opens them, and sizes."""
        query = (
            "SELECT name, size_bytes FROM tops JOIN volumes USING (uuid) WHERE layer = ? UNION ALL "
            f"SELECT volumes.name || '{names.SEPARATOR}' || snapshots.name, snapshots.size_bytes "
            "FROM snapshots JOIN volumes USING (uuid) WHERE layer = ?"
        )
        return [(name, size_bytes) for name, size_bytes in self._catalog.select(query, (number, number))]

    def garbage(self) -> list[LayerFile]:
        """Layers whose files can be removed."""
        query = f"SELECT {_COLUMNS} FROM layers WHERE state = 'garbage'"
        return [_layer(*row) for row in self._catalog.select(query, ())]

    def recover(self) -> None:
        """At the start, when nothing is being made: what a crash left half made is garbage."""
        with self._catalog.transaction() as execute:
            execute("UPDATE layers SET state = 'garbage' WHERE state = 'creating'")

    def stands_alone(self, uuid: str) -> bool:
        """The layer below a volume's top has a name, or somebody else on it: it can't be merged with anything."""
        query = (
            "SELECT 1 FROM tops JOIN layers ON layers.number = tops.layer WHERE tops.uuid = ? AND "
            "(EXISTS (SELECT 1 FROM snapshots WHERE layer = layers.parent) OR EXISTS "
            "(SELECT 1 FROM layers AS other WHERE other.parent = layers.parent AND other.number != layers.number))"
        )
        return bool(self._catalog.select(query, (uuid,)))

    def discard(self, layer: LayerFile) -> None:
        """It is not to be, after all."""
        with self._catalog.transaction() as execute:
            execute("UPDATE layers SET state = 'garbage' WHERE number = ?", (layer.number,))

    def forget(self, layers: Sequence[LayerFile]) -> None:
        """Their files are gone."""
        with self._catalog.transaction() as execute:
            for layer in layers:
                execute("DELETE FROM layers WHERE number = ? AND state IN ('creating', 'garbage')", (layer.number,))

    def all_mergeable(self) -> list[int]:
        """Layers that the one above can be merged into: of all that there are."""
        return [lower for _, lower in self._catalog.select(_MERGEABLE, ())]

    def mergeable(self, lower: int) -> Merge | None:
        """What can be merged into this layer."""
        rows = self._catalog.select(f"{_MERGEABLE} AND lower.number = ?", (lower,))
        return Merge(*self._layers(*rows[0])) if rows else None

    def is_nameless(self, number: int) -> bool:
        """It is there, and no snapshot's: something may become mergeable into it."""
        query = (
            "SELECT 1 FROM layers WHERE number = ? AND state IN ('open', 'sealed') "
            "AND NOT EXISTS (SELECT 1 FROM snapshots WHERE layer = number)"
        )
        return bool(self._catalog.select(query, (number,)))

    def _layers(self, *numbers: int) -> list[LayerFile]:
        query = f"SELECT {_COLUMNS} FROM layers WHERE number = ?"
        return [_layer(*self._catalog.select(query, (number,))[0]) for number in numbers]

    def collapsible(self) -> list[tuple[str, Merge]]:
        """Volumes, by name, whose past nobody asks for any more: a top on a base of its own, and that is all."""
        rows = self._catalog.select(f"SELECT volumes.name, top.number, base.number {_COLLAPSIBLE}", ())
        return [(name, Merge(*self._layers(top, base))) for name, top, base in rows]

    def collapsed(self, merge: Merge) -> bool:
        """The base has all that the top had, durably, and is a plain store again. False: it is no more to be."""
        top, base = merge.upper.number, merge.lower.number
        with self._catalog.transaction() as execute:
            query = f"SELECT 1 {_COLLAPSIBLE} AND top.number = ? AND base.number = ?"
            if execute(query, (top, base)).fetchone() is None:
                return False
            execute("DELETE FROM tops WHERE layer = ?", (top,))
            # One that was no base from the beginning has files of its own, besides the plain store's.
            execute("UPDATE layers SET state = 'garbage' WHERE number = ? AND file = number || '.data'", (base,))
            execute("DELETE FROM layers WHERE number = ? AND state != 'garbage'", (base,))
            execute("UPDATE layers SET state = 'garbage', parent = NULL WHERE number = ?", (top,))
        return True

    def merged(self, merge: Merge) -> bool:
        """The lower has all that the upper had, durably: the upper is garbage. False: they are not two any more."""
        upper, lower = merge.upper.number, merge.lower.number
        with self._catalog.transaction() as execute:
            if execute(f"{_MERGEABLE} AND upper.number = ? AND lower.number = ?", (upper, lower)).fetchone() is None:
                return False
            execute("UPDATE layers SET parent = ? WHERE parent = ?", (lower, upper))
            execute("UPDATE snapshots SET layer = ? WHERE layer = ?", (lower, upper))
            execute("UPDATE layers SET state = 'garbage', parent = NULL WHERE number = ?", (upper,))
        return True


def _layer(number: int, uuid: str, name: str, is_base: int, is_sealed: int) -> LayerFile:
    return LayerFile(number, uuid, name, bool(is_base), bool(is_sealed))


def _stand(execute: Callable[..., Any], layer: LayerFile, parent: int) -> None:
    """``layer`` is its volume's top, on ``parent``."""
    execute("UPDATE layers SET state = 'open', parent = ? WHERE number = ?", (parent, layer.number))
    execute("INSERT OR REPLACE INTO tops VALUES (?, ?)", (layer.uuid, layer.number))


def _seal(execute: Callable[..., Any], uuid: str) -> None:
    execute(
        f"{_OPEN_BELOW} UPDATE layers SET state = 'sealed' WHERE state = 'open' "
        "AND number IN (SELECT number FROM below)",
        (uuid,),
    )


def _check_childless(execute: Callable[..., Any], uuid: str) -> None:
    refuse_clones(execute, "ours.uuid = ?", (uuid,), "its snapshots")


def _layer_of_template(execute: Callable[..., Any], uuid: str) -> int:
    """Below its top, which is empty and stays so."""
    query = (
        "SELECT volumes.name, is_template, layers.parent FROM volumes LEFT JOIN tops USING (uuid) "
        "LEFT JOIN layers ON layers.number = tops.layer WHERE volumes.uuid = ? AND volumes.state = 'ready'"
    )
    row = execute(query, (uuid,)).fetchone()
    if row is None:
        raise OSError(errno.ENOENT, "the volume is not there any more")
    name, is_template, parent = row
    if not is_template:
        raise OSError(errno.EINVAL, f"volume {name} is no template: one of its snapshots can be cloned")
    return int(parent)


def _snapshots(execute: Callable[..., Any], uuid: str) -> list[Snapshot]:
    return [Snapshot(*row) for row in execute(f"SELECT {_SNAPSHOT} FROM snapshots WHERE uuid = ?", (uuid,))]


def _later(execute: Callable[..., Any], uuid: str, name: str) -> set[int]:
    """The layers above a snapshot's, up to the top. ENOENT; ENOTEMPTY: clones stand on one of them."""
    stays = _layer_of_snapshot(execute, uuid, name)
    chain = [row[0] for row in execute(f"{_CHAIN} SELECT number FROM chain ORDER BY depth", (uuid,))]
    going = chain[: chain.index(stays)]
    for number in going:
        refuse_clones(execute, "ours.number = ?", (number,), f"snapshots later than {name}")
    return set(going)


def _layer_of_snapshot(execute: Callable[..., Any], uuid: str, name: str) -> int:
    query = (
        "SELECT snapshots.layer FROM snapshots JOIN volumes USING (uuid) "
        "WHERE uuid = ? AND snapshots.name = ? AND state = 'ready'"
    )
    row = execute(query, (uuid, name)).fetchone()
    if row is None:
        raise _no_snapshot(name)
    return int(row[0])


def _check_new(execute: Callable[..., Any], uuid: str, name: str) -> None:
    if execute("SELECT 1 FROM snapshots WHERE uuid = ? AND name = ?", (uuid, name)).fetchone() is not None:
        raise OSError(errno.EEXIST, f"there is a snapshot {name} already")


def _no_snapshot(name: str) -> OSError:
    return OSError(errno.ENOENT, f"there is no snapshot {name}")
