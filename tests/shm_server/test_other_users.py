"""Processes of other users, listed or not: nothing that they hand over, or share with us, makes the loop wait.

Where the server falls for one of these it answers nobody any more, and the witness runs into its own limit.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from shm_server import eventfds
from shm_server.abi import control, layout
from shm_server.abi.layout import Opcode
from tests.shm_server.abi_client import AbiClient
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.interfaces.machines import loses_its_device
from tests.shm_server.vhost_front_end import IN, OK, FrontEnd

MIB = 1 << 20
LISTED, UNLISTED = 65533, 65534
FULL = (1 << 64) - 2

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root to be somebody else")


@contextmanager
def user(uid: int) -> Iterator[None]:
    """Who connects now is this one for ever (SO_PEERCRED)."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where everybody may go."""
    made = Path(tempfile.mkdtemp(prefix="ovs-users-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def server(start_server: Callable[..., ServerProcess], directory: Path) -> ServerProcess:
    made = start_server(directory, shm_server={"allowed_uids": [LISTED]})
    made.pool.chmod(0o755)
    return made


@pytest.fixture
def witness(server: ServerProcess) -> Iterator[Callable[[], None]]:
    """Call it: the server answers others."""
    with Context(server.socket_path, segment_bytes=MIB, answer_limit_s=10.0) as context:
        context.create_volume("disk", 16 * MIB)

        def ask() -> None:
            assert context.stat_volume("disk").size_bytes == 16 * MIB

        yield ask
        ask()
    assert "mistake of the server" not in server.log()


@pytest.fixture
def lingering() -> Iterator[int]:
    """A TCP connection with unsent data, for whose end close(2) waits an hour."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        pass
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    fd = ours.detach()
    yield fd
    peer.close()  # which ends all waiting
    os.close(fd)


def give(connection: socket.socket, data: bytes, fd: int) -> None:
    """``fd`` goes with ``data``, and the other side is the last to have it: ours is another file from now on."""
    socket.send_fds(connection, [data], [fd])
    spare = os.open(os.devnull, os.O_RDONLY)
    os.dup2(spare, fd)
    os.close(spare)


def make_waiting(fd: int) -> None:
    """Whoever writes to this eventfd waits."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    os.eventfd_write(fd, FULL)


@pytest.mark.parametrize("uid", [0, LISTED, UNLISTED])
def test_a_descriptor_that_takes_long_to_close(
    server: ServerProcess, witness: Callable[[], None], lingering: int, uid: int
) -> None:
    """It is closed, with the connection that it came by, where nobody waits for it."""
    with user(uid):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.socket_path))
    with client:
        give(client, control.encode(control.Hello(1, layout.ABI_VERSION)), lingering)
        witness()
    witness()


def test_a_descriptor_that_nobody_has_read(server: ServerProcess, witness: Callable[[], None], lingering: int) -> None:
    """It lies in the socket's queue when the server closes that."""
    with user(UNLISTED):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.socket_path))
    with client:
        client.settimeout(20)
        while client.recv(65536):  # why it is refused
            pass
        try:
            give(client, b"x" * 10, lingering)
        except BrokenPipeError:
            pass
    witness()


def test_a_doorbell_that_is_full(server: ServerProcess, witness: Callable[[], None]) -> None:
    """A listed user's client gets its completions although ringing for them would wait for ever."""
    with user(LISTED):
        client = AbiClient(server.socket_path)
    with client:
        client.attach()
        client.open("disk")
        client.read(0, 4096)
        make_waiting(client.completion_bell.fileno())
        for _ in range(3):
            client.words[layout.WORD_CLIENT_SLEEPS] = 1
            tag = client.push(Opcode.READ, 0, 4096, [(0, 0, 4096)])
            assert client.wait(tag)[1:3] == (0, 0)
            witness()


@pytest.fixture
def export(server: ServerProcess, witness: Callable[[], None], directory: Path) -> Path:
    with Context(server.socket_path) as context:
        context.export_volume("disk", directory / "vm.sock")
    return directory / "vm.sock"


def machine(export: Path) -> FrontEnd:
    with user(LISTED):
        made = FrontEnd(export)
    return made.seal()


def test_eventfds_that_wait(export: Path, witness: Callable[[], None]) -> None:
    """A listed user's machine whose kick and call would wait is served, and nobody waits."""
    with machine(export) as guest:
        guest.setup()
        assert guest.request(IN, read_bytes=512)[0] == OK
        make_waiting(guest.call)
        fcntl.fcntl(guest.kick, fcntl.F_SETFL, 0)
        for _ in range(3):  # the first of them empties the counter
            assert guest.request(IN, read_bytes=512)[0] == OK
            witness()


def test_what_a_machine_of_another_user_hands_over(export: Path, witness: Callable[[], None], lingering: int) -> None:
    """A connection that lingers, in the place of anything, costs the machine its device and nobody any time."""
    for request, payload in ((13, bytes(8)), (12, bytes(8)), (5, bytes(40)), (21, b""), (1, b"")):
        with machine(export) as guest:
            guest.negotiate()
            socket.send_fds(guest.socket, [struct.pack("<III", request, 1, len(payload)) + payload], [lingering])
            loses_its_device(guest)
            witness()
    with machine(export) as guest:
        guest.negotiate()
        give(guest.socket, struct.pack("<III", 13, 1, 8) + bytes(8), lingering)
        guest.socket.shutdown(socket.SHUT_WR)
        witness()


@pytest.mark.parametrize("is_socket", [False, True], ids=["pipe", "socket"])
def test_other_calls_are_for_our_own_user(export: Path, witness: Callable[[], None], is_socket: bool) -> None:
    """A call may be a pipe or, as User Mode Linux's, a socket, where its owner could stop us anyway; a kick may not."""
    ends = [end.detach() for end in socket.socketpair()] if is_socket else list(os.pipe())
    for is_ours, request, goes_on in ((True, 13, True), (False, 13, False), (True, 12, False)):
        with FrontEnd(export) if is_ours else machine(export) as guest:
            guest.negotiate()
            guest.send(request, bytes(8), [ends[1]])
            if goes_on:
                assert guest.ask_u64(1)
                assert os.read(ends[0], 8) == struct.pack("<Q", 1)
            else:
                with pytest.raises((EOFError, ConnectionError)):
                    guest.ask_u64(1)
    for fd in ends:
        os.close(fd)


def test_a_signal_never_waits() -> None:
    """It counts as a write does, as often as one likes; at the counter's end it changes nothing."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    for _ in range(1000):
        eventfds.signal(fd)
    assert os.eventfd_read(fd) == 1000
    os.eventfd_write(fd, FULL)
    for _ in range(3):
        eventfds.signal(fd)
    assert os.eventfd_read(fd) >= FULL
    os.close(fd)
    with pytest.raises(OSError, match=r"Invalid argument|Bad file"):
        eventfds.signal(fd)
