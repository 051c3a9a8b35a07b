"""What a path on the mount means.

    /NAME.raw                         the volume NAME
    /.snapshots/NAME/SNAPSHOT.raw     a snapshot of it, as the client library opens it: NAME@SNAPSHOT; never written

Whether there is such a volume or snapshot is the server's to say; this file knows names alone.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from shm_server.abi import names

SUFFIX = ".raw"
SNAPSHOTS = ".snapshots"
NAME_BYTES_MAX = 127 + len(SUFFIX)


class Kind(enum.Enum):
    """Three kinds of directories, and files."""

    VOLUMES = "/"
    SNAPSHOTS = "/.snapshots"
    SNAPSHOTS_OF = "/.snapshots/NAME"
    FILE = "a volume or a snapshot"


@dataclass(frozen=True, slots=True)
class Place:
    """``name`` is the volume's or, of a file, what the client library opens; of the two upper directories nothing."""

    kind: Kind
    name: str = ""


def find(path: str) -> Place | None:
    """None: nothing can have this name."""
    match path.split("/"):
        case ["", ""]:
            return Place(Kind.VOLUMES)
        case ["", name] if name == SNAPSHOTS:
            return Place(Kind.SNAPSHOTS)
        case ["", top, volume] if top == SNAPSHOTS and re.fullmatch(names.VOLUME_RULE, volume):
            return Place(Kind.SNAPSHOTS_OF, volume)
        case ["", top, volume, file] if top == SNAPSHOTS and re.fullmatch(names.VOLUME_RULE, volume):
            snapshot = _stem(file, names.SNAPSHOT_RULE)
            return None if snapshot is None else Place(Kind.FILE, names.join(volume, snapshot))
        case ["", file]:
            volume_name = _stem(file, names.VOLUME_RULE)
            return None if volume_name is None else Place(Kind.FILE, volume_name)
    return None


def _stem(file: str, rule: str) -> str | None:
    stem = file.removesuffix(SUFFIX)
    return stem if stem != file and re.fullmatch(rule, stem) else None


def is_past(path: str) -> bool:
    """Among the snapshots, where nothing is ever changed."""
    return path == f"/{SNAPSHOTS}" or path.startswith(f"/{SNAPSHOTS}/")


def file_name(name: str) -> str:
    """Of a volume or of a snapshot, in its directory."""
    return (names.split(name)[1] or name) + SUFFIX
