"""How volumes and their snapshots are named: a snapshot is VOLUME@SNAPSHOT wherever something is opened to be read.

No volume's name has an "@", and no snapshot's: so the name says which of the two is meant.
"""

from __future__ import annotations

SEPARATOR = "@"
VOLUME_RULE = "[a-z0-9][a-z0-9.-]{0,62}"  # what an iSCSI name allows
SNAPSHOT_RULE = "[A-Za-z0-9][A-Za-z0-9._:-]{0,126}"


def join(volume: str, snapshot: str) -> str:
    """The name by which a snapshot is opened."""
    return f"{volume}{SEPARATOR}{snapshot}"


def split(name: str) -> tuple[str, str]:
    """The volume, and the snapshot of it: "" where the volume itself is meant."""
    volume, _, snapshot = name.partition(SEPARATOR)
    return volume, snapshot


def is_snapshot(name: str) -> bool:
    return SEPARATOR in name
