"""A target with two peers: a bad one that may send anything, and a good one whose session must not notice.

The bad one's answers are not judged but kept; each case of the corpus says which one answer is right. What all cases
claim is checked at the end of each: the good session writes and reads on, no command is left behind, and when everybody
has gone every slot is free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.states import State
from iscsi_ovs.target import Settings
from iscsi_ovs.testing.initiator import Initiator, Received, Result, encode
from shm_server.abi import control
from tests.targets.house import BLOCK, IQN, OTHER_PORT, Client, House, info_of

OTHER_NAME = "iqn.2016-01.com.openvstorage.testing:other"
TEST_UNIT_READY = bytes(6)
VICTIM = Settings().iqn("victim")


class Peer(Initiator):
    """Like any initiator until ``is_wild``; then nothing that comes is judged, it is only kept."""

    is_wild = False

    def _dispatch(self, received: Received) -> None:
        if self.is_wild:
            self._take_numbers(received.header)
        else:
            super()._dispatch(received)


class Scene:
    """The target, the good session, and the bad peer."""

    def __init__(self, slots: int = 256) -> None:
        self.house = House(slots)
        self.good = self.house.login(name=OTHER_NAME, isid=OTHER_PORT)
        self.log: list[str] = []
        self.bad = self.connect()
        self._told = 0  # PDUs of the bad peer's that were looked at
        self._rounds = 0

    # The bad peer -----------------------------------------------------------------------------------------------

    def connect(self, **identity: Any) -> Client:
        """A connection that has said nothing yet."""
        client = self.house.client(**identity)
        client.initiator = Peer(**identity)
        client.connection.on_log = self.log.append
        return client

    @property
    def peer(self) -> Peer:
        assert isinstance(self.bad.initiator, Peer)
        return self.bad.initiator

    def login(self, **keys: Any) -> Peer:
        """Into full feature phase, as a good initiator; wild from then on."""
        self.peer.login(IQN, **keys)
        self.house.run()
        assert self.peer.is_logged_in, self.log
        self.bad.attentions()
        self.peer.is_wild = True
        self._told = len(self.peer.received)
        return self.peer

    def send(self, data: bytes) -> None:
        """Any bytes, and what comes of them."""
        self.peer.raw(data, pad=False)
        self.house.run()

    def says(self) -> list[Received]:
        """What the target has told the bad peer since this was last asked."""
        self.house.run()
        new = self.peer.received[self._told :]
        self._told = len(self.peer.received)
        return new

    def answer(self) -> Any:
        """The one PDU that the target has answered with."""
        said = self.says()
        assert len(said) == 1, said
        return said[0].header

    def serve(self, *volumes: str) -> None:
        """More volumes, each a target of its own."""
        service = self.house.service
        for name in volumes:
            service.infos[name] = info_of(name, hashlib.md5(name.encode(), usedforsecurity=False).hexdigest())
            service.on_event(control.VolumeCreated(sequence=0, info=service.infos[name]))

    # What is right ----------------------------------------------------------------------------------------------

    def rejected(self, reason: int, header: bytes | None = None) -> None:
        """One Reject for this reason, with the header that it refuses; the session goes on."""
        said = self.says()
        rejects = [each for each in said if isinstance(each.header, pdu.Reject)]
        assert [each.header.reason for each in rejects] == [reason], (said, self.log)
        assert len(rejects[0].data) >= pdu.BHS_BYTES
        if header is not None:
            assert rejects[0].data[: pdu.BHS_BYTES] == header[: pdu.BHS_BYTES]
        assert any(line.startswith("rejected: ") for line in self.log)
        self.lives()

    def sensed(self, tag: int, key: int, asc: int, ascq: int) -> None:
        """The task ended with CHECK CONDITION and this sense, once; the session goes on."""
        said = [each for each in self.says() if each.header.initiator_task_tag == tag]
        assert [type(each.header) for each in said] == [pdu.ScsiResponse], (said, self.log)
        result = Result(tag, sense=said[0].data[2:])
        assert said[0].header.status == scsi.CHECK_CONDITION
        assert (result.sense_key, result.additional_sense) == (key, (asc, ascq))
        self.lives()

    def silent(self) -> None:
        """Nothing is answered, and the session goes on."""
        assert self.says() == []
        self.lives()

    def lives(self) -> None:
        """A ping of the bad peer's is still echoed."""
        assert self.bad.connection.state is State.FULL_FEATURE, self.log
        self._rounds += 1
        ping = pdu.NopOut(
            opcode=pdu.NopOut.OPCODE | pdu.IMMEDIATE, initiator_task_tag=0xF0000000 + self._rounds,
            cmd_sn=self.peer.cmd_sn,
        )  # fmt: skip
        self.send(encode(ping, b"on we go"))
        echoes = [each for each in self.says() if each.header.initiator_task_tag == ping.initiator_task_tag]
        assert [each.data for each in echoes] == [b"on we go"]

    def closed(self) -> None:
        """The connection is over, for a reason that the log names, and nothing is answered."""
        assert self.bad.connection.is_closed, self.says()
        assert self.says() == []

    def refused(self, status_class: int, status_detail: int) -> None:
        """A Login Response with this status, and the connection is over."""
        last = self.says()[-1].header
        assert isinstance(last, pdu.LoginResponse), last
        assert (last.status_class, last.status_detail) == (status_class, status_detail), self.log
        # Section 11.13.4: an unsuccessful login carries T=0 … and the target closes the connection.
        assert not last.flags & pdu.TRANSIT
        assert self.bad.connection.is_closed

    def others_go_on(self) -> None:
        """The good session writes, reads back and compares."""
        self._rounds += 1
        data = self._rounds.to_bytes(4, "big") * (BLOCK // 4) * 8
        assert self.good.do(self.good.write(8, data)).status == scsi.GOOD
        assert bytes(self.good.do(self.good.read(8, 8)).data) == data

    def end(self) -> None:
        """Everybody goes: every slot is where it was, nobody is remembered."""
        for handle in self.house.service.handles:
            handle.let_go()
        self.house.run()
        self.others_go_on()
        for client in self.house.clients:
            client.lose()
        self.house.run()
        assert self.house.service.handles == []
        assert self.house.service.pool.is_whole


@contextmanager
def scene(**options: Any) -> Iterator[Scene]:
    """A scene, with what every case claims checked at its end."""
    made = Scene(**options)
    yield made
    made.others_go_on()
    made.end()


def with_a_victim() -> Iterator[Scene]:
    """For a fixture: the bad peer is logged in to a disk of its own, another unit than the good one's."""
    made = Scene()
    made.serve("victim")
    peer = made.peer
    peer.login(VICTIM)
    made.house.run()
    assert peer.is_logged_in
    made.bad.attentions()
    peer.is_wild = True
    made.says()
    yield made
    made.others_go_on()
    made.end()


@dataclass(frozen=True, slots=True)
class Case:
    """Bytes (made for the peer that sends them) and the one right answer."""

    name: str
    make: Callable[[Peer], bytes]
    right: Callable[[Scene], None]


def cases(*rows: Case) -> Any:
    """The rows as a test's parameters, each under its name."""
    assert len({row.name for row in rows}) == len(rows)
    return pytest.mark.parametrize("case", rows, ids=lambda row: row.name)


def judge(case: Case, **keys: Any) -> None:
    """One case in full feature phase."""
    with scene() as it:
        peer = it.login(**keys)
        it.send(case.make(peer))
        case.right(it)


# Requests, as the tables write them -----------------------------------------------------------------------------

READ, WRITE, NEITHER, BOTH = pdu.READ, pdu.WRITE, 0, pdu.READ | pdu.WRITE
TAG = 0x700


def read_cdb(lba: int, blocks: int) -> bytes:
    return bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + bytes(7)


def write_cdb(lba: int, blocks: int) -> bytes:
    return b"\x2a" + read_cdb(lba, blocks)[1:]


def command(peer: Peer, cdb: bytes, direction: int, expected: int, data: bytes = b"", **fields: Any) -> bytes:
    """A SCSI Command PDU, numbered as the peer's next; ``fields`` overwrite what it should be."""
    header = pdu.ScsiCommand(
        flags=pdu.FINAL | direction | pdu.ATTRIBUTE_SIMPLE,
        initiator_task_tag=TAG,
        expected_data_transfer_length=expected,
        cmd_sn=peer.cmd_sn,
        exp_stat_sn=peer.exp_stat_sn,
        cdb=cdb.ljust(16, b"\0"),
    )
    for name, value in fields.items():
        setattr(header, name, value)
    if "cmd_sn" not in fields and not header.opcode & pdu.IMMEDIATE:
        peer.cmd_sn = (peer.cmd_sn + 1) & 0xFFFFFFFF
    return encode(header, data)


def numbered(peer: Peer, header: pdu.Pdu, data: bytes = b"", ahs: bytes = b"") -> bytes:
    """A request with the peer's next CmdSN."""
    header.cmd_sn = peer.cmd_sn
    header.exp_stat_sn = peer.exp_stat_sn
    if not header.opcode & pdu.IMMEDIATE:
        peer.cmd_sn = (peer.cmd_sn + 1) & 0xFFFFFFFF
    return encode(header, data, ahs)


def reject(reason: int) -> Callable[[Scene], None]:
    return lambda it: it.rejected(reason)


def sense(key: int, asc: int, ascq: int, tag: int = TAG) -> Callable[[Scene], None]:
    return lambda it: it.sensed(tag, key, asc, ascq)


def status(wanted: int = scsi.GOOD, tag: int = TAG) -> Callable[[Scene], None]:
    """The task ends with this status, in a SCSI Response or a last Data-In."""

    def check(it: Scene) -> None:
        said = [each.header for each in it.says() if each.header.initiator_task_tag == tag]
        assert said, it.log
        assert isinstance(said[-1], pdu.ScsiResponse | pdu.DataIn), said
        assert said[-1].status == wanted, said
        it.lives()

    return check
