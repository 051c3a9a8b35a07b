"""The loop on real loopback sockets: what peers do to them, and what that costs the others (nothing)."""

from __future__ import annotations

import array
import fcntl
import logging
import os
import random
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.net import driver, portal
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.testing.initiator import Initiator, encode
from tests.net.owners import TARGET, EchoOwner, LoginOwner

ROOT = Path(__file__).parents[2]


@pytest.fixture
def echo() -> Iterator[EchoOwner]:
    owner = EchoOwner()
    yield owner
    owner.close()


@pytest.fixture
def login() -> Iterator[LoginOwner]:
    owner = LoginOwner()
    yield owner
    owner.close()


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Sockets of the test's, closed behind it."""
    made: list[socket.socket] = []
    yield made
    for client in made:
        client.close()


@pytest.fixture
def connect(echo: EchoOwner, clients: list[socket.socket]) -> Callable[[], socket.socket]:
    def make() -> socket.socket:
        clients.append(echo.connect())
        return clients[-1]

    return make


Connect = Callable[[], socket.socket]


def reset(client: socket.socket) -> None:
    """Close so that the other side gets a RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def unread(sock: socket.socket) -> int:
    """Bytes that wait in a socket."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


class Counting:
    """A socket whose receives are counted."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.receives = 0

    def recv_into(self, view: Any) -> int:
        self.receives += 1
        return self._sock.recv_into(view)

    def close(self) -> None:
        self._sock.close()


def channel_of(echo: Any, number: int = -1) -> driver.Channel:
    return echo.driver._by_connection[echo.connections[number]]


# Bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_come_back(echo: EchoOwner, connect: Connect) -> None:
    """Several clients at once, pieces of any size: every byte, in order."""
    chance = random.Random(5)
    pairs = [(connect(), chance.randbytes(200_000)) for _ in range(3)]
    for client, data in pairs:
        client.setblocking(False)
        at, got = 0, bytearray()
        while len(got) < len(data):
            if at < len(data):
                with pytest.MonkeyPatch.context():
                    try:
                        at += client.send(data[at : at + chance.randint(1, 9000)])
                    except BlockingIOError:
                        pass
            echo.step()
            try:
                got += client.recv(65536)
            except BlockingIOError:
                pass
        assert bytes(got) == data


def test_a_slow_reader(echo: EchoOwner, connect: Connect) -> None:
    """It gets all in the end by many partial sends; writability is watched for that long and no longer."""
    slow, other = connect(), connect()
    said = random.Random(1).randbytes(24 << 20)
    echo.connections[0].say(said[: 8 << 20])
    echo.connections[0].say(said[8 << 20 :])
    echo.step()
    assert channel_of(echo, 0).mask & driver._WRITE
    sends = echo.connections[0].sendmsgs
    echo.step()
    assert echo.connections[0].sendmsgs == sends, "nothing is tried while the socket is full"
    other.sendall(b"meanwhile")
    assert echo.read(other, 9) == b"meanwhile"
    assert echo.read(slow, len(said)) == said
    echo.until(lambda: not echo.connections[0].has_output)
    assert echo.connections[0].sendmsgs > 3
    assert channel_of(echo, 0).mask == driver._READ


def test_who_does_not_want_to_read_is_not_asked(echo: EchoOwner, connect: Connect) -> None:
    """Bytes wait in the socket while a connection wants none, without turning in circles, and are there afterwards."""
    client = connect()
    echo.connections[0].wants_read = False
    echo.connections[0].say(b"wait")
    assert echo.read(client, 4) == b"wait"
    client.sendall(b"later")
    assert not echo.step()
    assert not echo.step()
    assert echo.connections[0].taken == b""
    echo.connections[0].wants_read = True
    echo.connections[0].say(b"now")
    assert echo.read(client, 8) == b"nowlater"


def test_one_socket_does_not_take_the_loop(echo: EchoOwner, connect: Connect) -> None:
    """A peer that always has more gets so many system calls in a turn, then the others have theirs."""
    busy = connect()
    channel_of(echo).sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    echo.connections[0].echoes = False
    busy.setblocking(False)
    try:
        while True:
            busy.send(bytes(1 << 20))
    except BlockingIOError:
        pass
    assert unread(channel_of(echo).sock) > (driver._RECEIVES_A_TURN + 1) << 16
    echo.step()
    assert 0 < len(echo.connections[0].taken) <= driver._RECEIVES_A_TURN << 16


def test_one_socket_does_not_take_the_time(echo: EchoOwner, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose bytes take long to be understood, a thousand small PDUs in each helping, gives way as well."""
    busy = connect()
    connection = echo.connections[0]
    connection.echoes = False
    helpings: list[int] = []

    def receive(count: int, now: float) -> list[bytes]:
        helpings.append(count)
        echo.hand.added += 2 * driver._RECEIVE_S
        return [b""]

    monkeypatch.setattr(connection, "received", receive)
    busy.sendall(bytes(256 << 10))
    while not helpings:
        echo.step()
    assert len(helpings) == 1


def test_what_the_clock_says_is_sent_at_once(
    echo: EchoOwner, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late answer (a deadline, a ping) does not wait for the next event: the loop does not sleep on it."""
    client = connect()
    while echo.step():
        pass
    echo.clock.call_later(0.0, lambda: echo.connections[0].say(b"late"))
    assert echo.step(), "there is something to send, so the loop is busy"
    with monkeypatch.context() as patch:
        patch.setattr(echo.driver.storage, "prepare_sleep", lambda: pytest.fail("it goes to sleep on it"))
        echo.driver.turn(True)
    assert client.recv(4) == b"late"


def test_who_waits_has_a_turn_after_sending(echo: EchoOwner, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots come back with the last byte of an answer: nothing else may come by which the loop would wake."""
    client = connect()
    seen: list[bool] = []
    flushes: list[bool] = []
    monkeypatch.setattr(echo, "turn", lambda: (seen.append(echo.driver.has_unsent), True)[1])
    monkeypatch.setattr(echo.driver.storage, "flush", lambda: flushes.append(echo.driver.has_unsent))
    client.sendall(b"answer me")
    echo.read(client, 9)
    assert True in seen, "after what came in"
    assert seen[-1] is False, "after what went out"
    assert flushes[-1] is False, "and what it led to is shown to the volume server"


# Ends -------------------------------------------------------------------------------------------------------------


def test_half_closed(echo: EchoOwner, connect: Connect) -> None:
    """A peer that has said its last word gets the answers that are under way, then the end."""
    client = connect()
    client.sendall(b"x" * 1000)
    client.shutdown(socket.SHUT_WR)
    assert echo.read_to_end(client) == b"x" * 1000
    assert echo.connections[0].ends == ["closed by its peer"]
    echo.until(lambda: not echo.driver._channels)


def test_reset(echo: EchoOwner, connect: Connect) -> None:
    """A connection that is reset is told to its owner once, and is gone."""
    client, other = connect(), connect()
    reset(client)
    echo.until(lambda: echo.connections[0].ends)
    assert len(echo.connections[0].ends) == 1
    assert "reset" in echo.connections[0].ends[0].lower()
    assert len(echo.driver._channels) == 1
    other.sendall(b"ok")
    assert echo.read(other, 2) == b"ok"


def test_what_is_closed_lets_go(login: LoginOwner, clients: list[socket.socket]) -> None:
    """The buffers of a connection go with its socket: a thousand connections are no 64 MiB until Python tidies up."""
    client = login.connect()
    clients.append(client)
    client.sendall(b"\x43" + bytes(20))
    connection = login.connections[0]
    framing = connection._framing
    login.until(lambda: not framing.is_between_pdus)
    buffer = framing._scratch.obj
    client.close()
    login.until(lambda: connection.is_closed)
    login.step()
    held = sys.getrefcount(buffer)
    assert held == 2, "who asks, and sys.getrefcount"


def test_reset_under_output(echo: EchoOwner, connect: Connect) -> None:
    """The same while much is still to be sent: what waited is let go."""
    client = connect()
    echo.connections[0].say(bytes(32 << 20))
    echo.step()
    assert echo.connections[0].has_output
    reset(client)
    echo.until(lambda: echo.connections[0].ends)
    assert not echo.connections[0].has_output
    assert echo.driver._channels == {}


def test_reset_while_it_is_not_read(echo: EchoOwner, connect: Connect) -> None:
    """An admission is pending and nothing is read: a reset is noticed all the same."""
    client = connect()
    echo.connections[0].wants_read = False
    echo.connections[0].say(b"x")
    assert echo.read(client, 1) == b"x"
    reset(client)
    echo.until(lambda: echo.connections[0].ends)
    assert echo.driver._channels == {}


def test_reset_before_it_was_accepted(echo: EchoOwner, clients: list[socket.socket]) -> None:
    """A peer that is gone before anybody looked costs nothing, and the next one is served."""
    reset(socket.create_connection((echo.address.host, echo.address.port)))
    clients.append(echo.connect())
    clients[0].sendall(b"ok")
    assert echo.read(clients[0], 2) == b"ok"
    echo.until(lambda: len(echo.driver._channels) == 1)


def test_dropped_by_what_came_on_another(echo: EchoOwner, connect: Connect) -> None:
    """Both connections are ready in one turn, and the first one's event ends the second: its bytes go nowhere."""
    one, two = connect(), connect()

    def happened(source: Any, told: list[Any]) -> None:
        other = echo.connections[1 - echo.connections.index(source)]
        if not other.is_closed:
            other.end()
            echo.driver.closing(other)

    echo.happened = happened  # type: ignore[method-assign]
    one.sendall(b"1")
    two.sendall(b"2")
    echo.until(lambda: any(found.is_closed for found in echo.connections))
    loser = next(number for number, found in enumerate(echo.connections) if found.is_closed)
    assert echo.connections[loser].ends == [], "it was dropped, not lost"
    assert echo.read_to_end((one, two)[loser]) == b""
    assert echo.read((one, two)[1 - loser], 1) == b"12"[1 - loser : 2 - loser or None]


def test_our_mistake_costs_one_connection(echo: EchoOwner, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """An exception on the way in, on the way out, or in its end: logged with its traceback, and the others go on."""
    receiving, sending, ending, fine = connect(), connect(), connect(), connect()
    broken = echo.connections[:3]

    def fail(*_: object) -> Any:
        raise ZeroDivisionError("a bug")

    broken[0].received = fail
    broken[1].sent = fail
    broken[2].received = broken[2].lost = fail
    for client in (receiving, sending, ending):
        client.sendall(b"x")
    with caplog.at_level(logging.ERROR, "iscsi_ovs.net"):
        echo.until(lambda: len(echo.driver._channels) == 1)
    assert [record.exc_info is not None for record in caplog.records] == [True] * 4
    fine.sendall(b"ok")
    assert echo.read(fine, 2) == b"ok"


def test_a_closed_connection_that_nobody_closes(echo: EchoOwner, connect: Connect) -> None:
    """A peer that does not close after us is let go after a while; so is one that does not take its last answers."""
    idle, full = connect(), connect()
    echo.connections[1].say(bytes(32 << 20))
    for found in echo.connections:
        found.end()
        echo.driver.closing(found)
    echo.step()
    assert idle.recv(1) == b"", "our end is closed at once"
    assert len(echo.driver._channels) == 2
    echo.pass_time(driver.TICK_S)
    assert len(echo.driver._channels) == 2
    echo.pass_time(driver._LINGER_S + 0.1)
    echo.pass_time(driver._LINGER_S + 0.1)
    assert echo.driver._channels == {}
    assert not echo.connections[1].has_output
    assert full.fileno() >= 0


def test_a_refused_peer_that_goes_on(echo: EchoOwner, connect: Connect) -> None:
    """What a closed connection still gets is thrown away in turns, not in one go."""
    flood = connect()
    channel = channel_of(echo)
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    echo.connections[0].end()
    echo.driver.closing(echo.connections[0])
    echo.step()
    assert channel.is_draining
    flood.setblocking(False)
    try:
        while True:
            flood.send(bytes(1 << 20))
    except BlockingIOError:
        pass
    channel.sock = counting = Counting(channel.sock)  # type: ignore[assignment]
    echo.step()
    assert counting.receives == driver._RECEIVES_A_TURN
    flood.close()
    echo.until(lambda: not echo.driver._channels)


# Accepting --------------------------------------------------------------------------------------------------------


def test_accept_limit(echo: EchoOwner, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit a connection is closed at once; when one ends there is room again."""
    monkeypatch.setattr(driver, "MAX_CHANNELS", 2)
    first, _ = connect(), connect()
    with socket.create_connection((echo.address.host, echo.address.port)) as third:
        assert echo.read_to_end(third) == b""
    first.close()
    echo.until(lambda: len(echo.driver._channels) == 1)
    connect()


def test_at_the_limit_who_does_not_log_in_gives_way(
    echo: EchoOwner, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that has not for longest; sessions stay."""
    monkeypatch.setattr(driver, "MAX_CHANNELS", 3)
    clients = [connect() for _ in range(3)]
    session, silent, late = echo.connections
    silent.is_logging_in = late.is_logging_in = True
    for gone, stays in ((clients[1], clients[2]), (clients[2], clients[0])):
        connect()
        assert echo.read_to_end(gone) == b""
        stays.sendall(b"here")
        assert echo.read(stays, 4) == b"here"
    assert silent.ends == late.ends == ["others want to connect, and it has not logged in"]
    assert not session.ends


OUT_OF_DESCRIPTORS = """
import resource, socket
from tests.net.owners import EchoOwner
echo = EchoOwner()
clients = [socket.create_connection((echo.address.host, echo.address.port)) for _ in range(4)]
spare = socket.socket()
lowest_free = spare.fileno()
spare.close()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, hard))
echo.until(lambda: len(echo.connections) == 2)
echo.step()
assert not echo.step(), "the loop turns in circles"
clients[0].sendall(b"served")
assert echo.read(clients[0], 6) == b"served"
clients[1].close()
echo.until(lambda: len(echo.driver._channels) == 1)
assert len(echo.connections) == 2, "it looks again after a while, not at once"
echo.pass_time(1.1)
echo.until(lambda: len(echo.connections) >= 3)
clients[2].sendall(b"late")
assert echo.read(clients[2], 4) == b"late"
echo.close()
print("done")
"""


def test_out_of_descriptors() -> None:
    """EMFILE on accept: said in the log, no busy loop, the others are served, and accepting goes on when it can."""
    ran = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
    assert ran.stderr.count("can't accept a connection: Too many open files") in (1, 2), ran.stderr


def test_an_inherited_socket(echo: EchoOwner) -> None:
    """A socket that listens already is taken over, whatever its address; its real port is told."""
    listener = portal.listen(Address("::1", 0))
    port = listener.getsockname()[1]
    assert echo.driver.listen(Address("::1", 0), listener.detach()) == Address("::1", port)
    with socket.create_connection(("::1", port)):
        echo.until(lambda: echo.connections)
    assert echo.locals == [Address("::1", port)]
    assert echo.connections[0].name.startswith("[::1]:")


def test_ipv4_on_a_socket_of_both_families() -> None:
    """What an initiator reached us at is IPv4 if it came by IPv4, or it could not use SendTargets' answer."""
    echo = EchoOwner("::")
    with socket.create_connection(("127.0.0.1", echo.address.port)):
        echo.until(lambda: echo.connections)
    assert echo.locals == [Address("127.0.0.1", echo.address.port)]
    assert echo.connections[0].name.startswith("127.0.0.1:")
    echo.close()


# The loop itself --------------------------------------------------------------------------------------------------


def test_stop_from_another_thread(echo: EchoOwner, monkeypatch: pytest.MonkeyPatch) -> None:
    """run() ends, asleep or not, without a tick; close() tells every connection; a stop after that does nothing."""
    monkeypatch.setattr(driver, "TICK_S", 1000.0)
    thread = echo.turn_in_background()
    client = socket.create_connection((echo.address.host, echo.address.port), 5)
    client.sendall(b"up")
    assert client.recv(2) == b"up"
    echo.driver.stop()
    thread.join(10)
    assert not thread.is_alive()
    echo.driver.close()
    assert echo.connections[0].ends == ["the target stops"]
    assert client.recv(1) == b""
    client.close()
    echo.driver.stop()
    echo.close = lambda: None  # type: ignore[method-assign]


def test_other_descriptors(echo: EchoOwner) -> None:
    """A watched descriptor calls back with its mask; an unwatched one does not, and may be closed before."""
    ours, theirs = socket.socketpair()
    masks: list[int] = []
    echo.driver.watch(ours.fileno(), masks.append)
    theirs.send(b"x")
    echo.until(lambda: masks)
    assert masks == [driver._READ]
    echo.driver.rewatch(ours.fileno(), driver._WRITE)
    echo.until(lambda: len(masks) > 1)
    assert masks[-1] == driver._WRITE
    number = ours.fileno()
    ours.close()
    theirs.close()
    echo.driver.unwatch(number)
    echo.driver.unwatch(number)
    echo.step()


def test_ticks(echo: EchoOwner) -> None:
    """Once a second, however much or little happens."""
    echo.step()
    ticks = echo.ticks
    for _ in range(50):
        echo.step()
    assert echo.ticks == ticks
    echo.pass_time(driver.TICK_S)
    assert echo.ticks == ticks + 1


# With the protocol core -------------------------------------------------------------------------------------------


def test_a_refusal_is_really_received(login: LoginOwner, clients: list[socket.socket]) -> None:
    """A peer that sends more behind a login that is refused still reads the refusal: the end is no reset."""
    clients.append(login.connect())
    initiator = Initiator()
    initiator.login("iqn.2016-01.com.openvstorage:none")
    clients[0].sendall(initiator.to_send())
    clients[0].sendall(encode(pdu.NopOut(initiator_task_tag=1), bytes(8000)) * 20)
    login.until(lambda: login.connections[0].is_closed)
    login.until(lambda: not login.driver._channels or channel_of(login).is_draining)
    initiator.feed(login.read_to_end(clients[0]))
    assert initiator.login_status == (2, 3)
    clients[0].close()
    login.until(lambda: not login.driver._channels)


def test_no_login_in_time(login: LoginOwner, clients: list[socket.socket]) -> None:
    """Who connects and says nothing is let go when the login's time is over; who has logged in stays."""
    clients += [login.connect(), login.connect()]
    initiator = Initiator()
    initiator.login(TARGET)
    while not initiator.is_logged_in:
        clients[0].sendall(initiator.to_send())
        initiator.feed(login.read_some(clients[0]))
    login.pass_time(Timing().login_s - 1.0)
    assert [found.is_closed for found in login.connections] == [False, False]
    login.pass_time(2.0)
    login.step()
    assert [found.is_closed for found in login.connections] == [False, True]
    assert login.read_to_end(clients[1]) == b""


def test_garbage(login: LoginOwner, clients: list[socket.socket]) -> None:
    """Bytes that are no iSCSI end that connection, with a reason, and no other."""
    clients += [login.connect(), login.connect()]
    clients[0].sendall(b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n" * 3)
    login.until(lambda: login.connections[0].is_closed)
    login.read_to_end(clients[0])
    initiator = Initiator()
    initiator.login(TARGET)
    while not initiator.is_logged_in:
        clients[1].sendall(initiator.to_send())
        initiator.feed(login.read_some(clients[1]))


def test_nothing_is_left_open() -> None:
    """A loop that is closed holds no descriptor any more."""
    before = len(os.listdir("/proc/self/fd"))
    owner = EchoOwner()
    for _ in range(3):
        owner.connect().close()
    owner.connections[-1].say(b"x")
    owner.step()
    owner.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_portal_that_is_given_up(echo: EchoOwner, connect: Callable[[], socket.socket]) -> None:
    """Nobody new comes in there; who is in stays in, and other portals go on."""
    client = connect()
    other = echo.driver.listen(Address("127.0.0.1", 0))
    echo.driver.unlisten(echo.address)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((echo.address.host, echo.address.port), 1.0)
    client.sendall(b"still there")
    echo.until(lambda: echo.connections[0].taken == b"still there")
    assert client.recv(64) == b"still there"
    with socket.create_connection((other.host, other.port), 5.0):
        echo.until(lambda: len(echo.connections) == 2)
