"""The door to storage: Open vStorage's client API in Python, over rings and slots in shared memory.

    with shm_client.Context() as context:
        context.create_volume("demo", 1 << 30)
        with context.open("demo") as volume:
            buffer = context.allocate(4096)          # buffer.data *is* the memory that the server reads
            buffer.data[:5] = b"hello"
            volume.write(buffer, 5, offset=1024)
            volume.flush()

Sizes and offsets are bytes, timeouts seconds. Every failure is an OSError whose errno is the one that Open vStorage's
manual promises for the C function named in each docstring (one difference: a missing volume is ENOENT, not EACCES); a
server that is gone is ECONNRESET. A Context belongs to one thread at a time; it blocks on the completion doorbell, or
is polled by ``fileno()``. An interface with its own event loop, as the iSCSI target, uses Service instead: the same
pieces, never blocking (iscsi_ovs.storage.service). docs/CLIENT.md builds an interface on this page in 30 lines.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from iscsi_ovs import paths
from iscsi_ovs.storage.buffers import Buffer, BufferAllocator
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.storage.errnos import os_error
from iscsi_ovs.storage.link import OnProgress
from iscsi_ovs.storage.service import DEFAULT_SEGMENT_BYTES, Service
from iscsi_ovs.storage.volume import AioCompletion, Change, Volume, VolumeStat
from shm_server.abi import control

__all__ = [
    "BLOCK_BYTES",
    "DEFAULT_SEGMENT_BYTES",
    "AioCompletion",
    "Buffer",
    "Checked",
    "Context",
    "DeviceHandle",
    "HandleStat",
    "PoolStat",
    "Problem",
    "ReleaseRequested",
    "Service",
    "SnapshotStat",
    "Volume",
    "VolumeStat",
]

BLOCK_BYTES = 512  # what ovs_stat says in st_blksize; any byte range is legal all the same

HandleStat = control.HandleInfo
PoolStat = control.PoolInfo
ReleaseRequested = control.ReleaseRequested
SnapshotStat = control.SnapshotInfo
Checked = control.Checked
Problem = control.Problem

_ACCESS = {os.O_RDONLY: "r", os.O_WRONLY: "w", os.O_RDWR: "rw"}
_CONNECT_LIMIT_S = 5.0
SPIN_S = 100e-6  # how long the ring is looked at before a wait sleeps
SPIN_DEPTH = 8  # where more is in flight, to sleep lets answers gather
VAIN_SPINS = 16  # waits that sleep at once behind one for which looking was not enough
_M = TypeVar("_M", bound=control.Message)


class Context:
    """A connection to a volume server (ovs_ctx_new). Shared memory is taken at the first open or allocate, not before.

    ``socket_path``, or ``state_dir`` as a server was given it, or the default of CONTRACTS 11 (iscsi_ovs.paths).
    ``segment_bytes`` is a wish; ``words`` say who we are to people who look at what holds a volume.
    ``on_event`` gets the server's events on volumes that are open here; they are acknowledged when it returns.
    ``answer_limit_s``: a server that is silent for so long after a request of management gives ETIMEDOUT.
    Raises ENOENT or ECONNREFUSED, naming the socket, where no server listens.
    """

    def __init__(
        self,
        socket_path: str | os.PathLike[str] | None = None,
        *,
        state_dir: str | os.PathLike[str] | None = None,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        words: str = "",
        on_event: Callable[[control.Event], object] | None = None,
        answer_limit_s: float | None = None,
    ) -> None:
        path = paths.socket_path(state_dir) if socket_path is None else socket_path
        self._service = Service(
            os.fspath(path),
            segment_bytes=segment_bytes,
            words=words or f"shm_client pid {os.getpid()}",
            management_only=True,
        )
        self._service.on_lost = self._lost
        self._service.on_event = self._event
        self._on_event = on_event
        self._answer_limit_s = answer_limit_s
        self._allocator: BufferAllocator | None = None
        self._volumes: list[Volume] = []
        self._batches = 0
        self._vain_spins = 0
        self.looks_first = True  # False: a wait sleeps at once, and the other threads of this process can run
        self._is_polled = False
        self._is_closed = False
        self._token = object()  # buffers know by it whose they are
        self._lost_by: OSError | None = None
        self._epoll = select.epoll()
        try:
            self._connect()
        except OSError:
            self.close()
            raise

    def _connect(self) -> None:
        deadline = time.monotonic() + _CONNECT_LIMIT_S
        while True:
            try:
                self._service.connect()
                break
            except BlockingIOError:  # its queue of new connections is full
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        self._lost_by = None
        self._epoll.register(self._service.control_fileno(), select.EPOLLIN)
        self._until(lambda: self._service.welcome is not None or self._lost_by is not None, self._answer_limit_s)
        self._check_connected()

    def reconnect(self) -> None:
        """After the server's death: connect to its successor. Volumes must be opened, buffers allocated, anew.

        What was outstanding has ended as ECONNRESET. Buffers of before stay readable, but can't be used in requests.
        """
        self._check_open()
        if self._service.is_connected:
            self._service.close()
        self._connect()

    def close(self) -> None:
        """Close volumes and connection (ovs_ctx_destroy). Buffers' memory stays until its last view is gone."""
        if self._is_closed:
            return
        for volume in list(self._volumes):
            volume.close()
        self._is_closed = True
        self._service.close()
        self._service.collect()
        self._epoll.close()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # Management: these never touch shared memory --------------------------------------------------------------

    def create_volume(self, name: str, size: int, *, is_whole: bool = True) -> VolumeStat:
        """Create a thin volume (ovs_create_volume). EEXIST; EINVAL: name or size; EFBIG: over max_volume_size. One that
        ``is_whole`` is not yet is gone when this process or the server ends before ``finish_volume``."""
        return self._call(control.Create(0, name, size, is_whole), control.Volume).info

    def finish_volume(self, name: str) -> VolumeStat:
        """A volume that was not whole when it was created here is, durably (beyond the C API). ENOENT, EINVAL."""
        return self._call(control.Finish(0, name), control.Volume).info

    def remove_volume(self, name: str, *, force: bool = False) -> None:
        """Remove a volume (ovs_remove_volume). ENOENT; EBUSY: held; ``force`` asks its holders to let go first."""
        self._call(control.Remove(0, name, force), control.Done)

    def truncate_volume(self, name: str, size: int) -> VolumeStat:
        """Grow a volume (ovs_truncate_volume). ENOENT; EPERM: smaller than it is; EFBIG: over max_volume_size."""
        return self._call(control.Resize(0, name, size), control.Volume).info

    def rename(self, name: str, new_name: str) -> VolumeStat:
        """Give a volume another name (beyond the C API); all else of it stays, its UUID, snapshots and records. ENOENT;
        EEXIST; EINVAL; EBUSY: somebody has it open to write."""
        return self._call(control.Rename(0, name, new_name), control.Volume).info

    def sanitize_volume(
        self,
        name: str,
        kind: str = "overwrite",
        patterns: Sequence[bytes] = (b"\0",),
        *,
        may_exit: bool = False,
    ) -> VolumeStat:
        """Overwrite a volume, or give all its space back, for good (beyond the C API): control.Sanitize says how.

        Returns when that has durably begun; stat_volume().sanitize says how far it has come, until it is None.
        Meanwhile every data operation on it is EBUSY. So is this call where one runs already, or another owner writes.
        """
        message = control.Sanitize(0, name, kind, list(patterns) if kind == "overwrite" else [], may_exit)
        return self._call(message, control.Volume).info

    def export_volume(self, name: str, path: str | os.PathLike[str], *, read_only: bool = False) -> None:
        """Serve a volume as a virtio disk: vhost-user-blk on a Unix socket at ``path`` (beyond the C API).

        The socket listens when this returns, until unexport_volume() or the server's end, and holds the volume. A
        snapshot, VOLUME@SNAPSHOT, is read-only in any case.
        EBUSY: another writes it; EEXIST, EADDRINUSE: something is at ``path``; EPERM: not of the server's user.
        """
        self._call(control.Export(0, name, os.path.abspath(path), read_only), control.Done)

    def unexport_volume(self, name: str) -> None:
        """End every export of a volume; what was under way is over when this returns. ENOENT: there is none."""
        self._call(control.Unexport(0, name), control.Done)

    def stat_volume(self, name: str) -> VolumeStat:
        """A volume's size, identity and holder, or a snapshot's (ovs_stat without opening). ENOENT."""
        return self._call(control.Stat(0, name), control.Volume).info

    def list_volumes(self) -> list[VolumeStat]:
        """Every volume (ovs_list_volumes)."""
        return self._call(control.List(0), control.Volumes).infos

    def stat_pool(self) -> PoolStat:
        """How full the file system of the volumes is (beyond the C API)."""
        return self._call(control.StatPool(0), control.Pool).info

    def list_handles(self) -> list[HandleStat]:
        """Every open handle of every client, with what it has moved (beyond the C API)."""
        return self._call(control.ListHandles(0), control.Handles).infos

    def create_snapshot(
        self, name: str, snapshot: str, *, labels: Mapping[str, str] | None = None, metadata: bytes = b""
    ) -> SnapshotStat:
        """What the volume is now, kept (ovs_snapshot_create); durable when this returns, while I/O goes on. ENOENT;
        EEXIST; EINVAL; EBUSY: it is being sanitized; EOPNOTSUPP: its store can't. There is no backend to wait for.

        Labels and opaque metadata are kept with it, at most 4096 bytes of them in all: E2BIG."""
        message = control.CreateSnapshot(0, name, snapshot, dict(labels or {}), metadata)
        return self._call(message, control.Snapshot).info

    def label_snapshot(
        self, name: str, snapshot: str, labels: Mapping[str, str | None], *, metadata: bytes | None = None
    ) -> SnapshotStat:
        """Set labels of a snapshot, or with None take them away, and replace its metadata (beyond the C API), durably.
        ENOENT; EINVAL, E2BIG: as create_snapshot()."""
        return self._call(control.LabelSnapshot(0, name, snapshot, dict(labels), metadata), control.Snapshot).info

    def list_snapshots(self, name: str) -> list[SnapshotStat]:
        """Every snapshot of a volume, by name (ovs_snapshot_list). ENOENT."""
        found: list[SnapshotStat] = []
        while True:
            after = found[-1].name if found else ""
            more = self._call(control.ListSnapshots(0, name, after), control.Snapshots).infos
            found += more
            if len(more) < control.MAX_SNAPSHOTS:
                return found

    def stat_snapshot(self, name: str, snapshot: str) -> SnapshotStat:
        """One snapshot (beyond the C API). ENOENT."""
        return self._call(control.StatSnapshot(0, name, snapshot), control.Snapshot).info

    def remove_snapshot(self, name: str, snapshot: str) -> None:
        """Forget a snapshot (ovs_snapshot_remove); its space comes back in the background. ENOENT; ENOTEMPTY: clones
        stand on it; EBUSY: somebody has it open."""
        self._call(control.RemoveSnapshot(0, name, snapshot), control.Done)

    def rollback_snapshot(self, name: str, snapshot: str, *, force: bool = False) -> VolumeStat:
        """The volume is what the snapshot is, its size too (ovs_snapshot_rollback); later snapshots go. ENOENT; EBUSY:
        somebody holds the volume or a later one (``force`` asks them to let go first); ENOTEMPTY: clones stand on later
        ones."""
        return self._call(control.RollBack(0, name, snapshot, force), control.Volume).info

    def clone_volume(self, name: str, snapshot: str | None, new_name: str) -> VolumeStat:
        """A new volume that is what a snapshot is, or without one what the template ``name`` is, and shares its space
        (not in the C API). ENOENT; EINVAL: no template; create_volume's."""
        return self._call(control.Clone(0, name, snapshot or "", new_name), control.Volume).info

    def set_volume_as_template(self, name: str) -> VolumeStat:
        """What a volume is now it is for ever, to be read and cloned (not in the C API); its snapshots go. ENOENT;
        EBUSY: somebody holds it; ENOTEMPTY: clones stand on its snapshots. Later changes of it are EROFS."""
        return self._call(control.MakeTemplate(0, name), control.Volume).info

    def list_changes(self, volume: Volume, base: Volume, offset: int) -> tuple[list[Change], int]:
        """One step of volume.changes(): (offset, length, whether there is data) each, and where the next step goes on:
        the volume's size behind the last. EBADF: closed. EINVAL: as changes(), or no page begins at ``offset``.
        """
        message = control.ListChanges(0, volume.device.handle, base.device.handle, offset)
        answer = self._call(message, control.Changes)
        return answer.runs, answer.next_offset

    def check_volume(self, name: str, *, renew: bool = False, on_progress: OnProgress | None = None) -> Checked:
        """Hold every page of the volume's snapshots against its checksum, and make those that are missing (beyond the C
        API). ``on_progress`` gets bytes done and bytes in all. ``renew``: control.Check. ENOENT."""
        return self._call(control.Check(0, name, renew), control.Checked, on_progress)

    def promote_volume(self, name: str, *, cancel: bool = False, on_progress: OnProgress | None = None) -> VolumeStat:
        """Copy what a clone has of others, so that it stands on nothing of theirs (not in the C API), while it is used;
        returns when that is done. Whoever does not wait does not end it: ``cancel`` does. ENOENT; EIO: a page can't be
        read; ENOSPC; ECANCELED; EBUSY: it is being sanitized."""
        return self._call(control.Promote(0, name, cancel), control.Volume, on_progress).info

    def get_record(self, name: str, record: str) -> tuple[int, bytes]:
        """Version and data of a volume's durable record (beyond the C API); (0, b"") where it was never put. ENOENT."""
        answer = self._call(control.GetRecord(0, name, record), control.Record)
        return answer.version, answer.data

    def put_record(self, name: str, record: str, version: int, data: bytes) -> int:
        """Replace version ``version``; returns the new one, durable. ESTALE: it has another one; E2BIG; ENOENT."""
        return self._call(control.PutRecord(0, name, record, version, data), control.Record).version

    def _call(self, message: control.Request, kind: type[_M], on_progress: OnProgress | None = None) -> _M:
        self._check_connected()
        answer = self._service.call(message, self._answer_limit_s, on_progress)
        if not isinstance(answer, kind):
            raise OSError(errno.EPROTO, f"the volume server answered with {type(answer).__name__}")
        return answer

    # Volumes and buffers -----------------------------------------------------------------------------------------

    def open(self, name: str, flags: int = os.O_RDWR, *, owner: str | None = None) -> Volume:
        """Open a volume (ovs_ctx_init): exactly O_RDONLY, O_WRONLY or O_RDWR. One writer, any number of readers.

        VOLUME@SNAPSHOT opens a snapshot, O_RDONLY (else EROFS); while it is open it can't go, nor can its volume.
        Volumes opened with the same ``owner`` share one writer's right. ENOENT; EBUSY: another owner writes; EINVAL.
        """
        access = _ACCESS.get(flags)
        if access is None:
            raise os_error(errno.EINVAL, f"open flags {flags:#x}: exactly O_RDONLY, O_WRONLY or O_RDWR")
        self._attach()
        answers: list[DeviceHandle | OSError] = []
        self._service.open(name, access, owner or "", self._service.words, answers.append)
        self._until(lambda: bool(answers))
        answer = answers[0]
        if isinstance(answer, OSError):
            raise answer
        volume = Volume(self, answer, flags)
        self._volumes.append(volume)
        return volume

    def close_volume(self, volume: Volume) -> None:
        """As volume.close()."""
        if volume.device.is_closed:
            return
        ends: list[OSError | None] = []
        volume.device.close(ends.append)
        self._volumes.remove(volume)
        self._until(lambda: bool(ends))
        self._service.collect()  # what was cancelled

    def allocate(self, size: int) -> Buffer:
        """A buffer of shared memory (ovs_allocate, ovs_buffer_data). EINVAL: size ≤ 0. ENOMEM: no room."""
        if size <= 0:
            raise os_error(errno.EINVAL, f"a buffer of {size} bytes")
        buffer = self._attach().allocate(size)
        if buffer is None:
            raise os_error(errno.ENOMEM, f"a buffer of {size} bytes")
        return buffer

    def deallocate(self, buffer: Buffer) -> None:
        """Give a buffer back (ovs_deallocate). EBUSY: a request has it. EFAULT: not this context's, or twice.

        ``buffer.data`` can't be used afterwards; slices made of it can, and see whatever comes there next.
        A buffer of before a reconnect() is simply let go.
        """
        if buffer.in_flight:
            raise os_error(errno.EBUSY, "a buffer that is in flight")
        if self._allocator is not None and self._allocator.owns(buffer):
            self._allocator.deallocate(buffer)
        elif buffer.owner is not self._token:
            raise os_error(errno.EFAULT, "a buffer that is not this context's, or was deallocated")
        else:
            buffer.owner = None

    def check_buffer(self, buffer: Buffer, start: int, length: int) -> None:
        """EFAULT unless the bytes lie in a buffer that this context can use in a request now."""
        allocator = self._allocator
        if allocator is None or not allocator.owns(buffer):
            raise os_error(errno.EFAULT, "a buffer that is not this context's")
        if start < 0 or start + length > buffer.size:
            raise os_error(errno.EFAULT, f"{length} bytes from {start} in a buffer of {buffer.size}")

    # Completions -------------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Submissions inside become visible together, at the end or when somebody waits: one doorbell for all."""
        self._batches += 1
        try:
            yield
        finally:
            self._batches -= 1
            self._service.flush()

    def flush_requests(self) -> None:
        """Show the server what a batch holds so far."""
        self._service.flush()

    def fileno(self) -> int:
        """Readable when poll() has something to do, from now on (the C API has no such thing: it has threads)."""
        self._check_open()
        self._is_polled = True
        self._service.arm()
        return self._epoll.fileno()

    def control_fileno(self) -> int:
        """Readable when the server has an event for us or is gone: poll() then. For who is idle between blocking calls,
        and need not be woken by completions. Another one after reconnect().
        """
        self._check_connected()
        return self._service.control_fileno()

    @property
    def is_connected(self) -> bool:
        """False from the moment that a call or poll() has seen the server's end, until reconnect()."""
        return self._lost_by is None and self._service.is_connected

    @property
    def pool(self) -> str:
        """Where the server keeps its volumes, in its own words; "" while not connected."""
        welcome = self._service.welcome
        return "" if welcome is None else welcome.pool

    def poll(self) -> int:
        """Handle what is there, without blocking: completions and their callbacks, events, the server's death."""
        self._check_open()
        service = self._service
        service.flush()
        service.control_ready()
        service.wake()
        handled = service.collect()
        if self._is_polled:
            service.arm()
        return handled

    def suspend(self, completions: Sequence[AioCompletion], timeout_s: float | None = None) -> None:
        """Block until one of them is done (ovs_aio_suspend). EAGAIN: none was in time."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not any(completion.done for completion in completions):
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise os_error(errno.EAGAIN, "waiting for completions")
            self._turn(left_s)
        if self._is_polled:
            self._service.arm()

    def finish(self, completion: AioCompletion) -> int:
        """Block until done; bytes done, or the OSError that it failed with."""
        while not completion.done:
            self._turn(None)
        if self._is_polled:
            self._service.arm()
        return completion.result()

    def submitted(self) -> None:
        """Show the server what was submitted, unless a batch is open."""
        if not self._batches:
            self._service.flush()

    def _until(self, is_done: Callable[[], bool], limit_s: float | None = None) -> None:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while not is_done():
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise OSError(errno.ETIMEDOUT, f"the volume server has not answered within {limit_s:g} s")
            self._turn(left_s)
        if self._is_polled:
            self._service.arm()

    def _turn(self, timeout_s: float | None) -> None:
        """Publish, and handle something; sleep until there is something."""
        service = self._service
        service.flush()
        if self.looks_first and 0 < service.in_flight <= SPIN_DEPTH:
            self._spin()
        if service.collect():
            return
        if not service.prepare_sleep():
            return
        control_fileno = service.control_fileno()
        assert control_fileno >= 0, "waiting for a server that is not there"
        if service.wants_write:
            self._epoll.modify(control_fileno, select.EPOLLIN | select.EPOLLOUT)
        ready = self._epoll.poll(timeout_s)
        if service.wants_write:
            self._epoll.modify(control_fileno, select.EPOLLIN)
        service.wake()
        for descriptor, _ in ready:
            if descriptor == control_fileno:
                service.control_ready()

    def _spin(self) -> None:
        """Look at the ring for a while, giving way to others.

        To sleep and to be woken cost both sides more than an answer that comes at once: on two cores a 4 KiB read at
        depth one takes 11 µs so, 26 without, and less of either's CPU. In vain, it is left out for a while.
        """
        if self._vain_spins:
            self._vain_spins -= 1
            return
        has_pending = self._service.has_pending
        deadline = time.monotonic() + SPIN_S
        while not has_pending():
            os.sched_yield()
            if time.monotonic() > deadline:
                self._vain_spins = VAIN_SPINS
                return

    # The service's side ------------------------------------------------------------------------------------------

    def _attach(self) -> BufferAllocator:
        self._check_connected()
        if self._allocator is None:
            ends: list[OSError | None] = []
            self._service.attach(ends.append)
            self._until(lambda: bool(ends))
            if ends[0] is not None:
                raise ends[0]
            self._allocator = BufferAllocator(self._service.pool, self._token)
            self._epoll.register(self._service.doorbell_fileno(), select.EPOLLIN)
            if self._is_polled:
                self._service.arm()
        return self._allocator

    def _event(self, event: control.Event) -> None:
        if self._on_event is not None:
            self._on_event(event)
        self._service.ack(event)

    def _lost(self, error: OSError) -> None:
        """The descriptors are still open: forget them."""
        self._lost_by = error
        self._allocator = None
        for descriptor in (self._service.control_fileno(), self._service.doorbell_fileno()):
            if descriptor >= 0:
                try:
                    self._epoll.unregister(descriptor)
                except OSError:
                    pass  # it was lost before it was registered

    def _check_connected(self) -> None:
        self._check_open()
        error = self._lost_by
        if error is not None:
            raise OSError(error.errno, error.strerror)
        if not self._service.is_connected:
            raise OSError(errno.ECONNRESET, "not connected to the volume server: reconnect() failed")

    def _check_open(self) -> None:
        if self._is_closed:
            raise os_error(errno.EBADF, "a context that is closed")
