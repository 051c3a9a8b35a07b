"""What a client asks of the server on the control socket: management, handles, the attachment itself.

Each says what it wants done, when its reply comes, and with which errnos it fails. The replies are in ``answers``; a
request that may take long tells how far it has come by the event Progressed.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from shm_server.abi import layout
from shm_server.abi.message import Message


class Hello(Message, frozen=True):
    """First on every connection. ``words`` says who we are, for people ("iscsi target pid 123")."""

    id: int
    version: int
    words: str = ""


class Attach(Message, frozen=True):
    """Ask for a segment and rings. ``segment_bytes`` is a wish: the reply says what was given."""

    id: int
    segment_bytes: int
    ring_entries: int = layout.DEFAULT_RING_ENTRIES


class Open(Message, frozen=True):
    """Open a volume. ``access`` is "r", "w" or "rw"; handles with the same ``owner`` share one writer's right.

    A snapshot is opened by the name VOLUME@SNAPSHOT, with "r" only: EROFS. It can't go while somebody holds it.
    """

    id: int
    name: str
    access: str
    owner: str = ""
    words: str = ""


class Close(Message, frozen=True):
    """Close a handle: its unstarted entries are discarded, the reply comes when the started ones are done, and behind
    their completions. Entries that still stand in the ring are answered EBADF, perhaps after it: so fence first.
    """

    id: int
    handle: int


class Create(Message, frozen=True):
    """A volume of zeros. EEXIST; EINVAL; EFBIG; ENOSPC. One that ``is_whole`` is not yet goes with this connection, and
    with the server, until Finish; no clone can be made of it before."""

    id: int
    name: str
    size_bytes: int
    is_whole: bool = True


class Finish(Message, frozen=True):
    """A volume that was created on this connection is whole; the reply comes when that is durable. ENOENT; EINVAL: not
    one that was not."""

    id: int
    name: str


class Remove(Message, frozen=True):
    """``force``: ask the holders to let go (ReleaseRequested) and wait for that, else EBUSY."""

    id: int
    name: str
    force: bool = False


class Resize(Message, frozen=True):
    id: int
    name: str
    size_bytes: int


class Rename(Message, frozen=True):
    """Another name; all else of the volume stays. EEXIST; EINVAL; EBUSY: somebody has it open to write."""

    id: int
    name: str
    new_name: str


class Stat(Message, frozen=True):
    """Of a volume, or of a snapshot: VOLUME@SNAPSHOT."""

    id: int
    name: str


class GetRecord(Message, frozen=True):
    """A record of a volume, as it is. A record that was never put has version 0 and no data."""

    id: int
    name: str
    record: str


class PutRecord(Message, frozen=True):
    """Replace version ``version`` of a record; ESTALE where it has another one meanwhile.

    The reply comes when the new version is durable and every other holder of the volume has acknowledged it (bounded).
    """

    id: int
    name: str
    record: str
    version: int
    data: bytes


class Sanitize(Message, frozen=True):
    """Overwrite or erase a volume for good. The reply comes when that has durably begun; VolumeChanged tells the rest.

    ``kind`` is "overwrite", with 1 to 31 ``patterns``, one a pass, all of one length of at most 4096 bytes, each
    repeated from the volume's start; "block erase", without; or "exit failure mode": the volume of a failed operation
    that had ``may_exit`` is used again as it is, and without a failure nothing happens. EBUSY: one runs, or somebody
    else writes; EPERM: the one that failed had no ``may_exit``; EINVAL.
    """

    id: int
    name: str
    kind: str
    patterns: list[bytes] = msgspec.field(default_factory=list)
    may_exit: bool = False


class Export(Message, frozen=True):
    """Serve a volume as a virtio disk: a vhost-user-blk socket at ``path``, which listens when the reply comes.

    The export holds the volume until Unexport or the server's end. EBUSY: another writes; EPERM: another uid asks.
    A snapshot, VOLUME@SNAPSHOT, is exported read-only.
    """

    id: int
    name: str
    path: str
    read_only: bool = False


class Unexport(Message, frozen=True):
    """End every export of a volume. ENOENT: it has none."""

    id: int
    name: str


class CreateSnapshot(Message, frozen=True):
    """The reply comes when it is durable, with what is kept with it. EEXIST; EINVAL; E2BIG: that is more than
    MAX_LABELS_BYTES; EOPNOTSUPP: the pool's store can't."""

    id: int
    name: str
    snapshot: str
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    metadata: bytes = b""


class LabelSnapshot(Message, frozen=True):
    """Set labels, or with None take them away; ``metadata`` None: as it is. The answer is Snapshot, durable. E2BIG: all
    of it together is more than MAX_LABELS_BYTES; EINVAL."""

    id: int
    name: str
    snapshot: str
    labels: dict[str, str | None] = msgspec.field(default_factory=dict)
    metadata: bytes | None = None


class StatSnapshot(Message, frozen=True):
    id: int
    name: str
    snapshot: str


class ListSnapshots(Message, frozen=True):
    """By name, those behind ``after``; a reply that is full (MAX_SNAPSHOTS) is not the last."""

    id: int
    name: str
    after: str = ""


class RemoveSnapshot(Message, frozen=True):
    """ENOTEMPTY: clones stand on it; EBUSY: somebody has it open. Its space comes back in the background."""

    id: int
    name: str
    snapshot: str


class RollBack(Message, frozen=True):
    """The volume is what the snapshot is, its size too; later snapshots go. EBUSY: somebody holds the volume, or one
    of them; ENOTEMPTY: clones stand on one of them. ``force``: as in Remove."""

    id: int
    name: str
    snapshot: str
    force: bool = False


class Clone(Message, frozen=True):
    """A new volume ``new_name`` that begins as the snapshot, or, where that is "", as the template ``name`` is; the
    errors are Create's, ENOENT, and EINVAL: it is no template."""

    id: int
    name: str
    snapshot: str
    new_name: str


class Promote(Message, frozen=True):
    """Copy what the volume has of others, as a clone, so that it stands on nothing of theirs. The reply comes when that
    is done; Progressed tells of bytes. It is durable, and goes on when the client leaves; ``cancel`` ends it, and gives
    back what was copied. Nothing happens where it is no clone. EIO: a page can't be read; ENOSPC; ECANCELED."""

    id: int
    name: str
    cancel: bool = False


class MakeTemplate(Message, frozen=True):
    """What the volume is now it is for ever: it is read and cloned, and every change is EROFS. Its snapshots go.
    Nothing happens where it is one. EBUSY: held; ENOTEMPTY: clones stand on its snapshots; EOPNOTSUPP."""

    id: int
    name: str


class ListChanges(Message, frozen=True):
    """What ``handle`` has from ``offset`` on otherwise than ``base``, a snapshot of its past; both are open here.

    It is found in whole pages and may be too much, never too little. EINVAL: they have no past in common.
    """

    id: int
    handle: int
    base: int
    offset: int = 0


class Check(Message, frozen=True):
    """Hold every sealed page that the volume stands on against its checksum; those that are missing are made first.
    ``renew``: checksums that are damaged are made anew, from the data as they are. Progressed counts bytes. ENOENT.
    """

    id: int
    name: str
    renew: bool = False


class StatPool(Message, frozen=True):
    """How full the pool's file system is."""

    id: int


class List(Message, frozen=True):
    id: int


class ListHandles(Message, frozen=True):
    """The open handles of every client with their counters."""

    id: int


class Subscribe(Message, frozen=True):
    """Get the events of every volume from now on (holders get theirs without asking).

    Answered with Volumes: the list as it is at the moment the subscription begins.
    """

    id: int


class Ack(Message, frozen=True):
    """We have acted on the event ``sequence``. It has no reply."""

    sequence: int


Request: TypeAlias = (
    Hello
    | Attach
    | Open
    | Close
    | Create
    | Finish
    | Remove
    | Resize
    | Rename
    | Stat
    | GetRecord
    | PutRecord
    | Sanitize
    | Export
    | Unexport
    | CreateSnapshot
    | LabelSnapshot
    | StatSnapshot
    | ListSnapshots
    | RemoveSnapshot
    | RollBack
    | Clone
    | MakeTemplate
    | Promote
    | ListChanges
    | Check
    | StatPool
    | List
    | ListHandles
    | Subscribe
    | Ack
)
