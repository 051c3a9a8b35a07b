"""Owners for the loop under test: one whose connections echo, one whose connections are real and log in."""

from __future__ import annotations

import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from iscsi_ovs import pdu, scsi
from iscsi_ovs.errors import LoginError
from iscsi_ovs.login.policy import OPEN, Policy
from iscsi_ovs.net import driver
from iscsi_ovs.net.clock import Clock
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.space import Space
from iscsi_ovs.storage.slots import SlotPool

TARGET = "iqn.2016-01.com.openvstorage:demo"
LIMIT_S = 10.0


class NoStorage:
    """A volume server's client with nothing to do."""

    in_flight = 0

    def collect(self) -> int:
        return 0

    def flush(self) -> None: ...

    def prepare_sleep(self) -> bool:
        return True

    def awake(self) -> None: ...

    def has_pending(self) -> bool:
        return False


class Hand:
    """Real time, and what a test adds to it."""

    def __init__(self) -> None:
        self.added = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added


class EchoConnection:
    """What the loop needs of a connection: sends back what it gets, or whatever ``say`` is told."""

    def __init__(self, owner: EchoOwner, name: str) -> None:
        self.name = name
        self.owner = owner
        self.is_closed = False
        self.is_logging_in = False
        self.wants_read = True
        self.echoes = True
        self.taken = bytearray()
        self.ends: list[str] = []
        self.sendmsgs = 0
        self.has_let_go = False
        self._buffer = bytearray(65536)
        self._out: deque[memoryview] = deque()

    @property
    def has_output(self) -> bool:
        return bool(self._out)

    def receive_buffers(self) -> list[memoryview]:
        assert not self.is_closed, "a closed connection takes nothing"
        return [memoryview(self._buffer)[:1000], memoryview(self._buffer)[1000:]]

    def received(self, count: int, now: float) -> list[Any]:
        if count == 0:
            return self.lost("closed by its peer")
        self.taken += self._buffer[:count]
        if self.echoes:
            self.say(bytes(self._buffer[:count]))
        return [bytes(self._buffer[:count])]

    def say(self, data: bytes) -> None:
        self._out.append(memoryview(data))
        self.owner.driver.output_ready(self)  # type: ignore[arg-type]

    def data_to_send(self) -> list[memoryview]:
        return list(self._out)[:64]

    def sent(self, count: int) -> None:
        self.sendmsgs += 1
        while count:
            piece = self._out.popleft()
            if count < len(piece):
                self._out.appendleft(piece[count:])
                return
            count -= len(piece)

    def end(self) -> None:
        self.is_closed = True
        self.wants_read = False

    def lost(self, reason: str) -> list[Any]:
        if self.is_closed:
            return []
        self.end()
        self.ends.append(reason)
        return [reason]

    def tick(self, now: float) -> list[Any]:
        return []

    def let_go(self) -> None:
        self._out.clear()
        self.has_let_go = True


class Owner:
    """What both owners are: a loop on a real listening socket, turned by the test."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.hand = Hand()
        self.clock = Clock(self.hand)
        self.ticks = 0
        self.driver = driver.Driver(self, NoStorage(), self.clock)
        self.address = self.driver.listen(Address(host, 0))
        self.connections: list[Any] = []
        self.locals: list[Address] = []
        self.happenings: list[tuple[Any, Any]] = []

    def connect(self, **options: Any) -> socket.socket:
        """A client that is accepted already."""
        count = len(self.connections)
        client = socket.create_connection((self.address.host, self.address.port), LIMIT_S, **options)
        self.until(lambda: len(self.connections) > count)
        return client

    def until(self, condition: Callable[[], object], *clients: socket.socket) -> None:
        """Turn until it is so; asleep while nothing happens, neither in the loop nor at these clients."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, "it never came true"
            if not self.driver.turn(True, may_sleep=False):
                select.select([self.driver._epoll, *clients], [], [], self.clock.until_next(driver.TICK_S))

    def read(self, client: socket.socket, count: int) -> bytes:
        """Exactly so many bytes of what a client gets, the loop turning meanwhile."""
        data = bytearray()
        self.until(lambda: not _take(client, data, count) or len(data) >= count, client)
        return bytes(data)

    def read_some(self, client: socket.socket) -> bytes:
        data = bytearray()
        self.until(lambda: not _take(client, data, 65536) or data, client)
        return bytes(data)

    def read_to_end(self, client: socket.socket) -> bytes:
        data = bytearray()
        self.until(lambda: not _take(client, data, 1 << 30), client)
        return bytes(data)

    def step(self) -> bool:
        """One turn that does not sleep; whether it found anything."""
        return self.driver.turn(True, may_sleep=False)

    def pass_time(self, seconds: float) -> None:
        """So much time passes, and the loop looks at the clock."""
        self.hand.added += seconds
        self.driver.turn(True, may_sleep=False)

    def turn_in_background(self) -> threading.Thread:
        """For clients that block: run() on a thread; end it by driver.stop()."""
        thread = threading.Thread(target=self.driver.run)
        thread.start()
        return thread

    # Owner's side of the loop

    def connected(self, peer: str, local: Address, now: float, at: Address) -> Any:
        self.locals.append(local)
        self.connections.append(self.make(peer, now))
        return self.connections[-1]

    def make(self, peer: str, now: float) -> Any:
        raise NotImplementedError

    def happened(self, connection: Any, told: list[Any]) -> None:
        self.happenings.extend((connection, event) for event in told)

    def turn(self) -> bool:
        return False

    def tick(self, now: float) -> None:
        self.ticks += 1

    def close(self) -> None:
        self.driver.close()


def _take(client: socket.socket, data: bytearray, limit: int) -> bool:
    """What is there now, up to ``limit`` in all; False at the end of the stream."""
    while select.select([client], [], [], 0)[0] and len(data) < limit:
        piece = client.recv(min(1 << 20, limit - len(data)))
        if not piece:
            return False
        data += piece
    return True


class EchoOwner(Owner):
    """Its connections echo."""

    def make(self, peer: str, now: float) -> EchoConnection:
        return EchoConnection(self, peer)


class LoginOwner(Owner):
    """Its connections are iSCSI's; whoever logs in to TARGET is let in."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()
        self.space.attach(SlotPool(memoryview(bytearray(64 << 16)), 1 << 16), [])
        self.log: list[str] = []

    def make(self, peer: str, now: float) -> Connection:
        connection = Connection(self, 1, now, peer)
        connection.on_log = self.log.append
        return connection

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        return [(TARGET, [f"{self.address},1"])]

    def check_session(self, request: pdu.LoginRequest) -> bool:
        return False

    def check_target(self, name: str) -> None:
        if name != TARGET:
            raise LoginError(2, 3, f"no target {name!r}")

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        return OPEN

    def random_bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)

    def output_ready(self, connection: Connection) -> None:
        self.driver.output_ready(connection)

    def happened(self, connection: Connection, told: list[Any]) -> None:
        super().happened(connection, told)
        for event in told:
            if isinstance(event, events.LoginOpened):
                parameters = event.parameters
                nexus = scsi.Nexus(parameters.initiator_name, parameters.isid, parameters.target_name or "", 1)
                _, more = connection.admit(nexus, 1, self.clock.now())
                self.happened(connection, more)
