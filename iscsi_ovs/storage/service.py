"""The whole client, non-blocking: what the iSCSI target's event loop drives, and what the library waits on.

    service.connect()                 Hello; then, unless told otherwise, Attach and Subscribe → on_attached(infos)
    service.control_fileno()          readable (writable while wants_write) → control_ready()
    service.doorbell_fileno()         readable → wake(), then collect()
    one turn of a loop                collect() … submit to devices … flush(); prepare_sleep() before it sleeps

Nothing here blocks, and what the server does never raises into the loop. At its end (EOF, garbage on the socket, an
index or tag that can't be on a ring) every control callback gets its OSError, every outstanding request completes as
UNREACHABLE (what can't be repeated: OUTCOME_UNKNOWN), then ``on_lost`` is called with both descriptors still open so
that the loop can forget them. Callbacks come from control_ready() and collect() only, never from inside the call that
started the work. Not thread-safe.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from iscsi_ovs.storage.attachment import Attachment
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.storage.link import Answer, Callback, ControlLink, OnProgress
from iscsi_ovs.storage.queue import Mistake, RingQueue
from iscsi_ovs.storage.slots import SlotPool
from shm_server.abi import control, layout

DEFAULT_SEGMENT_BYTES = 16 << 20

Opening = Callable[["DeviceHandle | OSError"], None]
Ending = Callable[["OSError | None"], None]
Recording = Callable[["control.Record | OSError"], None]
_M = TypeVar("_M", bound=control.Message)


class Service:
    """One client of one volume server. After on_lost, connect() starts anew; handles and buffers don't survive that."""

    def __init__(
        self,
        socket_path: str,
        *,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
        words: str = "",
        ring_entries: int = layout.DEFAULT_RING_ENTRIES,
        management_only: bool = False,
    ) -> None:
        """``words`` say who we are, for people; ``management_only``: neither Attach nor Subscribe by itself."""
        self.socket_path = socket_path
        self.words = words
        self._segment_bytes = segment_bytes
        self._ring_entries = ring_entries
        self._management_only = management_only
        self._link: ControlLink | None = None
        self._attachment: Attachment | None = None
        self._queue: RingQueue | None = None
        self._devices: dict[int, DeviceHandle] = {}
        self._later: deque[Callable[[], None]] = deque()
        self.welcome: control.Welcome | None = None
        self.on_attached: Callable[[list[control.VolumeInfo]], None] | None = None
        self.on_lost: Callable[[OSError], None] | None = None
        self.on_event: Callable[[control.Event], None] | None = None
        self.on_mistake: Mistake | None = None  # a request's callback raised; None: collect() raises it. Set it early

    # Connecting --------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Start: OSError at once where no server listens; everything later is told by on_attached or on_lost."""
        assert self._link is None, "connected already (and never connect from inside on_lost)"
        link = ControlLink(self.socket_path, self._event, self._lost)
        link.connect()
        self._link = link
        link.request(control.Hello(0, layout.ABI_VERSION, self.words), self._welcomed)

    def _welcomed(self, answer: Answer) -> None:
        welcome = self._expect(answer, control.Welcome)
        if welcome is None:
            return
        if welcome.version != layout.ABI_VERSION:
            self._break(errno.EPROTO, f"the volume server speaks version {welcome.version}, not {layout.ABI_VERSION}")
            return
        self.welcome = welcome
        if not self._management_only:
            self.attach(self._attached)

    def _attached(self, error: OSError | None) -> None:
        if error is not None:
            self._break(error.errno or errno.EIO, error.strerror or str(error))
        else:
            # Only now: the server may answer requests out of order, and volumes are of no use without a segment.
            self.request(control.Subscribe(0), self._subscribed)

    def _subscribed(self, answer: Answer) -> None:
        volumes = self._expect(answer, control.Volumes)
        if volumes is not None and self.on_attached is not None:
            self.on_attached(volumes.infos)

    def attach(self, callback: Ending) -> None:
        """Ask for segment and rings; the callback gets None or the OSError (the link goes on without them)."""

        def attached(answer: Answer) -> None:
            link = self._link
            if isinstance(answer, control.Attached) and link is not None:
                try:
                    self._attachment = Attachment(answer, link.take_descriptors(), self._later)
                    self._queue = self._attachment.queue
                    self._queue.on_mistake = self.on_mistake
                    callback(None)
                except OSError as error:
                    callback(error)
            else:
                callback(_not_an_answer(answer))

        self.request(control.Attach(0, self._segment_bytes, self._ring_entries), attached)

    @property
    def is_connected(self) -> bool:
        return self._link is not None and self._link.dead is None

    @property
    def is_attached(self) -> bool:
        return self._attachment is not None

    @property
    def pool(self) -> SlotPool:
        """Where buffers come from (block.Pool). Only while attached; a new attachment has a new pool."""
        if self._attachment is None:
            raise OSError(errno.ENOTCONN, "not attached to a volume server")
        return self._attachment.pool

    # The event loop's side ---------------------------------------------------------------------------------------

    def control_fileno(self) -> int:
        """The control socket, or -1."""
        return -1 if self._link is None else self._link.fileno()

    def doorbell_fileno(self) -> int:
        """The completion doorbell, or -1 while not attached."""
        return -1 if self._attachment is None else self._attachment.queue.fileno()

    @property
    def wants_write(self) -> bool:
        """True while control output waits for the socket."""
        return self._link is not None and self._link.wants_write

    def control_ready(self, readable: bool = True, writable: bool = False) -> None:
        """The control socket is ready: send, receive, call back."""
        link = self._link
        if link is not None and (readable or writable):
            link.ready()

    def collect(self) -> int:
        """Call back every completion that is there; returns how many. The hot half of a turn."""
        queue = self._queue
        handled = 0 if queue is None else queue.collect()
        if self._later:
            handled += self._call_later()
        if queue is not None and queue.broken is not None:
            self._break(errno.EPROTO, f"the volume server broke its ring: {queue.broken}")
        return handled

    def flush(self) -> None:
        """Show the server every request submitted so far, by one store and at most one doorbell."""
        if self._queue is not None:
            self._queue.flush()

    def has_pending(self) -> bool:
        """True where collect() would find something: for a bounded poll before sleeping."""
        return bool(self._later) or (self._queue is not None and self._queue.has_pending())

    @property
    def in_flight(self) -> int:
        """Requests that the server has, or will have at the next flush."""
        return 0 if self._queue is None else self._queue.in_flight

    def prepare_sleep(self) -> bool:
        """Flush, and say that we are about to wait on the descriptors. False: don't, collect() first."""
        if self._later:
            return False
        return self._queue is None or self._queue.prepare_sleep()

    def wake(self) -> None:
        """We have stopped waiting, whatever woke us."""
        if self._queue is not None:
            self._queue.wake()

    def awake(self) -> None:
        """As wake(), for a loop that watches the doorbell edge-triggered (a system call less a turn)."""
        if self._queue is not None:
            self._queue.awake()

    def arm(self) -> None:
        """Make sure that the doorbell's descriptor becomes readable when there is something to collect."""
        if self._queue is not None and not self.prepare_sleep():
            self._queue.ring_self()

    def _call_later(self) -> int:
        later = self._later
        count = len(later)
        for _ in range(count):
            if not later:
                break
            later.popleft()()
        return count

    # Volumes -----------------------------------------------------------------------------------------------------

    def open(self, name: str, access: str, owner: str, words: str, callback: Opening) -> None:
        """Open a volume: access "r", "w" or "rw"; handles with one owner token share one writer's right."""

        def opened(answer: Answer) -> None:
            if not isinstance(answer, control.Opened):
                callback(_not_an_answer(answer))
            elif (attachment := self._attachment) is None:
                callback(OSError(errno.ENOTCONN, "the volume server is gone"))
            else:
                device = DeviceHandle(attachment, answer, access, self._close_device)
                self._devices[device.handle] = device
                callback(device)

        if self._attachment is None:
            error = OSError(errno.ENOTCONN, "not attached to a volume server")
            self._later.append(partial(callback, error))
        else:
            self.request(control.Open(0, name, access, owner, words), opened)

    def _close_device(self, device: DeviceHandle, callback: Ending) -> None:
        def closed(answer: Answer) -> None:
            self._devices.pop(device.handle, None)
            callback(None if isinstance(answer, control.Done) else _not_an_answer(answer))

        if device.is_lost:
            self._later.append(partial(callback, None))  # the server that knew the handle is gone, and so is the handle
            return
        # The fence goes through the ring: all that was submitted before has its completion when it is answered.
        device.fence(lambda: self.request(control.Close(0, device.handle), closed))
        self.flush()

    def get_record(self, name: str, record: str, callback: Recording) -> None:
        """A volume's durable record (CONTRACTS 6); version 0 and no data where it was never put."""
        self.request(control.GetRecord(0, name, record), partial(_recorded, callback))

    def put_record(self, name: str, record: str, version: int, data: bytes, callback: Recording) -> None:
        """Replace version ``version`` of a record. The answer is the new version, durable and known to the volume's
        other holders; ESTALE: somebody else replaced it first (their RecordChanged event has come before)."""
        self.request(control.PutRecord(0, name, record, version, data), partial(_recorded, callback))

    def sanitize(self, message: control.Sanitize, callback: Callable[[control.VolumeInfo | OSError], None]) -> None:
        """Overwrite or erase a volume for good; called back when that has durably begun. Events tell how it goes on."""

        def begun(answer: Answer) -> None:
            callback(answer.info if isinstance(answer, control.Volume) else _not_an_answer(answer))

        self.request(message, begun)

    def stat(self, name: str, callback: Callable[[control.VolumeInfo | OSError], None]) -> None:
        """What the catalogue knows of a volume."""

        def told(answer: Answer) -> None:
            callback(answer.info if isinstance(answer, control.Volume) else _not_an_answer(answer))

        self.request(control.Stat(0, name), told)

    def stat_pool(self, callback: Callable[[control.PoolInfo | OSError], None]) -> None:
        """How full the file system of the volumes is."""

        def told(answer: Answer) -> None:
            callback(answer.info if isinstance(answer, control.Pool) else _not_an_answer(answer))

        self.request(control.StatPool(0), told)

    def request(self, message: control.Request, callback: Callback) -> None:
        """Send any control request (its id is set here); the callback gets the reply or an OSError, later."""
        try:
            if self._link is None:
                raise OSError(errno.ENOTCONN, "not connected to a volume server")
            self._link.request(message, callback)
        except OSError as error:
            self._later.append(partial(callback, error))

    def call(
        self, message: control.Request, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> control.Reply:
        """The same, blocking: for the library's management calls."""
        if self._link is None:
            raise OSError(errno.ENOTCONN, "not connected to a volume server")
        return self._link.call(message, timeout_s, on_progress)

    def ack(self, event: control.Event) -> None:
        """We have acted on an event; whoever waits for that in the server goes on."""
        if self._link is not None:
            self._link.acknowledge(event)

    def _event(self, event: control.Event) -> None:
        if isinstance(event, control.VolumeResized | control.VolumeChanged | control.VolumeRenamed):
            for device in self._devices.values():
                if device.info.uuid == event.info.uuid:
                    device.update(event.info)
        if self.on_event is not None:
            self.on_event(event)
        else:
            self.ack(event)

    # The end -----------------------------------------------------------------------------------------------------

    def _expect(self, answer: Answer, kind: type[_M]) -> _M | None:
        """The reply if it is of the kind, else None and the link is over (or was already)."""
        if isinstance(answer, kind):
            return answer
        if self.is_connected:
            error = _not_an_answer(answer)
            self._break(error.errno or errno.EIO, error.strerror or str(error))
        return None

    def _break(self, number: int, words: str) -> None:
        if self._link is not None:
            self._link.die(OSError(number, words))

    def _lost(self, error: OSError) -> None:
        """The link is dead and its callbacks are called: now the requests, then on_lost, then the descriptors."""
        link, attachment = self._link, self._attachment
        self._devices.clear()
        self._queue = None
        if attachment is not None:
            for completion in attachment.abandon():
                if completion.request.done is not None:
                    completion.request.done(completion)
        if self.on_lost is not None:
            self.on_lost(error)
        self._link = self._attachment = self.welcome = None
        if link is not None:
            link.close()
        if attachment is not None:
            attachment.close()

    def close(self) -> None:
        """Leave: the server frees all that we held. Outstanding requests complete as UNREACHABLE; on_lost is called."""
        self._break(errno.ENOTCONN, "the link to the volume server was closed")


def _recorded(callback: Recording, answer: Answer) -> None:
    callback(answer if isinstance(answer, control.Record) else _not_an_answer(answer))


def _not_an_answer(answer: Answer) -> OSError:
    if isinstance(answer, OSError):
        return answer
    return OSError(errno.EPROTO, f"the volume server answered with {type(answer).__name__}")
