"""Corpus 5, sequence numbers: CmdSN around the window, tags that are in use, DataSN out of turn, R2TSN.

RFC 7143 section 4.2.2.1 (command numbering), 4.2.2.3 (data sequencing), 11.2.1.8 (task tags), 11.7.5 (DataSN).
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.window import IMMEDIATE_LIMIT
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import (
    NEITHER,
    READ,
    TAG,
    TEST_UNIT_READY,
    WRITE,
    Case,
    Peer,
    Scene,
    cases,
    command,
    judge,
    numbered,
    read_cdb,
    reject,
    scene,
    sense,
    status,
    write_cdb,
)

AHEAD: dict[str, Callable[[Peer], int]] = {
    "just below the window": lambda peer: peer.cmd_sn - 1,
    "far below": lambda peer: peer.cmd_sn - 1000,
    "just above": lambda peer: peer.max_cmd_sn + 1,
    "far above": lambda peer: peer.max_cmd_sn + 1000,
    "half the circle away": lambda peer: peer.cmd_sn + (1 << 31),
}


@pytest.mark.parametrize("name", AHEAD)
@pytest.mark.parametrize("kind", ["command", "text", "logout", "task management", "ping"])
def test_outside_the_window(name: str, kind: str) -> None:
    """Section 4.2.2.1: "The target MUST silently ignore any non-immediate command outside of this range"."""
    with scene() as it:
        peer = it.login()
        wrong = AHEAD[name](peer) & 0xFFFFFFFF
        requests = {
            "command": lambda: command(peer, TEST_UNIT_READY, NEITHER, 0, cmd_sn=wrong),
            "text": lambda: encode(pdu.TextRequest(initiator_task_tag=TAG, cmd_sn=wrong), b"SendTargets=\0"),
            "logout": lambda: encode(pdu.LogoutRequest(initiator_task_tag=TAG, cmd_sn=wrong)),
            "task management": lambda: encode(
                pdu.TaskManagementRequest(flags=pdu.FINAL | 5, initiator_task_tag=TAG, cmd_sn=wrong)
            ),
            "ping": lambda: encode(pdu.NopOut(initiator_task_tag=TAG, cmd_sn=wrong), b"?"),
        }
        it.send(requests[kind]())
        it.silent()
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0))
        status()(it)


@pytest.mark.parametrize("first", [0xFFFFFFFC, 0xFFFFFFFF, 0x7FFFFFFC])
def test_cmd_sn_wraps(first: int) -> None:
    """Serial arithmetic: 2^32 − 1 is followed by 0, which is neither behind nor ahead."""
    with scene() as it:
        it.bad = it.connect(first_cmd_sn=first)
        peer = it.login()
        for number in range(12):
            it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, initiator_task_tag=TAG + number))
            status(tag=TAG + number)(it)
        assert peer.exp_cmd_sn == (peer.cmd_sn & 0xFFFFFFFF)
        assert (peer.exp_cmd_sn - first) & 0xFFFFFFFF < 100


def test_a_gap_is_waited_for() -> None:
    """Commands inside the window come to execution in the order of CmdSN, whatever order they came in; once each."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No")  # a place in the window costs nothing then
        first = peer.cmd_sn
        for number in (3, 1, 2, 1):
            cmd_sn = first + number
            it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, initiator_task_tag=TAG + number, cmd_sn=cmd_sn))
        assert it.says() == []
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, initiator_task_tag=TAG, cmd_sn=first))
        assert [each.header.initiator_task_tag for each in it.says()] == [TAG, TAG + 1, TAG + 2, TAG + 3]
        peer.cmd_sn = first + 4
        it.lives()


def held(it: Scene) -> None:
    """The bad peer's disk is slow from here on."""
    it.house.service.handles[-1].hold()


def let_go(it: Scene) -> None:
    it.house.service.handles[-1].let_go()


def test_a_task_tag_in_use() -> None:
    """Section 11.2.1.8: a tag is unique among the session's outstanding tasks: Reject, "task in progress"."""
    with scene() as it:
        peer = it.login()
        held(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.send(command(peer, read_cdb(0, 1), READ, 512))
        it.rejected(pdu.REJECT_TASK_IN_PROGRESS)
        let_go(it)
        status()(it)
        it.send(command(peer, read_cdb(0, 1), READ, 512))  # it is free again
        status()(it)


@cases(
    Case(
        "of a SCSI Command",
        lambda peer: command(peer, TEST_UNIT_READY, NEITHER, 0, initiator_task_tag=pdu.RESERVED_TAG),
        reject(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    Case(
        "of a Text Request",
        lambda peer: numbered(peer, pdu.TextRequest(initiator_task_tag=pdu.RESERVED_TAG), b"a=b\0"),
        reject(pdu.REJECT_INVALID_PDU_FIELD),
    ),
    Case(
        # Section 11.18: such a NOP-Out asks for no echo; it only brings numbers.
        "of a NOP-Out",
        lambda peer: numbered(peer, pdu.NopOut(initiator_task_tag=pdu.RESERVED_TAG), b"no echo"),
        lambda it: it.silent(),
    ),
)
def test_the_reserved_task_tag(case: Case) -> None:
    """0xffffffff names no task."""
    judge(case)


@pytest.mark.parametrize("exp_stat_sn", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_an_exp_stat_sn_that_is_not_ours(exp_stat_sn: int) -> None:
    """At ErrorRecoveryLevel 0 it frees nothing that could be missed: advisory (strictness broke old initiators)."""
    with scene() as it:
        peer = it.login()
        it.send(command(peer, read_cdb(0, 1), READ, 512, exp_stat_sn=exp_stat_sn))
        status()(it)


def test_a_flood_of_immediate_commands() -> None:
    """Section 4.2.2.1: a target may reject immediate commands "due to a lack of resources"; those it took are done."""
    flood = IMMEDIATE_LIMIT + 36
    with scene() as it:
        peer = it.login()
        held(it)
        for number in range(flood):
            it.send(
                command(
                    peer,
                    read_cdb(0, 1),
                    READ,
                    512,
                    opcode=pdu.ScsiCommand.OPCODE | pdu.IMMEDIATE,
                    initiator_task_tag=TAG + number,
                )
            )
        rejects = [each.header.reason for each in it.says()]
        assert rejects == [pdu.REJECT_IMMEDIATE_COMMAND] * 36
        let_go(it)
        done = {each.header.initiator_task_tag: each.header.status for each in it.says()}
        assert done == {TAG + number: scsi.GOOD for number in range(IMMEDIATE_LIMIT)}
        it.lives()


def solicited(it: Scene, blocks: int = 8) -> pdu.ReadyToTransfer:
    """A WRITE that waits for its data: its R2T."""
    peer = it.login(InitialR2T="Yes", ImmediateData="No", MaxBurstLength=str(blocks * 512))
    it.send(command(peer, write_cdb(0, blocks), WRITE, blocks * 512))
    r2t = it.answer()
    assert isinstance(r2t, pdu.ReadyToTransfer)
    return r2t


def data_out(it: Scene, r2t: pdu.ReadyToTransfer, number: int, at: int, *, final: bool = False) -> None:
    """512 bytes."""
    header = pdu.DataOut(
        flags=pdu.FINAL if final else 0, initiator_task_tag=r2t.initiator_task_tag, data_sn=number,
        target_transfer_tag=r2t.target_transfer_tag, buffer_offset=at * 512,
    )  # fmt: skip
    it.send(encode(header, bytes(512)))


# (DataSN, block) of the Data-Out PDUs of a sequence of eight; the last bears F.
ORDERS: dict[str, list[tuple[int, int]]] = {
    "all of them 0": [(0, block) for block in range(8)],
    "a gap": [(0, 0), *((number, number) for number in range(2, 8)), (8, 1)],
    "27 first": [(27, 0), *((number, number) for number in range(1, 8))],
    "-1 first": [(0xFFFFFFFF, 0), *((number, number) for number in range(1, 8))],
    "reversed": [(7 - number, number) for number in range(8)],
    "a piece twice": [(0, 0), (1, 1), (1, 1), *((number, number) for number in range(2, 7))],
    "shuffled": [(number, block) for number, block in enumerate(random.Random(5).sample(range(8), 8))],
}


@pytest.mark.parametrize("name", ORDERS)
def test_data_sn_out_of_turn(name: str) -> None:
    """The task ends with ABORTED COMMAND, 0B/0C/0D, once; the rest is drained, and nothing is written."""
    with scene() as it:
        before = bytes(it.good.do(it.good.read(0, 8)).data)
        r2t = solicited(it)
        order = ORDERS[name]
        for count, (number, block) in enumerate(order, 1):
            data_out(it, r2t, number, block, final=count == len(order))
        sense(0x0B, 0x0C, 0x0D)(it)
        assert bytes(it.good.do(it.good.read(0, 8)).data) == before


def test_r2t_sn_counts() -> None:
    """R2TSN and offsets run on without a gap, one R2T after the other, as far as MaxOutstandingR2T goes."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes", ImmediateData="No", MaxBurstLength="1024", MaxOutstandingR2T="1")
        it.send(command(peer, write_cdb(0, 8), WRITE, 4096))
        for number in range(4):
            r2t = it.answer()
            assert (r2t.r2t_sn, r2t.buffer_offset, r2t.desired_data_transfer_length) == (number, 1024 * number, 1024)
            data_out(it, r2t, 0, 2 * number)
            data_out(it, r2t, 1, 2 * number + 1, final=True)
        status()(it)
