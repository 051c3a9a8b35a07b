"""Control requests → the manager → replies; changes of volumes → events. One coroutine per request.

Also what the end of a client means (CONTRACTS 2): its handles are fenced, its segment lives on as a zombie until the
last started operation has come back, and only then are its volumes free.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from shm_server.abi import control, layout, names, segment
from shm_server.changes import ChangeLists
from shm_server.client import MAX_REQUESTS, Client, ClientError
from shm_server.fullness import Fullness
from shm_server.interfaces.exports import Exports
from shm_server.manager import Manager
from shm_server.progress import Progress
from shm_server.promoting import Promoter
from shm_server.records import Records
from shm_server.renaming import rename
from shm_server.runtime import Call, Job, Lane, Runtime, Wait
from shm_server.sanitizer import Sanitizer
from shm_server.scrubbing import Scrubber
from shm_server.snapshots import Snapshots
from shm_server.unfinished import Unfinished
from shm_server.volumes import labels
from shm_server.volumes.catalog import Versioned
from shm_server.volumes.handle import Handle
from shm_server.volumes.lineage import Snapshot
from shm_server.volumes.sanitizing import Sanitizing

log = logging.getLogger(__name__)

EXIT_FAILURE_MODE = "exit failure mode"
MAX_HANDLES = 1024  # of one client
MAX_WORDS = 200  # characters that a client says of itself
# One client gets at most so much of the region, so that a second can always attach.
SHARE_NUMERATOR, SHARE_DENOMINATOR = 3, 4


class Host(Protocol):
    """What the server does for us."""

    def attached(self, client: Client) -> None:
        """Watch its doorbell, serve its ring."""

    def drop(self, client: Client, reason: str) -> None:
        """Close it, at the end of this turn."""

    def clients(self) -> Iterable[Client]: ...


class Requests:
    """Also the manager's Watcher."""

    def __init__(
        self, runtime: Runtime, host: Host, pool: str, pid: int, region_bytes: int, attach_refusal: str | None
    ) -> None:
        self.instance = secrets.token_hex(8)
        self._runtime = runtime
        self._host = host
        self._pool = pool
        self._pid = pid
        self._region_bytes = region_bytes
        self._region_used = 0
        self._attach_refusal = attach_refusal
        self._segment_lane = Lane(1)
        self._changes = ChangeLists(runtime)
        self._zombies: set[Client] = set()
        self.is_stopping = False  # long requests end between two steps
        self.sanitizer: Sanitizer  # the same
        self.exports: Exports  # the same
        self.snapshots: Snapshots  # the same
        self.records: Records  # the same
        self.promoter: Promoter  # the same
        self.fullness: Fullness  # the same
        self.scrubber: Scrubber  # the same
        self.unfinished: Unfinished  # the same
        self.manager: Manager  # set by the server, which makes the manager with us as its watcher
        self._handlers: dict[type, Callable[[Client, Any], Coroutine[Any, Any, control.Reply | None]]] = {
            control.Hello: self._hello,
            control.Attach: self._attach,
            control.Open: self._open,
            control.Close: self._close,
            control.Create: self._create,
            control.Finish: self._finish,
            control.Remove: self._remove,
            control.Resize: self._resize,
            control.Rename: self._rename,
            control.Stat: self._stat,
            control.GetRecord: self._get_record,
            control.PutRecord: self._put_record,
            control.Sanitize: self._sanitize,
            control.Export: self._export,
            control.Unexport: self._unexport,
            control.CreateSnapshot: self._create_snapshot,
            control.LabelSnapshot: self._label_snapshot,
            control.StatSnapshot: self._stat_snapshot,
            control.ListSnapshots: self._list_snapshots,
            control.RemoveSnapshot: self._remove_snapshot,
            control.RollBack: self._roll_back,
            control.Clone: self._clone,
            control.MakeTemplate: self._make_template,
            control.Promote: self._promote,
            control.ListChanges: self._list_changes,
            control.Check: self._check,
            control.StatPool: self._stat_pool,
            control.List: self._list,
            control.ListHandles: self._list_handles,
            control.Subscribe: self._subscribe,
        }

    # The way of a request -------------------------------------------------------------------------------------------

    def accept(self, client: Client, request: control.Request) -> None:
        """Begin to answer. Raises ClientError where the client must go."""
        if isinstance(request, control.Ack):
            acknowledge = client.acks.pop(request.sequence, None)
            if acknowledge is not None:
                acknowledge()
            return
        if not client.is_greeted and not isinstance(request, control.Hello):
            raise ClientError(errno.EPROTO, f"{type(request).__name__} before Hello")
        if client.requests >= MAX_REQUESTS:
            raise ClientError(errno.EAGAIN, f"more than {MAX_REQUESTS} requests at once")
        client.requests += 1
        handler = self._handlers[type(request)]
        Job(handler(client, request), partial(self._answer, client, request.id)).start()

    def _answer(self, client: Client, number: int, reply: control.Reply | None, error: BaseException | None) -> None:
        client.requests -= 1
        if error is not None:
            if isinstance(error, OSError):
                words = error.strerror or str(error)
                reply = control.Failed(number, error.errno or errno.EIO, words)
            else:
                log.error("%s: a request failed by a mistake of the server", client.words, exc_info=error)
                reply = control.Failed(number, errno.EIO, f"mistake of the server: {type(error).__name__}")
        if reply is not None:
            self._send(client, reply)
        if isinstance(error, ClientError):
            client.is_closing = True

    def _send(self, client: Client, message: control.Message) -> None:
        try:
            client.send(message)
        except OSError as error:
            self._host.drop(client, str(error))

    # Greeting and attaching -----------------------------------------------------------------------------------------

    async def _hello(self, client: Client, request: control.Hello) -> control.Reply:
        if request.version != layout.ABI_VERSION:
            raise ClientError(
                errno.EPROTONOSUPPORT,
                f"the client speaks version {request.version}, this server speaks {layout.ABI_VERSION}",
            )
        client.is_greeted = True
        if request.words:
            client.words = _printable(request.words)
        return control.Welcome(request.id, layout.ABI_VERSION, self.instance, self._pid, self._pool)

    async def _attach(self, client: Client, request: control.Attach) -> control.Reply | None:
        if self._attach_refusal is not None:
            raise OSError(errno.EPERM, self._attach_refusal)
        if client.attachment is not None or client.is_attaching:
            raise OSError(errno.EALREADY, "this client is attached already")
        if not layout.is_ring_size(request.ring_entries):
            raise OSError(
                errno.EINVAL,
                f"rings of {request.ring_entries} entries: a power of two from "
                f"{layout.MIN_RING_ENTRIES} to {layout.MAX_RING_ENTRIES}",
            )
        if request.segment_bytes <= 0:
            raise OSError(errno.EINVAL, f"a segment of {request.segment_bytes} bytes")
        slot_count = self._share(request.segment_bytes)
        size = slot_count * layout.SLOT_BYTES
        self._region_used += size
        client.is_attaching = True
        try:
            # Allocating it touches every page: on a thread.
            slots_fd = await Call(self._runtime, self._segment_lane, partial(segment.create_slots, slot_count))
            completions = min(2 * request.ring_entries, layout.MAX_RING_ENTRIES)
            descriptors = client.attach(slots_fd, slot_count, request.ring_entries, completions)
        except OSError:
            self._region_used -= size
            raise
        finally:
            client.is_attaching = False
        client.segment_bytes = size
        if client.is_closed:
            for fd in descriptors:
                os.close(fd)
            self._bury(client)
            raise OSError(errno.ECONNRESET, "the client has gone")
        self._host.attached(client)
        log.info("%s attached: %d slots, rings of %d", client.words, slot_count, request.ring_entries)
        reply = control.Attached(request.id, layout.SLOT_BYTES, slot_count, request.ring_entries, completions)
        client.send(reply, descriptors)
        return None

    def _share(self, wish_bytes: int) -> int:
        """Slots for a client that wishes for so many bytes. Raises ENOMEM where the region is used up."""
        wish = -(-wish_bytes // layout.SLOT_BYTES)
        share = self._region_bytes * SHARE_NUMERATOR // SHARE_DENOMINATOR // layout.SLOT_BYTES
        left = (self._region_bytes - self._region_used) // layout.SLOT_BYTES
        slots = min(wish, max(share, 1), left)
        if slots <= 0:
            raise OSError(
                errno.ENOMEM,
                f"{self._region_used} of the {self._region_bytes} bytes of shm_interface.shm_region_size are in use: "
                f"detach a client or enlarge it",
            )
        return slots

    # Volumes --------------------------------------------------------------------------------------------------------

    async def _open(self, client: Client, request: control.Open) -> control.Reply:
        if client.attachment is None:
            raise OSError(errno.ENOTCONN, "attach before opening a volume")
        if len(client.attachment.handles) >= MAX_HANDLES:
            raise OSError(errno.EMFILE, f"this client has {MAX_HANDLES} handles, which is the most it can have")
        handle = await self.manager.open(
            request.name,
            request.access,
            request.owner,
            _printable(request.words) or client.words,
            client.pid,
            client.next_handle(),
            lambda: not client.is_closed,
        )
        client.attachment.handles[handle.number] = handle
        info = await self.manager.look(request.name)
        return control.Opened(request.id, handle.number, handle.epoch, info)

    async def _list_changes(self, client: Client, request: control.ListChanges) -> control.Reply:
        handle, base = client.handle(request.handle), client.handle(request.base)
        return control.Changes(request.id, *await self._changes.find(handle, base, request.offset))

    async def _close(self, client: Client, request: control.Close) -> control.Reply:
        handle = client.attachment.handles.pop(request.handle, None) if client.attachment else None
        if handle is None:
            raise OSError(errno.EBADF, f"there is no handle {request.handle}")
        await self.manager.close(handle)
        if client.attachment is not None:
            client.attachment.publish()  # the reply does not overtake what it tells the end of
        return control.Done(request.id)

    async def _create(self, client: Client, request: control.Create) -> control.Reply:
        if request.is_whole:
            return control.Volume(request.id, await self.manager.create(request.name, request.size_bytes))
        return control.Volume(request.id, await self.unfinished.create(client, request.name, request.size_bytes))

    async def _finish(self, client: Client, request: control.Finish) -> control.Reply:
        return control.Volume(request.id, await self.unfinished.finish(client, request.name))

    async def _remove(self, client: Client, request: control.Remove) -> control.Reply:
        await self.manager.remove(request.name, force=request.force)
        return control.Done(request.id)

    async def _resize(self, client: Client, request: control.Resize) -> control.Reply:
        return control.Volume(request.id, await self.manager.resize(request.name, request.size_bytes, client))

    async def _rename(self, client: Client, request: control.Rename) -> control.Reply:
        info = await rename(self.manager, request.name, request.new_name)
        if request.name != request.new_name:
            self._volume_renamed(request.name, info)
        return control.Volume(request.id, info)

    async def _stat(self, client: Client, request: control.Stat) -> control.Reply:
        return control.Volume(request.id, await self.manager.look(request.name))

    async def _get_record(self, client: Client, request: control.GetRecord) -> control.Reply:
        found = await self.records.get(request.name, request.record)
        return control.Record(request.id, request.record, found.version, found.data)

    async def _put_record(self, client: Client, request: control.PutRecord) -> control.Reply:
        changed = await self.records.put(request.name, request.record, request.version, request.data, client)
        return control.Record(request.id, request.record, changed.version, b"")

    async def _stat_pool(self, client: Client, request: control.StatPool) -> control.Reply:
        return control.Pool(request.id, self.fullness.info())

    async def _list(self, client: Client, request: control.List) -> control.Reply:
        return control.Volumes(request.id, await self.manager.look_all())

    async def _list_handles(self, client: Client, request: control.ListHandles) -> control.Reply:
        return control.Handles(request.id, [_handle_info(handle) for handle in self.manager.handles()])

    async def _subscribe(self, client: Client, request: control.Subscribe) -> control.Reply:
        await self.manager.look_all()  # behind which stat_all() takes no time: nothing is missed in between
        client.is_subscribed = True
        return control.Volumes(request.id, self.manager.stat_all())

    async def _sanitize(self, client: Client, request: control.Sanitize) -> control.Reply:
        if request.kind == EXIT_FAILURE_MODE:
            return control.Volume(request.id, await self.sanitizer.leave(request.name))
        info = self.manager.stat(request.name)
        order = Sanitizing(
            info.uuid,
            request.kind,
            info.size_bytes,
            tuple(request.patterns),
            request.may_exit,
        )
        begun = await self.sanitizer.start(request.name, order, lambda handle: handle in client.handles())
        return control.Volume(request.id, begun)

    async def _export(self, client: Client, request: control.Export) -> control.Reply:
        _check_may_export(client)
        await self.exports.export(request.name, Path(request.path), is_read_only=request.read_only)
        return control.Done(request.id)

    async def _unexport(self, client: Client, request: control.Unexport) -> control.Reply:
        _check_may_export(client)
        await self.exports.unexport(request.name)
        return control.Done(request.id)

    async def _create_snapshot(self, client: Client, request: control.CreateSnapshot) -> control.Reply:
        made = await self.snapshots.create(request.name, request.snapshot, request.labels, request.metadata)
        return control.Snapshot(request.id, _info(made))

    async def _label_snapshot(self, client: Client, request: control.LabelSnapshot) -> control.Reply:
        found = await self.snapshots.label(request.name, request.snapshot, request.labels, request.metadata)
        return control.Snapshot(request.id, _info(found))

    async def _stat_snapshot(self, client: Client, request: control.StatSnapshot) -> control.Reply:
        return control.Snapshot(request.id, _info(await self.snapshots.find(request.name, request.snapshot)))

    async def _list_snapshots(self, client: Client, request: control.ListSnapshots) -> control.Reply:
        found = await self.snapshots.find_all(request.name, request.after, control.MAX_SNAPSHOTS)
        return control.Snapshots(request.id, [_info(each) for each in found])

    async def _remove_snapshot(self, client: Client, request: control.RemoveSnapshot) -> control.Reply:
        await self.snapshots.remove(request.name, request.snapshot)
        return control.Done(request.id)

    async def _roll_back(self, client: Client, request: control.RollBack) -> control.Reply:
        made = await self.snapshots.rollback(request.name, request.snapshot, force=request.force)
        return control.Volume(request.id, made)

    async def _clone(self, client: Client, request: control.Clone) -> control.Reply:
        made = await self.snapshots.clone(request.name, request.snapshot, request.new_name)
        return control.Volume(request.id, made)

    async def _promote(self, client: Client, request: control.Promote) -> control.Reply:
        if request.cancel:
            return control.Volume(request.id, await self.promoter.cancel(request.name))
        info = await self.promoter.promote(request.name, self._progress(client, request))
        return control.Volume(request.id, info)

    async def _make_template(self, client: Client, request: control.MakeTemplate) -> control.Reply:
        return control.Volume(request.id, await self.snapshots.make_template(request.name))

    async def _check(self, client: Client, request: control.Check) -> control.Reply:
        checked = await self.scrubber.check(request.name, self._progress(client, request), renew=request.renew)
        told = [
            control.Problem(each.kind, each.layer.name, each.layer.number, each.page, each.pages, list(each.seen_by))
            for each in checked.told
        ]
        return control.Checked(request.id, checked.layers, checked.pages, checked.problems, told)

    # Events: we are the manager's Watcher ---------------------------------------------------------------------------

    def volume_created(self, info: control.VolumeInfo) -> None:
        self.exports.volume_created(info.name)
        self._tell((client for client in self._host.clients() if client.is_subscribed), control.VolumeCreated, info)

    def _volume_renamed(self, old_name: str, info: control.VolumeInfo) -> None:
        self.exports.volume_created(info.name)
        holders = [handle for handle in self.manager.handles() if names.split(handle.volume.name)[0] == info.name]
        for client in list(self._host.clients()):
            if client.is_subscribed or any(handle in holders for handle in client.handles()):
                self._event(client, lambda sequence: control.VolumeRenamed(sequence, old_name, info))

    def volume_removed(self, name: str, uuid: str) -> None:
        for client in list(self._host.clients()):
            if client.is_subscribed:
                self._event(client, lambda sequence: control.VolumeRemoved(sequence, name, uuid))

    def volume_resized(self, info: control.VolumeInfo, holders: list[Handle], by: object) -> Wait[None]:
        """Whoever asked for it is told too, but not waited for: it waits for us."""
        self.exports.volume_resized(info.name)
        clients = list(self._host.clients())
        return self._tell_and_wait(clients, holders, by, lambda sequence: control.VolumeResized(sequence, info))

    def record_changed(
        self, volume: tuple[str, str], record: str, changed: Versioned, holders: list[Handle], by: object
    ) -> Wait[None]:
        """Whoever changed it has its reply."""
        others = [client for client in self._host.clients() if client is not by]

        def event(sequence: int) -> control.Event:
            return control.RecordChanged(sequence, *volume, record, changed.version, changed.data)

        return self._tell_and_wait(others, holders, by, event)

    def _tell_and_wait(
        self, clients: list[Client], holders: list[Handle], by: object, make: Callable[[int], control.Event]
    ) -> Wait[None]:
        """Tell those who hold or subscribed; the result is set when the holders but ``by`` have acknowledged it."""
        everyone: Wait[None] = Wait()
        waiting: set[int] = set()

        def acknowledged(number: int, _value: None, _error: BaseException | None) -> None:
            waiting.discard(number)
            if not waiting:
                everyone.set()

        told = []
        for client in clients:
            is_holder = any(handle in holders for handle in client.handles())
            if not is_holder and not client.is_subscribed:
                continue
            known: Wait[None] = Wait()
            if is_holder and client is not by:
                waiting.add(client.number)
                known.start(partial(acknowledged, client.number))
            told.append((client, known))
        for client, known in told:
            self._event(client, make, known)
        if not waiting:
            everyone.set()
        return everyone

    def volume_changed(self, info: control.VolumeInfo, holders: list[Handle]) -> None:
        """The sanitizer and the snapshots tell."""
        for client in list(self._host.clients()):
            if client.is_subscribed or any(handle in holders for handle in client.handles()):
                self._event(client, lambda sequence: control.VolumeChanged(sequence, info))

    def pool_changed(self, info: control.PoolInfo) -> None:
        for client in list(self._host.clients()):
            if client.is_subscribed:
                self._event(client, lambda sequence: control.PoolChanged(sequence, info))

    def release_requested(self, name: str, uuid: str, holders: list[Handle]) -> None:
        self.exports.release(holders)
        for client in list(self._host.clients()):
            if any(handle in holders for handle in client.handles()):
                self._event(client, lambda sequence: control.ReleaseRequested(sequence, name, uuid))

    def _tell(
        self,
        clients: Iterable[Client],
        event: Callable[[int, control.VolumeInfo], control.Event],
        info: control.VolumeInfo,
    ) -> None:
        for client in list(clients):
            self._event(client, lambda sequence: event(sequence, info))

    def _progress(self, client: Client, request: control.Request) -> Progress:
        """To tell the client how far a request of its has come."""
        assert not isinstance(request, control.Ack)
        number = request.id
        return Progress(
            self._runtime.clock,
            lambda done, total: self._event(client, lambda sequence: control.Progressed(sequence, number, done, total)),
            lambda: not (client.is_closed or client.is_closing or self.is_stopping),
        )

    def _event(
        self, client: Client, make: Callable[[int], control.Event], acknowledged: Wait[None] | None = None
    ) -> None:
        try:
            client.send_event(make, acknowledged)
        except OSError as error:
            self._host.drop(client, str(error))

    # The end of a client --------------------------------------------------------------------------------------------

    def release(self, client: Client) -> None:
        """The client has gone: fence and free everything it held."""
        attachment = client.attachment
        if attachment is None:
            self.unfinished.release(client)
            return
        attachment.is_gone = True
        for handle in list(attachment.handles.values()):
            self.manager.close(handle)
        attachment.handles.clear()
        self.unfinished.release(client)
        attachment.on_drained = partial(self._bury, client)
        if attachment.in_flight:
            self._zombies.add(client)
            log.info("%s has gone: %d operations are still in flight", client.words, attachment.in_flight)
        else:
            self._bury(client)

    def in_flight(self) -> int:
        """Operations of clients that have gone."""
        return sum(client.attachment.in_flight for client in self._zombies if client.attachment is not None)

    def _bury(self, client: Client) -> None:
        """The last operation of a client that has gone has come back."""
        attachment, client.attachment = client.attachment, None
        self._zombies.discard(client)
        if attachment is not None:
            # On the lane that makes segments: what is used again is free then.
            Call(self._runtime, self._segment_lane, attachment.close()).start(_freed)
            if client.bell is not None:
                client.bell.close()
            self._region_used -= client.segment_bytes
            client.segment_bytes = 0


def _freed(_value: object, error: BaseException | None) -> None:
    if error is not None:
        log.error("a segment could not be freed", exc_info=error)


def _printable(words: str) -> str:
    """What a client says of itself goes into logs and other people's errors: one line, and not a long one."""
    return "".join(character if character.isprintable() else "?" for character in words[:MAX_WORDS])


def _check_may_export(client: Client) -> None:
    """An export makes a socket, with our rights, wherever it is said to: that is for those who have these rights."""
    if client.uid not in (0, os.getuid()):
        raise OSError(errno.EPERM, f"uid {client.uid} may use volumes here, but not export them")


def _info(snapshot: Snapshot) -> control.SnapshotInfo:
    kept = labels.decode(snapshot.labels), snapshot.metadata
    return control.SnapshotInfo(snapshot.name, snapshot.size_bytes, snapshot.created_s, snapshot.identity, *kept)


def _handle_info(handle: Handle) -> control.HandleInfo:
    return control.HandleInfo(
        handle=handle.number,
        volume=handle.volume.name,
        access=handle.access,
        owner=handle.owner,
        words=handle.words,
        pid=handle.pid,
        read_bytes=handle.read_bytes,
        written_bytes=handle.written_bytes,
        reads=handle.reads,
        writes=handle.writes,
        in_flight=len(handle.tasks),
    )
