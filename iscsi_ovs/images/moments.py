"""Which moments the snapshots of a volume are, whichever pool they were made in.

A snapshot that was made here has an identity of its own. One that was made by importing an image is the moment that the
image showed: that is kept in a record of the volume, beside when the snapshot was made, so that another one of the
same name is not taken for it.
"""

from __future__ import annotations

import errno

import msgspec

from iscsi_ovs import shm_client
from iscsi_ovs.images import origin
from iscsi_ovs.images.image import ImageError

RECORD = "images"


class _Imported(msgspec.Struct, frozen=True):
    created_s: float
    identity: str


def of(context: shm_client.Context, name: str) -> origin.Moment | None:
    """The moment that VOLUME@SNAPSHOT is; None for a volume, which is many."""
    volume, at, snapshot = name.partition("@")
    if not at:
        return None
    stat = context.stat_snapshot(volume, snapshot)
    return _moment(context.stat_volume(volume).uuid, volume, stat, _imported(context, volume)[1])


def all_of(context: shm_client.Context, volume: str) -> list[origin.Moment]:
    """Of every snapshot of a volume."""
    uuid, (_, imported) = context.stat_volume(volume).uuid, _imported(context, volume)
    return [_moment(uuid, volume, stat, imported) for stat in context.list_snapshots(volume)]


def remember(context: shm_client.Context, volume: str, stat: shm_client.SnapshotStat, identity: str) -> None:
    """The snapshot is the moment of another pool with this identity. Durable."""
    while True:
        version, imported = _imported(context, volume)
        there = {found.name for found in context.list_snapshots(volume)}
        kept = {name: each for name, each in imported.items() if name in there}
        kept[stat.name] = _Imported(stat.created_s, identity)
        try:
            context.put_record(volume, RECORD, version, msgspec.json.encode(kept))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            continue
        return


def _imported(context: shm_client.Context, volume: str) -> tuple[int, dict[str, _Imported]]:
    version, data = context.get_record(volume, RECORD)
    try:
        return version, msgspec.json.decode(data, type=dict[str, _Imported]) if data else {}
    except msgspec.DecodeError as error:
        raise ImageError(f"record {RECORD} of volume {volume} can't be read: {error}") from None


def _moment(uuid: str, volume: str, stat: shm_client.SnapshotStat, imported: dict[str, _Imported]) -> origin.Moment:
    known = imported.get(stat.name)
    if known is not None and known.created_s == stat.created_s:
        identity = known.identity
    else:
        identity = origin.identity(uuid, stat.name, stat.created_s)
    return origin.Moment(volume, stat.name, identity, stat.size_bytes)
