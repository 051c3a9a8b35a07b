"""One client as the server sees it: its control socket, what it asked for and was not answered yet, its attachment.

Bytes in become requests; replies and events go out through a bounded queue, so that a client that does not read costs
itself only. This file decides nothing: requests.py does.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from shm_server.abi import control, layout, segment
from shm_server.abi.doorbell import Doorbell
from shm_server.dispatch import Attachment
from shm_server.eventfds import GuardedDoorbell
from shm_server.runtime import Wait
from shm_server.volumes.handle import Handle

MAX_OUTPUT_BYTES = 2 * control.MAX_ANSWER_BYTES  # replies and events that a client has not read
MAX_REQUESTS = 256  # control requests of one client in progress
RECEIVE_BYTES = 64 << 10

_UCRED_BYTES = 12  # pid, uid, gid
_MOST_DESCRIPTORS = 253  # SCM_MAX_FD: what is not taken the kernel closes, on our thread


class ClientError(OSError):
    """This client is refused: told so by Failed(id 0), logged, and closed."""


class Client:
    def __init__(self, connection: socket.socket, number: int) -> None:
        self.socket = connection
        self.number = number
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED_BYTES)
        self.pid, self.uid, _ = memoryview(credentials).cast("I")
        self.is_trusted = self.uid in (0, os.getuid())  # it could end us by a signal, and needs no tricks
        self._strays: list[int] = []
        self.words = f"pid {self.pid}"
        self.reader = control.RequestReader()
        self.is_greeted = False
        self.is_attaching = False
        self.is_closed = False
        self.is_closing = False  # refused: what it still says is thrown away
        self.is_lingering = False  # and so are we silent
        self.is_doomed = False  # closed at the end of this turn
        self.is_subscribed = False
        self.requests = 0
        self.attachment: Attachment | None = None
        self.bell: Doorbell | None = None  # the client rings it: submissions
        self.segment_bytes = 0
        self.acks: dict[int, Callable[[], None]] = {}
        self.on_output_change: Callable[[], None] = _nothing
        self._is_blocked = False
        self._sequence = 0
        self._next_handle = 0
        self._output: deque[tuple[bytes, Sequence[int]]] = deque()
        self._output_bytes = 0

    def next_handle(self) -> int:
        """Handle numbers are not used again."""
        self._next_handle += 1
        return self._next_handle

    def handles(self) -> list[Handle]:
        return list(self.attachment.handles.values()) if self.attachment else []

    def handle(self, number: int) -> Handle:
        """EBADF: it has no such handle."""
        handle = self.attachment.handles.get(number) if self.attachment else None
        if handle is None:
            raise OSError(errno.EBADF, f"there is no handle {number}")
        return handle

    # Output ---------------------------------------------------------------------------------------------------------

    def send(self, message: control.Message, descriptors: Sequence[int] = ()) -> None:
        """Queue a message and send what can be sent. The descriptors are ours to keep or, once sent, closed by us."""
        if self.is_closed:
            _close(descriptors)
            return
        data = control.encode(message)
        if self._output_bytes + len(data) > MAX_OUTPUT_BYTES:
            _close(descriptors)
            raise ClientError(errno.ENOBUFS, f"{self._output_bytes} bytes of replies and events are not being read")
        self._output.append((data, descriptors))
        self._output_bytes += len(data)
        self.flush()

    def send_event(self, make: Callable[[int], control.Event], acknowledged: Wait[None] | None = None) -> None:
        """Send an event; ``acknowledged`` is set at its Ack, or when the client goes."""
        self._sequence += 1
        if acknowledged is not None:
            self.acks[self._sequence] = acknowledged.set
        self.send(make(self._sequence))

    def flush(self) -> None:
        """Send what the socket takes. Raises OSError where the client has gone."""
        while self._output:
            data, descriptors = self._output[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self.socket, [data], list(descriptors))
                else:
                    sent = self.socket.send(data)
            except BlockingIOError:
                if not self._is_blocked:
                    self._is_blocked = True
                    self.on_output_change()
                return
            _close(descriptors)
            self._output_bytes -= sent
            if sent == len(data):
                self._output.popleft()
            else:
                self._output[0] = (data[sent:], ())
        if self._is_blocked:
            self._is_blocked = False
            self.on_output_change()
            if self.is_lingering:
                self.end_output()

    def end_output(self) -> None:
        """No reply will follow those that are queued."""
        self.is_lingering = True
        if not self._output:
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    @property
    def wants_to_send(self) -> bool:
        return bool(self._output)

    # Input ----------------------------------------------------------------------------------------------------------

    def receive(self) -> list[control.Request] | None:
        """Requests that have come in; None: the client has gone. Raises ControlError for what can't be read."""
        try:
            data = self._take()
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        if self._strays:
            raise control.ControlError("descriptors with a control message")
        return self.reader.feed(data) if data else None

    def discard(self) -> bool:
        """Throw away what has come in; False: the client has gone."""
        try:
            return bool(self._take()) and not self._strays
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    def _take(self) -> bytes:
        """Descriptors that come with it are kept until they can be closed where that may take long."""
        data, strays, _, _ = socket.recv_fds(self.socket, RECEIVE_BYTES, _MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        self._strays += strays
        return data

    # Attaching ------------------------------------------------------------------------------------------------------

    def attach(self, slots_fd: int, slot_count: int, submissions: int, completions: int) -> list[int]:
        """Map the segment ``slots_fd`` and new rings. Returns the descriptors to send, which are the sender's to close.

        Owns ``slots_fd`` from here on. Where something can't be had, nothing stays: clients try again.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, slots_fd)
            rings_fd = segment.create_rings(submissions, completions, layout.SLOT_BYTES, slot_count)
            undo.callback(os.close, rings_fd)
            slots_map = mmap.mmap(slots_fd, slot_count * layout.SLOT_BYTES)
            rings_map = mmap.mmap(rings_fd, layout.ring_mapping_bytes(submissions, completions))
            bells = []
            for kind in (Doorbell, Doorbell if self.is_trusted else GuardedDoorbell):
                bells.append(kind())
                undo.callback(bells[-1].close)
            sent = []
            for fd in (slots_fd, bells[0].fileno(), bells[1].fileno()):
                sent.append(os.dup(fd))
                undo.callback(os.close, sent[-1])
            undo.pop_all()
        self.bell, completion_bell = bells
        self.attachment = Attachment(
            self.words, rings_map, slots_map, slots_fd, (submissions, completions), completion_bell
        )
        return [sent[0], rings_fd, *sent[1:]]

    def close(self) -> Callable[[], None] | None:
        """The control socket, and whoever waits for an Ack. The attachment may live on (requests.py).

        What is returned is still to be closed, on a thread: descriptors that came, or are in the socket's queue, may
        be files that nobody answers for, or TCP connections that linger.
        """
        self.is_closed = True
        apart: Callable[[], None] | None = None
        if self.is_trusted and not self._strays:
            self.socket.close()
        else:
            apart = partial(_close_all, self.socket, self._strays)
        for _, descriptors in self._output:
            _close(descriptors)
        self._output.clear()
        acks, self.acks = self.acks, {}
        for acknowledge in acks.values():
            acknowledge()
        return apart


def _close_all(connection: socket.socket, descriptors: Sequence[int]) -> None:
    connection.close()
    _close(descriptors)


def _nothing() -> None:
    pass


def _close(descriptors: Sequence[int]) -> None:
    for fd in descriptors:
        os.close(fd)
