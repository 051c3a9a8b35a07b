"""``testing.initiator`` on a TCP connection, blocking, every wait bounded: for tests and scripts against a real server.

    with SocketInitiator("127.0.0.1", 3260) as initiator:
        initiator.login("iqn.2016-01.com.openvstorage:demo")
        result = initiator.command(cdb, read=512)

The conversation itself (RFC 7143) is ``Initiator``'s; this file knows sockets and deadlines only.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from iscsi_ovs.testing.initiator import Buffer, Initiator, Received, Result


class LoginRefusedError(Exception):
    """The target refused the login with this status."""

    def __init__(self, status: tuple[int, int]) -> None:
        super().__init__(f"login refused with status {status[0]:02x}/{status[1]:02x}")
        self.status = status


class SocketInitiator:
    """An Initiator on a TCP connection; every wait ends after ``timeout_s``."""

    def __init__(self, host: str, port: int, timeout_s: float = 10.0, **identity: Any) -> None:
        self.initiator = Initiator(**identity)
        self.timeout_s = timeout_s
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def login(self, target: str | None, **keys: Any) -> None:
        """Log in, or raise LoginRefusedError."""
        initiator = self.initiator
        initiator.login_status = None
        initiator.login(target, **keys)
        self._until(lambda: initiator.is_logged_in or bool(initiator.login_status and initiator.login_status[0]))
        if not initiator.is_logged_in:
            assert initiator.login_status is not None
            raise LoginRefusedError(initiator.login_status)

    def command(self, cdb: bytes, **options: Any) -> Result:
        """Initiator.command, and wait for its result."""
        return self.wait(self.initiator.command(cdb, **options))

    def tmf(self, function: int, **options: Any) -> Result:
        return self.wait(self.initiator.tmf(function, **options))

    def nop_out(self, data: Buffer = b"") -> Result:
        return self.wait(self.initiator.nop_out(data))

    def text(self, pairs: Iterable[tuple[str, str]] | Buffer) -> Result:
        return self.wait(self.initiator.text(pairs))

    def send_targets(self, value: str = "All") -> dict[str, list[str]]:
        """Target names with their addresses."""
        targets: dict[str, list[str]] = {}
        name = ""
        for key, found in self.wait(self.initiator.send_targets(value)).pairs:
            if key == "TargetName":
                targets[name := found] = []
            elif key == "TargetAddress":
                targets[name].append(found)
        return targets

    def logout(self) -> Result:
        return self.wait(self.initiator.logout())

    def wait(self, itt: int) -> Result:
        """Pump until this request is answered."""
        self._until(lambda: self.initiator.results[itt].is_complete)
        return self.initiator.results[itt]

    def flush(self) -> None:
        """Send what is to be sent, without waiting for an answer."""
        data = self.initiator.to_send()
        if data:
            self._socket.sendall(data)

    def pump(self) -> list[Received]:
        """Send, then take one helping from the target. Raises EOFError, TimeoutError."""
        self.flush()
        data = self._socket.recv(1 << 20)
        if not data:
            raise EOFError("the target closed the connection")
        received = self.initiator.feed(data)
        self.flush()
        return received

    def _until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not is_done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"no answer within {self.timeout_s} s")
            self._socket.settimeout(remaining)
            self.pump()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> SocketInitiator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
