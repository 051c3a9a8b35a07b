"""The control and management plane: typed messages on one Unix stream socket.

A message is a 4-byte little-endian length and so many bytes of msgpack, one tagged msgspec struct: at most 1 MiB from a
client, and 8 MiB from the server, which may have a long list to tell.
A request carries an ``id`` that its one reply repeats; events carry a ``sequence`` and are answered by ``Ack`` where
somebody waits for them. The reply to Attach brings four descriptors by SCM_RIGHTS, in this order: slot segment, ring
mapping, submission doorbell, completion doorbell. The end of the stream is the death of the peer.
"""

from __future__ import annotations

import errno
import struct
from typing import TypeAlias

import msgspec

from shm_server.abi import layout

LENGTH = struct.Struct("<I")
MAX_REQUEST_BYTES = 1 << 20
MAX_ANSWER_BYTES = 8 << 20
MAX_RECORD_BYTES = 64 << 10
MAX_SNAPSHOTS = 1500  # in one message
MAX_LABELS_BYTES = 4096  # keys and values of a snapshot's labels, and its metadata, all together
ATTACH_DESCRIPTORS = 4


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Every message is one of these; the tag is the class's name."""


# Requests, client → server ----------------------------------------------------------------------------------------


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
    id: int
    name: str
    size_bytes: int


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
    patterns: list[bytes] = []
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
    labels: dict[str, str] = {}
    metadata: bytes = b""


class LabelSnapshot(Message, frozen=True):
    """Set labels, or with None take them away; ``metadata`` None: as it is. The answer is Snapshot, durable. E2BIG: all
    of it together is more than MAX_LABELS_BYTES; EINVAL."""

    id: int
    name: str
    snapshot: str
    labels: dict[str, str | None] = {}
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
    the number of a block of the file of checksums; "damaged header": so is that file's.
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


Request: TypeAlias = (
    Hello
    | Attach
    | Open
    | Close
    | Create
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

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Reply | Event] = msgspec.msgpack.Decoder(Reply | Event)


class ControlError(OSError):
    """A message that can't be: too long, not msgpack, unknown, or with a field of the wrong type (EPROTO)."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)


def encode(message: Message) -> bytes:
    """A message with its length in front."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload


class _Reader:
    """Cuts a byte stream into messages; fed as it comes."""

    limit_bytes: int  # of one message

    def __init__(self) -> None:
        self._buffer = bytearray()

    def _payloads(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, start)
            if length > self.limit_bytes:
                raise ControlError(f"a control message of {length} bytes (at most {self.limit_bytes})")
            if len(buffer) - start - LENGTH.size < length:
                break
            start += LENGTH.size
            payloads.append(bytes(buffer[start : start + length]))
            start += length
        del buffer[:start]
        return payloads


class RequestReader(_Reader):
    """The server's side: bytes in, requests out."""

    limit_bytes = MAX_REQUEST_BYTES

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are now whole. Raises ControlError."""
        try:
            return [_request_decoder.decode(payload) for payload in self._payloads(data)]
        except msgspec.DecodeError as error:
            raise ControlError(f"a control message that can't be read: {error}") from None


class AnswerReader(_Reader):
    """The client's side: bytes in, replies and events out."""

    limit_bytes = MAX_ANSWER_BYTES

    def feed(self, data: bytes) -> list[Reply | Event]:
        """The replies and events that are now whole. Raises ControlError."""
        try:
            return [_answer_decoder.decode(payload) for payload in self._payloads(data)]
        except msgspec.DecodeError as error:
            raise ControlError(f"a control message that can't be read: {error}") from None
