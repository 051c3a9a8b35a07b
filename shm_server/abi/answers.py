"""What the server says on the control socket: replies to requests, events, and the values in both.

A reply repeats its request's ``id``. An event has a ``sequence`` for its Ack; it goes to who holds the volume or has
subscribed, but for Progressed, which only the asker gets.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from shm_server.abi.message import Message

# Replies, server → client -----------------------------------------------------------------------------------------


class VolumeInfo(msgspec.Struct, frozen=True):
    """A volume as the catalogue knows it. ``held`` is the writer's words, None when nobody holds it."""

    name: str
    uuid: str  # 32 hex digits, given at creation, never reused
    size_bytes: int
    allocated_bytes: int  # of data that are stored, in all layers of its own: what only its snapshots see, too
    generation: int  # counts changes of size
    can_discard: bool
    failed: bool = False
    held: str | None = None
    max_atomic_write_bytes: int = 0
    sanitize: int | None = None  # how far a sanitize operation has come, 0 to 65535; None: none runs
    sanitize_failed: bool = False  # then, and while one runs, every data operation is EBUSY
    can_exit_sanitize: bool = False  # and "exit failure mode" ends that
    is_read_only: bool = False  # opening it for writing is EROFS: a snapshot (VOLUME@SNAPSHOT), or a template
    is_template: bool = False
    footprint_bytes: int = 0  # what it alone takes in the pool: its data, and maps, checksums, redo record
    promotion: int | None = None  # how far it has come, 0 to 65535; None: none runs
    under_way: tuple[str, ...] = ()  # what else is: "merging" of its layers, "checking" of what its snapshots keep


class SnapshotInfo(msgspec.Struct, frozen=True):
    name: str
    size_bytes: int  # of the volume, then
    created_s: float  # since 1970
    uuid: str = ""  # its own, as a volume has one
    labels: dict[str, str] = {}
    metadata: bytes = b""


class PoolInfo(msgspec.Struct, frozen=True):
    """The file system that all volumes share; of size 0 where they are in memory."""

    size_bytes: int
    available_bytes: int
    soft_threshold_percent: int  # of its size, used; 0: none
    is_threshold_reached: bool


class HandleInfo(msgspec.Struct, frozen=True):
    """One open handle, with what it has moved since it was opened."""

    handle: int
    volume: str
    access: str
    owner: str
    words: str
    pid: int
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int
    in_flight: int


class Problem(msgspec.Struct, frozen=True):
    """Pages of a layer, ``pages`` of them from ``page`` on; each stands in ``file`` at page times 4096.

    ``kind`` is "bad page": it is not what its checksum says; "lost checksum": it had one; "damaged block": ``page`` is
    the number of a block of the file of checksums; "damaged header": so is that file's; "damaged
    map": which pages the layer has is not known, so who sees it can't be read.
    """

    kind: str
    file: str
    layer: int
    page: int
    pages: int
    seen_by: list[str]  # volumes and snapshots, as one opens them


class Welcome(Message, frozen=True):
    id: int
    version: int
    instance: str  # random, new at each start of a server
    pid: int
    pool: str


class Attached(Message, frozen=True):
    id: int
    slot_bytes: int
    slot_count: int
    submission_entries: int
    completion_entries: int


class Opened(Message, frozen=True):
    id: int
    handle: int
    epoch: int
    info: VolumeInfo


class Volume(Message, frozen=True):
    """Reply to Create, Resize, Rename, Stat, Sanitize, RollBack, Clone, MakeTemplate, Promote."""

    id: int
    info: VolumeInfo


class Pool(Message, frozen=True):
    """Reply to StatPool."""

    id: int
    info: PoolInfo


class Record(Message, frozen=True):
    """Reply to GetRecord; to PutRecord with the new version and without the data."""

    id: int
    record: str
    version: int
    data: bytes


class Volumes(Message, frozen=True):
    id: int
    infos: list[VolumeInfo]


class Snapshot(Message, frozen=True):
    """Reply to CreateSnapshot, LabelSnapshot, StatSnapshot."""

    id: int
    info: SnapshotInfo


class Snapshots(Message, frozen=True):
    id: int
    infos: list[SnapshotInfo]


class Changes(Message, frozen=True):
    """Reply to ListChanges: (offset, length, whether there is data; else it reads zeros), in order. ``next_offset`` is
    where the next request goes on; the volume's size: that was all."""

    id: int
    runs: list[tuple[int, int, bool]]
    next_offset: int


class Checked(Message, frozen=True):
    """Reply to Check. ``told`` are the first of the problems."""

    id: int
    layers: int
    pages: int  # held against their checksums
    problems: int
    told: list[Problem]


class Handles(Message, frozen=True):
    id: int
    infos: list[HandleInfo]


class Done(Message, frozen=True):
    """Reply to Close, Remove, RemoveSnapshot, Export, Unexport."""

    id: int


class Failed(Message, frozen=True):
    """The request failed; ``errno`` is Linux's, ``message`` is for people. id 0: the connection itself is refused."""

    id: int
    errno: int
    message: str


# Events, server → client ------------------------------------------------------------------------------------------


class VolumeCreated(Message, frozen=True):
    """Also of a snapshot: VOLUME@SNAPSHOT."""

    sequence: int
    info: VolumeInfo


class VolumeRemoved(Message, frozen=True):
    """Also of a snapshot; that of a volume says that its snapshots are gone with it."""

    sequence: int
    name: str
    uuid: str


class PoolChanged(Message, frozen=True):
    """Its soft threshold was passed, or it has come back below that. Told to all who subscribed."""

    sequence: int
    info: PoolInfo


class VolumeRenamed(Message, frozen=True):
    """Its snapshots are called after it, so they have other names, too."""

    sequence: int
    old_name: str
    info: VolumeInfo


class VolumeResized(Message, frozen=True):
    """The store has grown and is durable. Whoever asked for the growth waits for our Ack (bounded)."""

    sequence: int
    info: VolumeInfo


class VolumeChanged(Message, frozen=True):
    """A sanitize operation has begun, come further, ended or failed, or its failure mode was left; or the volume was
    rolled back, perhaps to another size; or it is a template now, or a promotion has begun or ended."""

    sequence: int
    info: VolumeInfo


class RecordChanged(Message, frozen=True):
    """Another client has replaced a record. Whoever did waits for the Acks of the volume's holders (bounded)."""

    sequence: int
    name: str
    uuid: str
    record: str
    version: int
    data: bytes


class ReleaseRequested(Message, frozen=True):
    """Somebody removes the volume by force, or rolls it back: close your handles on it, then Ack."""

    sequence: int
    name: str
    uuid: str


class Progressed(Message, frozen=True):
    """How far your own request ``id`` has come, now and then until its reply; in what is the request's affair. No Ack
    is waited for. Whoever leaves before the reply ends the work, unless the request says otherwise."""

    sequence: int
    id: int
    done: int
    total: int


Event: TypeAlias = (
    VolumeCreated
    | VolumeRemoved
    | VolumeRenamed
    | VolumeResized
    | VolumeChanged
    | RecordChanged
    | PoolChanged
    | ReleaseRequested
    | Progressed
)
Reply: TypeAlias = (
    Welcome
    | Attached
    | Opened
    | Volume
    | Record
    | Volumes
    | Snapshot
    | Snapshots
    | Changes
    | Checked
    | Pool
    | Handles
    | Done
    | Failed
)
