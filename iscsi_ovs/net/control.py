"""The control socket of a target process: an operator's request is a line of JSON, and so is the answer.

    {"request": "reload"}  →  {"done": ["LUN 1 of iqn… added: more"]}  or  {"error": "config.toml: …"}

It is a Unix socket of our own user's, in a directory that only we can enter. ``ask`` is the other end of it, for the
command line. What a request does is its handler's business; an answer is made at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.net.driver import Driver

logger = logging.getLogger("iscsi_ovs.net")

Handler = Callable[[], list[str]]

_LINE_BYTES = 4096
_CLIENTS = 8
_ANSWER_LIMIT_S = 0.1  # whoever asked reads; the loop waits no longer for that
_SO_PEERCRED_BYTES = 12  # struct ucred: pid, uid, gid


class ControlSocket:
    """Listens at a path, for as long as the process lives."""

    def __init__(self, driver: Driver, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Raises OSError EADDRINUSE where another process answers there."""
        self._driver = driver
        self._path = path
        self._handlers = handlers
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self._listener = _listen(path)
        driver.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Nobody is there any more."""
        for fd in list(self._clients):
            self._drop(fd)
        self._driver.unwatch(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self, mask: int) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= _CLIENTS or _uid_of(client) not in (0, os.geteuid()):
            client.close()
            return
        client.setblocking(False)
        fd = client.fileno()
        self._clients[fd] = client, bytearray()
        self._driver.watch(fd, lambda mask: self._read(fd))

    def _read(self, fd: int) -> None:
        client, data = self._clients[fd]
        try:
            piece = client.recv(_LINE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        data += piece
        if b"\n" in data:
            try:
                answer = json.dumps(self._answer(bytes(data))).encode() + b"\n"
                client.settimeout(_ANSWER_LIMIT_S)  # a long one goes in pieces
                client.sendall(answer)
            except OSError:
                pass  # who asked has gone, or does not read
        elif piece and len(data) < _LINE_BYTES:
            return
        self._drop(fd)

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            name = json.loads(line)["request"]
            handler = self._handlers[name]
        except (ValueError, TypeError, LookupError, RecursionError):
            return {"error": "that is no request"}
        try:
            return {"done": handler()}
        except ConfigurationError as error:
            return {"error": str(error)}

    def _drop(self, fd: int) -> None:
        client, _ = self._clients.pop(fd)
        self._driver.unwatch(fd)
        client.close()


def ask(path: Path, request: str, timeout_s: float) -> list[str]:
    """Ask the target that listens at ``path``. OSError where none answers; ConfigurationError is its refusal."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                client.connect(os.fspath(path))
                break
            except BlockingIOError:  # its queue of new connections is full
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)
        client.sendall(json.dumps({"request": request}).encode() + b"\n")
        with client.makefile("rb") as file:
            line = file.readline()
    if not line:
        raise OSError(errno.ECONNRESET, "it closed the connection")
    answer = json.loads(line)
    if "error" in answer:
        raise ConfigurationError(answer["error"])
    done: list[str] = answer["done"]
    return done


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _clear(path)
        before = os.umask(0o077)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(before)
        listener.listen(_CLIENTS)
    except OSError:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    """The socket of a process that is dead is in nobody's way."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EADDRINUSE, f"{path} is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise OSError(errno.EADDRINUSE, f"another target answers at {path}")


def _uid_of(client: socket.socket) -> int:
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED_BYTES)
    return int.from_bytes(credentials[4:8], sys.byteorder)
