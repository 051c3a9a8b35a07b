"""The control link: typed messages on the volume server's Unix socket, from an event loop or synchronously.

Requests get their id here and their one reply goes to their callback; events go to ``on_event``; descriptors that
arrive by SCM_RIGHTS are kept, close-on-exec, until the reply that brought them is handled. The end of the stream is
the death of the server: every callback outstanding gets an OSError (ECONNRESET; EPROTO where the server said what
can't be), then ``on_dead``. Nothing here blocks but ``call``. It knows no rings and no volumes.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket
import time
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from shm_server.abi import control

Answer: TypeAlias = "control.Reply | OSError"
Callback: TypeAlias = Callable[[Answer], None]
OnProgress: TypeAlias = Callable[[int, int], object]  # done, total

OUTSTANDING_LIMIT = 4096  # requests without a reply
MAX_RECEIVES = 32  # turns of 64 KiB in one ready(): events must not hold the loop
_RECEIVE_BYTES = 65536
_ANCILLARY_BYTES = socket.CMSG_SPACE(control.ATTACH_DESCRIPTORS * array.array("i").itemsize)
_MAX_PATH_BYTES = 107  # sockaddr_un


class ControlLink:
    """One connection to the server; a new one needs a new link."""

    def __init__(
        self, socket_path: str, on_event: Callable[[control.Event], None], on_dead: Callable[[OSError], None]
    ) -> None:
        self.socket_path = socket_path
        self._on_event = on_event
        self._on_dead = on_dead
        self._socket: socket.socket | None = None
        self._reader = control.AnswerReader()
        self._output = bytearray()
        self._callbacks: dict[int, Callback] = {}
        self._on_progress: dict[int, OnProgress] = {}
        self._next_id = 1
        self._descriptors: list[int] = []
        self.dead: OSError | None = None

    def connect(self) -> None:
        """Connect without blocking. OSError with a sentence that names the socket where nobody answers."""
        path = self.socket_path
        if len(os.fsencode(path)) > _MAX_PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, f"a Unix socket's path has at most {_MAX_PATH_BYTES} bytes: {path}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            raise OSError(error.errno, _connect_words(error, path)) from None
        self._socket = connection

    def fileno(self) -> int:
        """The socket's descriptor, or -1."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """True while output waits for the socket."""
        return bool(self._output)

    # Talking -----------------------------------------------------------------------------------------------------

    def request(self, message: control.Request, callback: Callback, on_progress: OnProgress | None = None) -> int:
        """Send a request; ``callback`` gets its reply or an OSError, from ready(). Its id is given here and returned.
        ``on_progress`` is told how far it has come, where it is one that takes long.

        Raises OSError only where the link is dead already, or OUTSTANDING_LIMIT is reached (EAGAIN).
        """
        if self.dead is not None:
            raise self.dead
        if len(self._callbacks) >= OUTSTANDING_LIMIT:
            raise OSError(errno.EAGAIN, f"{OUTSTANDING_LIMIT} control requests are unanswered")
        number = self._next_id
        self._next_id += 1
        self._callbacks[number] = callback
        if on_progress is not None:
            self._on_progress[number] = on_progress
        self._send(control.encode(msgspec.structs.replace(message, id=number)))
        return number

    def acknowledge(self, event: control.Event) -> None:
        """Tell the server that an event has been acted on."""
        if self.dead is None:
            self._send(control.encode(control.Ack(event.sequence)))

    def call(
        self, message: control.Request, timeout_s: float | None = None, on_progress: OnProgress | None = None
    ) -> control.Reply:
        """Send a request and block until its reply. OSError: the server's errno, the link's, or ETIMEDOUT: it was
        silent for so long."""
        answers: list[Answer] = []
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def progressed(done: int, total: int) -> None:
            nonlocal deadline
            if timeout_s is not None:
                deadline = time.monotonic() + timeout_s
            if on_progress is not None:
                on_progress(done, total)

        number = self.request(message, answers.append, progressed)
        poller = select.poll()
        while not answers:
            left_ms = None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)
            poller.register(self.fileno(), select.POLLIN | (select.POLLOUT if self._output else 0))
            if not poller.poll(left_ms):
                self._callbacks[number] = _forget
                self._on_progress.pop(number)
                raise OSError(errno.ETIMEDOUT, f"the volume server did not answer {type(message).__name__} in time")
            self.ready()
        if isinstance(answers[0], OSError):
            raise answers[0]
        return answers[0]

    def take_descriptors(self) -> list[int]:
        """The descriptors that came so far; the caller owns them now."""
        taken, self._descriptors = self._descriptors, []
        return taken

    # The socket --------------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """Send what waits, receive what is there, call back. Never raises because of the server."""
        if self._output:
            self._send(b"")
        for _ in range(MAX_RECEIVES):
            if self._socket is None or self.dead is not None:
                return
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(
                    _RECEIVE_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError as error:
                self.die(OSError(error.errno, f"the volume server is gone: {error.strerror}"))
                return
            self._keep_descriptors(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > control.ATTACH_DESCRIPTORS:
                self.die(OSError(errno.EPROTO, "the volume server sent too many descriptors"))
                return
            if not data:
                self.die(OSError(errno.ECONNRESET, f"the volume server closed {self.socket_path}"))
                return
            try:
                messages = self._reader.feed(data)
            except control.ControlError as error:
                self.die(OSError(errno.EPROTO, f"the volume server sent {error.strerror}"))
                return
            for message in messages:
                if self.dead is None:
                    self._handle(message)
            if len(data) < _RECEIVE_BYTES:
                return

    def _handle(self, message: control.Reply | control.Event) -> None:
        if isinstance(message, control.Progressed):
            if (on_progress := self._on_progress.get(message.id)) is not None:
                on_progress(message.done, message.total)
            return
        if isinstance(message, control.Event):
            self._on_event(message)
            return
        if message.id == 0 and isinstance(message, control.Failed):
            self.die(OSError(message.errno, message.message))
            return
        callback = self._callbacks.pop(message.id, None)
        self._on_progress.pop(message.id, None)
        if callback is None:
            self.die(OSError(errno.EPROTO, f"the volume server replied to request {message.id}, which nobody made"))
        elif isinstance(message, control.Failed):
            callback(OSError(message.errno, message.message))
        else:
            callback(message)
        if isinstance(message, control.Attached):
            for descriptor in self.take_descriptors():
                os.close(descriptor)  # nobody wanted it

    def _send(self, data: bytes) -> None:
        self._output += data
        if self._socket is None:
            return
        try:
            while self._output:
                del self._output[: self._socket.send(self._output)]
        except BlockingIOError:
            pass
        except OSError:
            self._output.clear()  # reading will say why, after whatever the server said last

    def _keep_descriptors(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
                self._descriptors.extend(numbers)

    # The end -----------------------------------------------------------------------------------------------------

    def die(self, error: OSError) -> None:
        """The link is over: every callback gets ``error``, then on_dead. The socket stays open until close()."""
        if self.dead is not None:
            return
        self.dead = error
        callbacks, self._callbacks = self._callbacks, {}
        self._on_progress.clear()
        for callback in callbacks.values():
            callback(error)
        self._on_dead(error)

    def close(self) -> None:
        """Close the socket: the server frees what we held. No callback is called any more."""
        if self.dead is None:
            self.dead = OSError(errno.ENOTCONN, "the link to the volume server was closed")
        self._callbacks.clear()
        self._on_progress.clear()
        self._output.clear()
        for descriptor in self.take_descriptors():
            os.close(descriptor)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _forget(_: Answer) -> None:
    """The callback of a request that nobody waits for any more."""


def _connect_words(error: OSError, path: str) -> str:
    if error.errno == errno.ENOENT:
        return f"no volume server: there is no socket {path}"
    if error.errno == errno.ECONNREFUSED:
        return f"no volume server answers at {path}: the one that made this socket is gone"
    if error.errno == errno.EAGAIN:
        return f"the volume server on {path} is too busy to accept a connection"
    return f"can't reach the volume server on {path}: {error.strerror}"
