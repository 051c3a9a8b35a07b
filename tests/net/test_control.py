"""The control socket of a target process: a line each way, for our own user; the socket of the dead is taken over."""

from __future__ import annotations

import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.net.control import ControlSocket, ask
from tests.net.owners import EchoOwner


class Room:
    """A loop with a control socket; what it is asked for is noted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = EchoOwner()
        self.asked = 0
        self.refusal: str | None = None
        self.done = ["LUN 1 added"]
        self.control = ControlSocket(self.owner.driver, path, {"reload": self._reload})

    def _reload(self) -> list[str]:
        self.asked += 1
        if self.refusal is not None:
            raise ConfigurationError(self.refusal)
        return self.done

    def ask(self, request: str = "reload") -> list[str]:
        """From another thread, as another process would."""
        answers: list[list[str] | Exception] = []

        def run() -> None:
            try:
                answers.append(ask(self.path, request, 10.0))
            except Exception as error:
                answers.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        self.owner.until(lambda: bool(answers))
        thread.join()
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        self.control.close()
        self.owner.close()


@pytest.fixture
def room(short_dir: Path) -> Iterator[Room]:
    room = Room(short_dir / "target.sock")
    yield room
    room.close()
    assert not room.path.exists()


def test_done_and_refused(room: Room) -> None:
    """What was done comes back; a refusal is the error that it was."""
    assert room.ask() == ["LUN 1 added"]
    room.refusal = "config.toml: no"
    with pytest.raises(ConfigurationError, match=r"config.toml: no"):
        room.ask()
    assert room.asked == 2


@pytest.mark.parametrize(
    "line", [b"\n", b"[]\n", b'{"request": 3}\n', b'{"request": "stop"}\n', b"\xff\n", b"x" * 5000, b"[" * 4000 + b"\n"]
)
def test_what_is_no_request(room: Room, line: bytes) -> None:
    """It is told, or dropped where it does not end; nobody else is kept waiting."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(room.path))
        client.sendall(line)
        client.setblocking(False)
        heard = bytearray()

        def is_over() -> bool:
            try:
                piece = client.recv(4096)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            heard.extend(piece)
            return not piece

        room.owner.until(is_over, client)
    assert heard in (b"", b'{"error": "that is no request"}\n')
    assert room.asked == 0
    assert room.ask() == ["LUN 1 added"]


def test_who_says_nothing_keeps_nobody_out_for_ever(room: Room) -> None:
    """Silent clients are few at a time, and gone when they close."""
    silent = []
    for _ in range(20):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        try:
            client.connect(str(room.path))
        except BlockingIOError:
            client.close()
            break
        silent.append(client)
    for client in silent:
        client.close()
    assert room.ask() == ["LUN 1 added"]


def test_only_for_our_user(room: Room) -> None:
    assert stat.S_IMODE(room.path.stat().st_mode) & 0o077 == 0


def test_a_second_one_is_refused(room: Room) -> None:
    """While the first answers; and a file that is no socket is left alone."""
    with pytest.raises(OSError, match="another target answers at"):
        ControlSocket(room.owner.driver, room.path, {})
    assert room.ask() == ["LUN 1 added"]
    other = room.path.with_name("file")
    other.write_text("mine")
    with pytest.raises(OSError, match="is no socket"):
        ControlSocket(room.owner.driver, other, {})
    assert other.read_text() == "mine"


def test_the_socket_of_the_dead(short_dir: Path) -> None:
    path = short_dir / "target.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    room = Room(path)
    assert room.ask() == ["LUN 1 added"]
    room.close()


def test_a_long_answer(room: Room) -> None:
    """More than a socket takes at once comes whole: another configuration may be different in thousands of LUNs."""
    room.done = [f"LUN {number} of iqn.2016-01.com.openvstorage:disk added" for number in range(20_000)]
    assert room.ask() == room.done


def test_nobody_there(short_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ask(short_dir / "target.sock", "reload", 1.0)


def test_nobody_answers(short_dir: Path) -> None:
    """A time limit, and no hang."""
    path = short_dir / "target.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        with pytest.raises(TimeoutError):
            ask(path, "reload", 0.05)
