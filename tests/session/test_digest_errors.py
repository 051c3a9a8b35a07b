"""Conversations with digests: every size in every shape, and a wrong digest on every kind of PDU (section 7.8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.digest import DigestFraming, DigestOutbox
from iscsi_ovs.session.framing import Framing
from iscsi_ovs.session.outbox import Outbox
from iscsi_ovs.session.space import Space
from iscsi_ovs.storage.slots import SlotPool
from iscsi_ovs.testing.initiator import Initiator, Result
from iscsi_ovs.testing.stream import Stream
from tests.session.conversation import BLOCK, TARGET, Conversation, read_cdb, write_cdb

BOTH = {"HeaderDigest": "CRC32C,None", "DataDigest": "CRC32C,None"}
KINDS = {
    "header": {"HeaderDigest": "CRC32C,None"},
    "data": {"DataDigest": "CRC32C,None"},
    "both": BOTH,
    "none": {"HeaderDigest": "None,CRC32C", "DataDigest": "None,CRC32C"},
}
CRC_ERROR = (0x0B, (0x47, 0x05))


def login(**keys: Any) -> Conversation:
    talk = Conversation()
    talk.login(**{**BOTH, **keys})
    return talk


def sense(result: Result) -> tuple[int | None, tuple[int, int] | None]:
    assert result.status == scsi.CHECK_CONDITION
    return result.sense_key, result.additional_sense


def at_rest(talk: Conversation) -> None:
    """Nothing is left of what went wrong: no task, no slot but what the window keeps."""
    assert talk.session is not None
    assert len(talk.session.tasks) == 0
    pool = talk.space.pool
    assert pool is not None
    assert pool.free_slots + pool.reserved_slots == pool.capacity_slots


# Right digests


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece", [None, 1, 61])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"MaxRecvDataSegmentLength": "4097", "MaxBurstLength": "10001", "FirstBurstLength": "5003"},
        {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "777", "MaxRecvDataSegmentLength": "513"},
        {"InitialR2T": "Yes", "MaxBurstLength": "4096", "FirstBurstLength": "512"},
    ],
    ids=["large", "odd", "solicited", "immediate"],
)
def test_bytes_survive(kind: str, piece: int | None, shape: dict[str, str]) -> None:
    """Each digest × each shape of transfer × odd segment sizes, whole and a byte at a time."""
    talk = Conversation()
    initiator = talk.login(**{**KINDS[kind], **shape})
    talk.piece = piece
    for blocks in (1, 9, 64) if piece is None else (1, 9):
        data = bytes((at * 31 + blocks) & 0xFF for at in range(blocks * BLOCK))
        written = initiator.command(write_cdb(3, blocks), write=data)
        talk.run()
        read = initiator.command(read_cdb(3, blocks), read=len(data))
        talk.run()
        assert initiator.results[written].status == scsi.GOOD
        assert initiator.results[read].data == data
    ping = initiator.nop_out(b"odd")
    asked = initiator.send_targets("")
    talk.run()
    assert initiator.results[ping].data == b"odd"
    assert ("TargetName", TARGET) in initiator.results[asked].pairs
    initiator.logout()
    talk.run()
    assert initiator.is_logged_out


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_without_digests_knows_nothing_of_them(kind: str) -> None:
    """The plain classes stay where nothing was agreed on; and discovery sessions may have digests as well."""
    for target in (TARGET, None):
        talk = Conversation()
        talk.initiator.login(target, **KINDS[kind])
        talk.run()
        assert talk.initiator.is_logged_in
        is_plain = kind == "none"
        assert type(talk.connection._framing) is (Framing if is_plain else DigestFraming)
        assert type(talk.connection.outbox) is (Outbox if is_plain else DigestOutbox)


@pytest.mark.parametrize("extra", range(4))
@pytest.mark.parametrize("cut", range(-8, 60, 4))
def test_digests_begin_with_the_first_pdu_behind_the_login(extra: int, cut: int) -> None:
    """Whatever padding the last Login Request has, and however much comes along with it."""
    talk = Conversation()
    initiator = talk.initiator
    initiator.login(TARGET, security=False, **BOTH, InitiatorAlias="x" * extra)
    last = initiator.to_send()
    ahead = Stream()
    ahead.header_digest = ahead.data_digest = True
    ping = ahead.encode(pdu.NopOut(opcode=0x40, initiator_task_tag=0x77, cmd_sn=initiator.cmd_sn), b"early")
    initiator.results[0x77] = Result(0x77)
    both = last + ping
    talk.to_target(both[: len(last) + cut])
    talk.to_target(both[len(last) + cut :])
    talk.run()
    assert initiator.is_logged_in
    assert initiator.results[0x77].data == b"early"


# Wrong header digests

SAY: dict[str, Callable[[Initiator], object]] = {
    "ScsiCommand": lambda initiator: initiator.command(read_cdb(0, 1), read=BLOCK),
    "DataOut": lambda initiator: initiator.command(write_cdb(0, 8), write=bytes(8 * BLOCK), immediate_data=512),
    "NopOut": lambda initiator: initiator.nop_out(b"ping"),
    "TextRequest": lambda initiator: initiator.send_targets(""),
    "TaskManagementRequest": lambda initiator: initiator.tmf(pdu.LOGICAL_UNIT_RESET),
    "LogoutRequest": lambda initiator: initiator.logout(),
}


@pytest.mark.parametrize("opcode", SAY)
def test_a_wrong_header_digest_ends_the_connection(opcode: str) -> None:
    """… with its reason in the log; a session beside it, on the same slots, does not notice."""
    space = Space()
    space.attach(SlotPool(memoryview(bytearray(256 * 65536)), 65536), [])
    other, talk = Conversation(space=space), Conversation(space=space)
    other.login(**BOTH)
    initiator = talk.login(**BOTH)
    initiator.stream.spoil = lambda header: "header" if type(header).__name__ == opcode else None
    SAY[opcode](initiator)
    talk.run()
    assert talk.connection.is_closed
    assert "header digest error" in str(talk.told)
    assert talk.session is not None
    assert len(talk.session.tasks) == 0
    written = other.initiator.command(write_cdb(0, 9), write=b"unharmed!" * BLOCK)
    read = other.initiator.command(read_cdb(0, 9), read=9 * BLOCK)
    other.run()
    assert other.initiator.results[written].status == scsi.GOOD
    assert other.initiator.results[read].data == b"unharmed!" * BLOCK


@pytest.mark.parametrize("at", [48, 51, 52, 63])
def test_additional_headers_are_covered(at: int) -> None:
    """A bit of an Extended CDB counts as a bit of the header."""
    talk = login()
    initiator = talk.initiator
    initiator.command(read_cdb(0, 1).ljust(16, b"\0") + bytes(12), read=BLOCK)
    wire = bytearray(initiator.to_send())
    wire[at] ^= 0x80
    talk.to_target(bytes(wire))
    assert talk.connection.is_closed
    assert "header digest error" in str(talk.told)


# Wrong data digests


def spoil_nth(initiator: Initiator, kind: type[pdu.Pdu], nth: int = 0) -> None:
    left = nth

    def spoil(header: pdu.Pdu) -> Any:
        nonlocal left
        if type(header) is not kind:
            return None
        left -= 1
        return "data" if left == -1 else None

    initiator.stream.spoil = spoil


@pytest.mark.parametrize("header_digest", ["CRC32C", "None"])
@pytest.mark.parametrize("length", [1, 8])
def test_immediate_data(length: int, header_digest: str) -> None:
    """Reject with Data Digest Error, then CHECK CONDITION; nothing was written, and a retry is."""
    talk = login(HeaderDigest=header_digest)
    initiator = talk.initiator
    spoil_nth(initiator, pdu.ScsiCommand)
    failed = initiator.command(write_cdb(0, length), write=b"x" * (length * BLOCK))
    talk.run()
    rejects = [received for received in talk.seen if isinstance(received.header, pdu.Reject)]
    assert [reject.header.reason for reject in rejects] == [pdu.REJECT_DATA_DIGEST_ERROR]
    assert pdu.ScsiCommand.unpack_from(rejects[0].data).initiator_task_tag == failed
    assert sense(initiator.results[failed]) == CRC_ERROR
    assert "data digest error on ScsiCommand" in str(talk.log)
    assert not any(talk.disk)
    at_rest(talk)
    retried = initiator.command(write_cdb(0, length), write=b"y" * (length * BLOCK))
    talk.run()
    assert initiator.results[retried].status == scsi.GOOD
    assert talk.disk[: length * BLOCK] == b"y" * (length * BLOCK)


SHAPES = {
    "unsolicited": {"MaxRecvDataSegmentLength": "8192"},
    "solicited": {"InitialR2T": "Yes", "ImmediateData": "No", "MaxBurstLength": "65536", "MaxOutstandingR2T": "2"},
    "mixed": {"FirstBurstLength": "65536", "MaxBurstLength": "65536", "MaxOutstandingR2T": "2"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nth", range(4))
def test_data_out(shape: str, nth: int) -> None:
    """Whichever PDU of whichever sequence: Reject at once, CHECK CONDITION when all that was asked for has come."""
    talk = login(**SHAPES[shape])
    initiator = talk.initiator
    initiator.set(target_max_recv_data_segment_length=30_000)  # several Data-Outs a burst
    spoil_nth(initiator, pdu.DataOut, nth)
    failed = initiator.command(write_cdb(0, 400), write=b"x" * (400 * BLOCK), immediate_data=512)
    talk.run()
    rejects = [received.header for received in talk.seen if isinstance(received.header, pdu.Reject)]
    assert [reject.reason for reject in rejects] == [pdu.REJECT_DATA_DIGEST_ERROR]
    assert isinstance(talk.seen[-1].header, pdu.ScsiResponse)
    assert sense(initiator.results[failed]) == CRC_ERROR
    assert initiator.results[failed].residual_count == 400 * BLOCK
    assert not any(talk.disk)
    at_rest(talk)
    retried = initiator.command(write_cdb(0, 400), write=b"y" * (400 * BLOCK))
    talk.run()
    assert initiator.results[retried].status == scsi.GOOD


def test_the_response_waits_for_all_outstanding_r2ts() -> None:
    """Section 7.8: "it MUST wait to receive all the data"; and no more is asked for meanwhile."""
    talk = login(InitialR2T="Yes", ImmediateData="No", MaxBurstLength="4096", MaxOutstandingR2T="2")
    initiator = talk.initiator
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 64), write=bytes(64 * BLOCK))
    talk.run()
    r2ts = [received.header for received in talk.seen if isinstance(received.header, pdu.ReadyToTransfer)]
    assert len(r2ts) == 2
    spoil_nth(initiator, pdu.DataOut)
    initiator.answer(r2ts[0])
    talk.run()
    assert isinstance(talk.seen[-1].header, pdu.Reject)
    assert initiator.stream.spoil is not None
    initiator.answer(r2ts[1])
    talk.run()
    assert sense(initiator.results[tag]) == CRC_ERROR
    assert len([each for each in talk.seen if isinstance(each.header, pdu.ReadyToTransfer)]) == 2
    at_rest(talk)


def test_an_abort_ends_the_wait() -> None:
    """Section 7.8: "A task management command … during this wait may also conclude the task"."""
    talk = login(InitialR2T="Yes", ImmediateData="No", MaxBurstLength="4096", MaxOutstandingR2T="2")
    initiator = talk.initiator
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 64), write=bytes(64 * BLOCK))
    talk.run()
    r2t = next(received.header for received in talk.seen if isinstance(received.header, pdu.ReadyToTransfer))
    spoil_nth(initiator, pdu.DataOut)
    initiator.answer(r2t)
    talk.run()
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_COMPLETE
    at_rest(talk)


@pytest.mark.parametrize("immediate", [True, False])
def test_a_ping(immediate: bool) -> None:
    """Reject, no echo; the next one is answered, and so is what comes in its turn behind it."""
    talk = login()
    initiator = talk.initiator
    spoil_nth(initiator, pdu.NopOut)
    lost, heard = initiator.nop_out(b"lost", immediate=immediate), initiator.nop_out(b"heard", immediate=immediate)
    talk.run()
    assert initiator.results[lost].reject_reason == pdu.REJECT_DATA_DIGEST_ERROR
    assert not initiator.results[lost].data
    assert initiator.results[heard].data == b"heard"
    assert not talk.connection.is_closed


def test_a_text_request() -> None:
    """Reject; the exchange begins anew."""
    talk = login()
    initiator = talk.initiator
    spoil_nth(initiator, pdu.TextRequest)
    lost = initiator.send_targets("")
    talk.run()
    again = initiator.send_targets("")
    talk.run()
    assert initiator.results[lost].reject_reason == pdu.REJECT_DATA_DIGEST_ERROR
    assert ("TargetName", TARGET) in initiator.results[again].pairs


def test_data_of_a_dead_task_is_not_looked_at() -> None:
    """Data-Out for a task that was aborted is drained, right or wrong: nobody is told anything."""
    talk = login(InitialR2T="Yes", ImmediateData="No")
    initiator = talk.initiator
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 8), write=bytes(8 * BLOCK))
    talk.run()
    r2t = next(received.header for received in talk.seen if isinstance(received.header, pdu.ReadyToTransfer))
    initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    before = len(talk.seen)
    spoil_nth(initiator, pdu.DataOut)
    initiator.data_out(tag, bytes(8 * BLOCK), transfer_tag=r2t.target_transfer_tag)
    talk.run()
    assert len(talk.seen) == before
    assert not talk.connection.is_closed
    at_rest(talk)


def test_digests_of_login_requests_are_not_looked_for() -> None:
    """The login phase has none: what follows its PDUs is the next PDU, whatever was agreed on."""
    talk = Conversation()
    initiator = talk.initiator
    initiator.stream.header_digest = True
    initiator.raw(initiator.stream.encode(pdu.LoginRequest(flags=0, isid=initiator.isid), b""))
    talk.run()
    assert talk.connection.is_closed
