"""Initiators that mean harm, or mean nothing at all: any bytes, in any state, cut anywhere.

Whatever comes: no exception leaves the connection, what ends it or is refused says why in the log, other sessions go
on, and when the connection is gone and its commands have completed every slot is free.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import OUTPUT_LIMIT_PIECES, Connection
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.session.session import Session
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.states import State
from iscsi_ovs.storage.slots import SlotPool
from iscsi_ovs.testing.initiator import Initiator, encode
from tests.session.conversation import BLOCK, TARGET, Conversation, read_cdb, write_cdb

SLOT = 4096


class Hostile(Conversation):
    """Nobody listens to what the target says, and commands are executed without looking at them."""

    def __init__(self, slots: int = 768, space: Space | None = None) -> None:
        if space is None:
            space = Space()
            space.attach(SlotPool(memoryview(bytearray(slots * SLOT)), SLOT), [])
        super().__init__(space=space)

    def outcome(self, command: scsi.Command) -> scsi.Outcome:
        if not command.data_in_bytes:
            return scsi.Outcome(transfer_bytes=command.data_out_bytes)
        assert self.space.pool is not None
        buffer = self.space.pool.allocate(min(command.data_in_bytes, 65536))
        if buffer is None:
            return scsi.Outcome(status=scsi.TASK_SET_FULL)
        return scsi.Outcome(buffer=buffer, transfer_bytes=buffer.length_bytes)

    def end(self) -> None:
        """The connection is gone and its commands complete: nothing is left."""
        self.happened(self.connection.lost("the end"))
        while self.commands:
            self.execute()
        session = self.connection.session
        if session is not None:
            assert len(session.tasks) == 0
            session.window.close()
        pool = self.space.pool
        assert pool is not None
        assert (pool.free_slots, pool.reserved_slots) == (pool.capacity_slots, 0)


def new(talk: Hostile) -> None:
    """Nothing was sent yet."""


def negotiating(talk: Hostile) -> None:
    talk.initiator.login("iqn.2016-01.com.openvstorage:demo")
    talk.to_target(talk.initiator.to_send())
    talk.to_initiator()


def admitting(talk: Hostile) -> None:
    talk.admits = False
    talk.initiator.login("iqn.2016-01.com.openvstorage:demo", security=False)
    talk.run()
    assert talk.connection.state is State.ADMITTING


def logged_in(talk: Hostile) -> None:
    talk.login(FirstBurstLength="8192")


def busy(talk: Hostile) -> None:
    """Commands in every state: with the server, held, receiving, half received."""
    talk.executes_at_once = False
    initiator = talk.login(FirstBurstLength="8192")
    initiator.answer_r2t = False
    initiator.command(read_cdb(0, 8), read=4096)
    initiator.command(write_cdb(0, 256), write=bytes(131072))
    talk.run()
    initiator.raw(encode(write(initiator, 0x700, 4096, cmd_sn=initiator.cmd_sn + 1), bytes(512)))
    talk.run()


def logging_out(talk: Hostile) -> None:
    busy(talk)
    talk.initiator.logout(immediate=True)
    talk.run()
    assert talk.connection.state is State.LOGGING_OUT


def discovery(talk: Hostile) -> None:
    talk.initiator.login(None)
    talk.run()


def digested(talk: Hostile) -> None:
    """With data digests; header digests would let nothing hostile through."""
    talk.login(FirstBurstLength="8192", DataDigest="CRC32C")


STATES = [new, negotiating, admitting, logged_in, busy, logging_out, discovery, digested]


def write(initiator: Initiator, tag: int, length: int, **fields: int) -> pdu.ScsiCommand:
    header = pdu.ScsiCommand(
        flags=pdu.FINAL | pdu.WRITE,
        initiator_task_tag=tag,
        cmd_sn=initiator.cmd_sn,
        expected_data_transfer_length=length,
        cdb=write_cdb(0, length // BLOCK & 0xFFFF).ljust(16, b"\0"),
    )
    for name, value in fields.items():
        setattr(header, name, value)
    return header


def feed(talk: Hostile, data: bytes, cuts: random.Random) -> None:
    """The bytes in pieces; a connection in ADMITTING is let in or refused on the way."""
    while data and talk.connection.wants_read:
        talk.piece = cuts.choice([1, 3, 47, 48, 49, 500, 5000, 100000])
        count = cuts.choice([1, 40, 48, 96, 1000, 100000])
        talk.to_target(data[:count])
        data = data[count:]
        if cuts.random() < 0.3:
            talk.connection.sent(min(talk.connection.outbox.pending_bytes, cuts.choice([1, 48, 100000])))
        if cuts.random() < 0.3 and talk.commands:
            talk.execute(cuts.randrange(len(talk.commands)))
        talk.space.serve()


small = st.one_of(st.integers(0, 5), st.integers(0, 0xFFFFFFFF), st.sampled_from([0x700, 0xFFFFFFFF]))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid PDU of either direction with some fields, flags or bytes changed, its length right or not."""
    kind = draw(st.sampled_from([*pdu.REQUESTS.values(), *pdu.REQUESTS.values(), *pdu.RESPONSES.values()]))
    header = kind()
    for name in kind.FIELDS:
        default = getattr(header, name)
        if isinstance(default, bytes) or name in ("opcode", "data_segment_length", "total_ahs_length"):
            continue
        if draw(st.integers(0, 2)) == 0:
            bits = {"flags": 0xFF, "lun": 0xFFFFFFFFFFFFFFFF}.get(name, 0xFFFFFFFF)
            value = draw(small) & bits
            try:
                setattr(header, name, value)
                header.pack()
            except Exception:
                setattr(header, name, default)
    if draw(st.booleans()):
        header.opcode |= pdu.IMMEDIATE
    if isinstance(header, pdu.ScsiCommand):
        header.cdb = draw(st.binary(min_size=16, max_size=16))
    data = bytes(draw(st.sampled_from([0, 0, 1, 5, 512, 4096, 9000, 20000])))
    ahs = draw(st.sampled_from([b"", b"", b"", bytes(4), b"\0\x05\1\0" + bytes(4), b"\xff\xff\1\0", bytes(1020)]))
    whole = bytearray(encode(header, data, ahs))
    for _ in range(draw(st.integers(0, 2))):
        whole[draw(st.integers(0, 47))] = draw(st.integers(0, 255))
    return bytes(whole)


@pytest.mark.parametrize("prepare", STATES)
@settings(max_examples=40)
@given(pieces=st.lists(st.one_of(mutated(), mutated(), st.binary(max_size=200)), max_size=8), seed=st.integers(0, 99))
def test_any_bytes_in_any_state(prepare: Callable[[Hostile], None], pieces: list[bytes], seed: int) -> None:
    """Nothing but protocol errors, and those end inside."""
    talk = Hostile()
    prepare(talk)
    feed(talk, b"".join(pieces), random.Random(seed))
    if talk.connection.state is State.ADMITTING:
        talk.admits = True
        talk.happened([events.LoginOpened(talk.connection._admission.parameters)])
    talk.happened(talk.connection.tick(20.0))
    talk.happened(talk.connection.tick(200.0))
    closed = [event for event in talk.told if isinstance(event, events.ConnectionClosed)]
    assert len(closed) <= 1
    assert all(event.reason for event in closed)
    talk.end()


# Single wrongs, and what the RFC says of each --------------------------------------------------------------------


def refused(reason: int) -> Callable[[Hostile], None]:
    def check(talk: Hostile) -> None:
        rejects = [seen.header.reason for seen in talk.initiator.received if isinstance(seen.header, pdu.Reject)]
        assert rejects == [reason]
        assert any(line.startswith("rejected: ") for line in talk.log)
        goes_on(talk)

    return check


def goes_on(talk: Hostile) -> None:
    assert talk.connection.state is State.FULL_FEATURE
    ping = talk.initiator.nop_out(b"on we go")
    talk.run()
    assert bytes(talk.initiator.results[ping].data) == b"on we go"


def closed(talk: Hostile) -> None:
    assert talk.connection.is_closed
    (event,) = [event for event in talk.told if isinstance(event, events.ConnectionClosed)]
    assert event.is_error
    assert event.reason


CASES: dict[str, tuple[Callable[[Initiator], bytes], Callable[[Hostile], None]]] = {
    "a data segment longer than we declared": (
        lambda i: pdu.NopOut(initiator_task_tag=1, data_segment_length=262145, cmd_sn=i.cmd_sn).pack(),
        closed,
    ),
    "a data segment of 16 MiB": (lambda i: pdu.NopOut(data_segment_length=0xFFFFFF).pack(), closed),
    "a login in full feature phase": (lambda i: encode(pdu.LoginRequest(cmd_sn=i.cmd_sn)), closed),
    "SNACK": (
        lambda i: encode(pdu.SnackRequest(run_length=0xFFFFFFFF)),
        refused(pdu.REJECT_SNACK),
    ),
    "an unknown opcode": (lambda i: bytes([0x1C]) + bytes(47), refused(pdu.REJECT_COMMAND_NOT_SUPPORTED)),
    "an AHS type that is not known": (
        lambda i: encode(write(i, 0x700, 512), b"", b"\0\5\7\0" + bytes(4)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "an AHS of length 0": (
        lambda i: encode(write(i, 0x700, 512), b"", bytes(4)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "an AHS on a NOP": (
        lambda i: encode(pdu.NopOut(initiator_task_tag=1, cmd_sn=i.cmd_sn), b"", bytes(1020)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "R and W": (
        lambda i: encode(write(i, 0x700, 512, flags=pdu.FINAL | pdu.READ | pdu.WRITE)),
        refused(pdu.REJECT_COMMAND_NOT_SUPPORTED),
    ),
    "neither R nor W, but a length": (
        lambda i: encode(write(i, 0x700, 512, flags=pdu.FINAL)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "the reserved tag": (
        lambda i: encode(write(i, pdu.RESERVED_TAG, 512)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "a logout for a reason that is none": (
        lambda i: encode(pdu.LogoutRequest(flags=pdu.FINAL | 9, initiator_task_tag=1, cmd_sn=i.cmd_sn)),
        refused(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    "Data-Out for no task": (
        lambda i: encode(pdu.DataOut(initiator_task_tag=0x7777, target_transfer_tag=5), bytes(4096)),
        goes_on,
    ),
}
CASES |= {
    f"{kind.__name__}, which is a target's": (
        lambda i, kind=kind: encode(kind(), bytes(100)),  # type: ignore[misc]
        refused(pdu.REJECT_COMMAND_NOT_SUPPORTED),
    )
    for kind in pdu.RESPONSES.values()
}


@pytest.mark.parametrize("name", CASES)
def test_one_wrong_pdu(name: str) -> None:
    """Reject, or the end of the connection, each with its line for the log."""
    make, check = CASES[name]
    talk = Hostile()
    initiator = talk.login()
    initiator.raw(make(initiator))
    if pdu.Header.unpack_from(make(initiator)).opcode in (1, 6):
        initiator.cmd_sn += 1  # it counts as received
    talk.run()
    check(talk)
    talk.end()


@pytest.mark.parametrize("opcode", [code for code in range(64) if code != pdu.LoginRequest.OPCODE])
def test_the_first_pdu_is_a_login_or_the_last(opcode: int) -> None:
    """Before the login nothing else is taken, known or not."""
    talk = Hostile()
    talk.to_target(bytes((opcode,)) + bytes(47))
    closed(talk)


@pytest.mark.parametrize("cut", range(48))
def test_a_header_that_never_ends(cut: int) -> None:
    """Cut anywhere: nothing happens, and the login's deadline ends it."""
    talk = Hostile()
    talk.initiator.login("iqn.2016-01.com.openvstorage:demo")
    talk.to_target(talk.initiator.to_send()[:cut])
    talk.happened(talk.connection.tick(14.0))
    assert not talk.connection.is_closed
    talk.happened(talk.connection.tick(16.0))
    closed(talk)


SEQUENCES = {
    "an offset that is not next": {"offset": 512},
    "a DataSN that is not next": {"data_sn": 1},
    "more than was asked for": {"length": 9216},
    "F before the end": {"length": 512},
    "no F at the end": {"final": False},
    "a transfer tag that was never given": {"transfer_tag": 0x4444},
    "unsolicited where none was announced": {"transfer_tag": pdu.RESERVED_TAG},
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_wrong_data_out_ends_its_task_and_nothing_else(name: str) -> None:
    """CHECK CONDITION, ABORTED COMMAND, once; what still comes for it is drained; nothing is written."""
    talk = Hostile()
    initiator = talk.login(InitialR2T="Yes", ImmediateData="No", MaxOutstandingR2T="1")
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 16), write=bytes(8192))
    talk.run()
    r2t = next(seen.header for seen in initiator.received if isinstance(seen.header, pdu.ReadyToTransfer))
    wrong = {"length": 8192, "transfer_tag": r2t.target_transfer_tag, **SEQUENCES[name]}
    length = int(wrong.pop("length"))
    initiator.data_out(tag, bytes(length), **wrong)  # type: ignore[arg-type]
    initiator.data_out(tag, bytes(512), transfer_tag=r2t.target_transfer_tag)
    talk.run()
    result = initiator.results[tag]
    assert result.sense_key == 0x0B
    assert result.header is not None
    assert result.header.exp_data_sn == 0
    assert not talk.commands
    assert any("Data-Out" in line for line in talk.log)
    goes_on(talk)
    talk.end()


def test_a_command_with_every_expected_length_is_bounded() -> None:
    """EDTL is the initiator's word: no more than MAXIMUM TRANSFER LENGTH is ever taken for it."""
    talk = Hostile(slots=8192)
    initiator = talk.login(InitialR2T="Yes", ImmediateData="No")
    initiator.answer_r2t = False
    initiator.raw(encode(write(initiator, 0x700, 0xFFFFFFFF)))
    talk.to_target(initiator.to_send())
    assert talk.session is not None
    (task,) = talk.session.tasks
    assert task.buffer is not None
    assert task.buffer.length_bytes == 8 << 20
    talk.end()


def test_immediate_commands_that_are_refused_leave_room_for_others() -> None:
    """A hundred with an additional header that can't be: none of them counts against the limit."""
    talk = Hostile()
    initiator = talk.login()
    for tag in range(100):
        header = write(initiator, 0x700 + tag, 512, opcode=pdu.ScsiCommand.OPCODE | pdu.IMMEDIATE)
        initiator.raw(encode(header, b"", bytes(4)))
    talk.run()
    tag = initiator.command(write_cdb(0, 1), write=bytes(512), immediate=True)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    talk.end()


# Resources -------------------------------------------------------------------------------------------------------


def test_pings_that_nobody_reads_stop_the_reading() -> None:
    """Small answers pile up to a limit; then the socket is not read any more, and other sessions do not notice."""
    talk = Hostile()
    talk.login()
    header = encode(pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=1, cmd_sn=1))
    sent = 0
    while talk.connection.wants_read and sent < 10 * OUTPUT_LIMIT_PIECES:
        talk.to_target(header * 300)
        sent += 300
    assert sent <= OUTPUT_LIMIT_PIECES + 600
    assert not talk.connection.is_closed
    talk.end()


def test_pings_with_data_that_nobody_reads_end_the_connection() -> None:
    """Their echoes are memory of ours."""
    talk = Hostile()
    talk.login()
    ping = encode(pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=1, cmd_sn=1), bytes(262144))
    for _ in range(10):
        talk.to_target(ping)
    closed(talk)
    talk.end()


def test_a_ping_with_data_behind_large_reads_is_answered() -> None:
    """What a busy reader has not taken yet are not echoes."""
    talk = Conversation()
    initiator = talk.login()
    tag = initiator.command(read_cdb(0, 4096), read=4096 * BLOCK)
    talk.to_target(initiator.to_send())
    assert talk.connection.outbox.pending_bytes > 1 << 20
    initiator.nop_out(b"still there?")
    talk.to_target(initiator.to_send())
    assert not talk.connection.is_closed
    talk.run()
    assert initiator.results[tag].is_complete


@pytest.mark.parametrize("target", [None, TARGET])
def test_lists_of_targets_that_nobody_reads_end_the_connection(target: str | None) -> None:
    """Discovery is for everybody, as a rule, and lists may be long: none is made a thousand times in one breath."""
    talk = Hostile()
    made = 0

    def many(connection: Connection) -> list[tuple[str, list[str]]]:
        nonlocal made
        made += 1
        return [(f"{TARGET}{number}", ["192.0.2.1:3260,1"]) for number in range(1000)]

    talk.targets = many  # type: ignore[method-assign]
    talk.initiator.login(target)
    talk.run()
    for _ in range(100):
        talk.initiator.send_targets("" if target else "All")
        talk.run()
    assert made == 100, "as often as the answers are read"
    header = pdu.TextRequest(
        opcode=pdu.IMMEDIATE | pdu.TextRequest.OPCODE, flags=pdu.FINAL, initiator_task_tag=1,
        target_transfer_tag=pdu.RESERVED_TAG, cmd_sn=1,
    )  # fmt: skip
    talk.to_target(encode(header, b"SendTargets=All\0" if target is None else b"SendTargets=\0") * 1000)
    closed(talk)
    assert made < 150
    talk.end()


def test_who_never_reads_is_not_waited_for() -> None:
    """Its answers hold slots that others wait for: without any progress in Timing().stall_s the connection ends."""
    talk = Hostile()
    initiator = talk.login()
    initiator.command(read_cdb(0, 8), read=4096)
    talk.to_target(initiator.to_send())
    now = 0.0
    while now < Timing().stall_s + 2 and not talk.connection.is_closed:
        now += 1.0
        talk.now = now
        initiator.nop_out(b"")
        talk.to_target(initiator.to_send())
        talk.happened(talk.connection.tick(now))
    closed(talk)
    assert now > Timing().stall_s - 2
    talk.end()


def test_who_reads_slowly_is() -> None:
    """A byte a second is progress."""
    talk = Hostile()
    initiator = talk.login()
    initiator.command(read_cdb(0, 8), read=4096)
    talk.to_target(initiator.to_send())
    for step in range(200):
        talk.now = float(step)
        talk.connection.sent(1)
        initiator.nop_out(b"")
        talk.to_target(initiator.to_send())
        talk.happened(talk.connection.tick(talk.now))
    assert not talk.connection.is_closed
    talk.end()


def test_other_sessions_go_on() -> None:
    """One connection ends by garbage, another one on the same segment does not notice."""
    talk = Hostile()
    good = Hostile(space=talk.space)
    good.login()
    busy(talk)
    talk.to_target(b"\xff" * 1000)
    assert talk.connection.is_closed
    tag = good.initiator.command(write_cdb(0, 8), write=bytes(4096))
    good.run()
    assert good.initiator.results[tag].status == scsi.GOOD
    assert isinstance(good.session, Session)
    talk.happened(talk.connection.lost("the end"))
    while talk.commands:
        talk.execute()
    assert talk.session is not None
    talk.session.window.close()
    good.end()
