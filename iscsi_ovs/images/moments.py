"""Which moments snapshots are, whichever pool they were made in.

A snapshot that was made here is a moment of its own, and its UUID says which. One that was made by importing an image
is the moment that the image showed: a record of the snapshot has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from iscsi_ovs import shm_client
from iscsi_ovs.images.origin import Moment
from shm_server.abi import names

RECORD = "moment"

_IDENTITY = re.compile("[0-9a-f]{32}")


def of(context: shm_client.Context, name: str) -> Moment | None:
    """The moment that VOLUME@SNAPSHOT is; None for a volume, which is many. ENOENT."""
    if not names.is_snapshot(name):
        return None
    found = context.stat_volume(name)
    _, record = context.get_record(name, RECORD)
    imported = record.decode("ascii", errors="replace")
    identity = imported if _IDENTITY.fullmatch(imported) else found.uuid
    return Moment(*names.split(name), identity, found.size_bytes)


def newest_first(context: shm_client.Context, volume: str) -> Iterator[Moment]:
    """Of the snapshots of a volume."""
    for found in sorted(context.list_snapshots(volume), key=lambda each: each.created_s, reverse=True):
        moment = of(context, names.join(volume, found.name))
        assert moment is not None, "it has a snapshot's name"
        yield moment


def remember(context: shm_client.Context, name: str, identity: str) -> None:
    """The new snapshot VOLUME@SNAPSHOT is this moment, of another pool. Durable."""
    context.put_record(name, RECORD, 0, identity.encode())
