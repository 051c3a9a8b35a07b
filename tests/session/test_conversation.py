"""Whole exchanges between the protocol core and the test initiator, both without I/O."""

from __future__ import annotations

import os

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session import events
from iscsi_ovs.session.space import Space
from iscsi_ovs.session.states import State
from iscsi_ovs.storage.slots import SlotPool
from tests.session.conversation import BLOCK, Conversation, read_cdb, write_cdb

COMBINATIONS = [
    (initial_r2t, immediate, first, burst, segment)
    for initial_r2t in ("Yes", "No")
    for immediate in ("Yes", "No")
    for first, burst, segment in [
        (512, 512, 512),
        (4096, 8192, 4096),
        (65536, 262144, 8192),
        (1536, 3584, 1000),
        (262144, 16776192, 262144),
    ]
]


@pytest.mark.parametrize(("initial_r2t", "immediate", "first", "burst", "segment"), COMBINATIONS)
@pytest.mark.parametrize("size", [512, 4096, 66048, 1 << 20])
def test_what_is_written_is_read_back(
    initial_r2t: str, immediate: str, first: int, burst: int, segment: int, size: int
) -> None:
    """Immediate, unsolicited and solicited data land where they belong, under any negotiated sizes."""
    talk = Conversation()
    initiator = talk.login(
        InitialR2T=initial_r2t,
        ImmediateData=immediate,
        FirstBurstLength=str(first),
        MaxBurstLength=str(burst),
        MaxRecvDataSegmentLength=str(segment),
    )
    data = os.urandom(size)
    tag = initiator.command(write_cdb(3, size // BLOCK), write=data)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    assert initiator.results[tag].residual_count == 0
    assert talk.disk[3 * BLOCK : 3 * BLOCK + size] == data
    tag = initiator.command(read_cdb(3, size // BLOCK), read=size)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    assert bytes(initiator.results[tag].data) == data
    assert talk.space.pool is not None
    window = talk.session.window  # type: ignore[union-attr]
    assert talk.space.pool.free_slots + window.granted_slots == talk.space.pool.capacity_slots


@pytest.mark.parametrize("piece", [1, 7, 47, 48, 49, 1000, 16384])
def test_any_cut_of_the_stream_is_the_same(piece: int) -> None:
    """Bytes may come one by one."""
    talk = Conversation()
    talk.piece = piece
    initiator = talk.login()
    data = os.urandom(70000 // BLOCK * BLOCK)
    tags = [initiator.command(write_cdb(0, len(data) // BLOCK), write=data)]
    tags += [initiator.command(read_cdb(n, 3), read=3 * BLOCK) for n in range(5)]
    initiator.nop_out(b"x" * 77)
    talk.run()
    assert [initiator.results[tag].status for tag in tags] == [scsi.GOOD] * 6
    assert talk.disk[: len(data)] == data


def test_many_commands_in_one_batch() -> None:
    """A burst of small writes and reads is taken in one go, and the window lets all of them through."""
    talk = Conversation(slots=2048)
    initiator = talk.login()
    written = {n: os.urandom(4096) for n in range(200)}
    tags = [initiator.command(write_cdb(n * 8, 8), write=data) for n, data in written.items()]
    talk.run()
    assert all(initiator.results[tag].status == scsi.GOOD for tag in tags)
    for n, data in written.items():
        assert talk.disk[n * 4096 : (n + 1) * 4096] == data


@pytest.mark.parametrize(
    ("expected", "blocks", "flag", "residual"),
    [(512, 2, "overflow", 512), (2048, 1, "underflow", 1536), (1024, 2, None, 0)],
)
def test_residuals_of_reads(expected: int, blocks: int, flag: str | None, residual: int) -> None:
    """What the initiator expected and SCSI moved may differ both ways (section 11.4.5)."""
    talk = Conversation()
    initiator = talk.login()
    tag = initiator.command(read_cdb(0, blocks), read=expected)
    talk.run()
    result = initiator.results[tag]
    assert (result.overflow, result.underflow) == (flag == "overflow", flag == "underflow")
    assert result.residual_count == residual
    assert len(result.data) == min(expected, blocks * BLOCK)


def test_a_command_below_or_above_the_window_is_ignored() -> None:
    """Section 4.2.2.1: silently; the session goes on."""
    talk = Conversation()
    initiator = talk.login()
    for wrong in (-1, 5000):
        header = pdu.ScsiCommand(
            flags=pdu.FINAL | pdu.READ,
            initiator_task_tag=0x7000,
            cmd_sn=initiator.cmd_sn + wrong,
            expected_data_transfer_length=512,
            cdb=read_cdb(0, 1).ljust(16, b"\0"),
        )
        initiator.raw(header)
        talk.run()
        assert not talk.commands
    tag = initiator.command(read_cdb(0, 1), read=512)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD


def test_commands_out_of_order_wait_for_their_turn() -> None:
    """Inside the window CmdSN decides the order of delivery, not arrival."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    first = initiator.cmd_sn
    for step in (1, 0):
        initiator.raw(
            pdu.ScsiCommand(
                flags=pdu.FINAL | pdu.READ,
                initiator_task_tag=0x7000 + step,
                cmd_sn=first + step,
                expected_data_transfer_length=512,
                cdb=read_cdb(step, 1).ljust(16, b"\0"),
            )
        )
        talk.run()
    assert [command.context.initiator_task_tag for command in talk.commands] == [0x7000, 0x7001]


def test_an_aborted_write_that_still_receives_dies_at_once() -> None:
    """ABORT TASK between R2T and data: function complete, the data that still comes is drained."""
    talk = Conversation()
    initiator = talk.login(ImmediateData="No", InitialR2T="Yes")
    initiator.answer_r2t = False
    tag = initiator.command(write_cdb(0, 16), write=b"a" * 8192)
    talk.run()
    assert initiator.results[tag].r2ts == 1
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_COMPLETE
    r2t = next(seen.header for seen in initiator.received if isinstance(seen.header, pdu.ReadyToTransfer))
    initiator.answer(r2t)
    talk.run()
    assert not talk.commands
    assert bytes(talk.disk[:8192]) == bytes(8192)
    assert talk.connection.state is State.FULL_FEATURE


def test_a_task_that_the_volume_server_has_is_complete_only_when_it_returns() -> None:
    """CONTRACTS 2: the task management response waits for the zombie."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    tag = initiator.command(write_cdb(0, 1), write=b"b" * 512)
    talk.run()
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    assert not initiator.results[abort].is_complete
    talk.execute()
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_COMPLETE
    assert not initiator.results[tag].is_complete


def test_a_stuck_abort_is_rejected_at_its_deadline() -> None:
    """Never "complete" for a task that may still write."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    tag = initiator.command(write_cdb(0, 1), write=b"b" * 512)
    talk.run()
    abort = initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    talk.run()
    talk.happened(talk.connection.tick(20.0))
    talk.run()
    assert initiator.results[abort].response == pdu.FUNCTION_REJECTED
    talk.execute()
    talk.run()
    answers = [seen for seen in initiator.received if isinstance(seen.header, pdu.TaskManagementResponse)]
    assert len(answers) == 1


def test_logout_waits_for_the_last_task() -> None:
    """The Logout Response says that nothing of the session can happen any more."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    initiator.command(write_cdb(0, 1), write=b"c" * 512)
    talk.run()
    initiator.logout()
    talk.run()
    assert not initiator.is_logged_out
    assert talk.session is not None
    talk.execute()
    talk.run()
    assert initiator.is_logged_out
    assert talk.connection.is_closed


def test_a_lost_connection_frees_all_slots_when_its_zombies_return() -> None:
    """What the volume server has stays taken until it answers; everything else is free at once."""
    talk = Conversation()
    talk.executes_at_once = False
    initiator = talk.login()
    initiator.command(write_cdb(0, 8), write=b"c" * 4096)
    initiator.answer_r2t = False
    initiator.command(write_cdb(0, 2048), write=b"c" * (1 << 20))
    talk.run()
    gone: list[bool] = []
    talk.happened(talk.connection.lost("cable"))
    assert talk.session is not None
    talk.session.when_idle(lambda: gone.append(True))
    assert not gone
    talk.execute()
    assert gone == [True]
    talk.session.window.close()
    pool = talk.space.pool
    assert pool is not None
    assert pool.free_slots == pool.capacity_slots
    assert pool.reserved_slots == 0


def test_space_is_taken_in_order_of_arrival_and_everybody_finishes() -> None:
    """Many sessions with writes far beyond what the segment holds at a time."""
    space = Space()
    space.attach(SlotPool(memoryview(bytearray(96 * 65536)), 65536), [])
    talks = [Conversation(space=space, isid=bytes((0x80, 0, 0, 0, 0, n))) for n in range(12)]
    tags = []
    for talk in talks:
        initiator = talk.login()
        tags.append([initiator.command(write_cdb(0, 2048), write=os.urandom(1 << 20)) for _ in range(4)])
    for _ in range(200):
        for talk in talks:
            talk.run()
        space.serve()
    for talk, wanted in zip(talks, tags, strict=True):
        assert [talk.initiator.results[tag].status for tag in wanted] == [scsi.GOOD] * 4


def test_a_thousand_idle_sessions_fit() -> None:
    """CONTRACTS 3: the default region, three quarters of it ours."""
    space = Space()
    space.attach(SlotPool(memoryview(bytearray(3072 * 64)), 64), [])
    space.pool.slot_bytes = 65536  # type: ignore[union-attr]  # the arithmetic of slots, without their memory
    talks = [Conversation(space=space, isid=bytes((0x80, 0, 0, 0, n >> 8, n & 255))) for n in range(1000)]
    for talk in talks:
        initiator = talk.login()
        assert initiator.max_cmd_sn - initiator.exp_cmd_sn + 1 >= 1
    assert space.granted_slots <= 1536


def test_ping_both_ways() -> None:
    """A NOP-Out is echoed; silence makes the target ping, and no answer ends the connection."""
    talk = Conversation()
    initiator = talk.login()
    tag = initiator.nop_out(b"hello")
    talk.run()
    assert bytes(initiator.results[tag].data) == b"hello"
    talk.happened(talk.connection.tick(31.0))
    talk.run()  # the initiator answers
    talk.happened(talk.connection.tick(32.0))
    assert talk.connection.state is State.FULL_FEATURE
    initiator.answer_pings = False
    talk.now = 32.0
    talk.happened(talk.connection.tick(70.0))
    talk.run()
    talk.happened(talk.connection.tick(101.0))
    assert talk.connection.is_closed


def test_a_login_that_never_comes_is_given_up() -> None:
    talk = Conversation()
    talk.happened(talk.connection.tick(14.0))
    assert not talk.connection.is_closed
    talk.happened(talk.connection.tick(16.0))
    assert isinstance(talk.told[-1], events.ConnectionClosed)


def test_the_server_goes_away_in_the_middle() -> None:
    """Commands that wait for slots, and those that come now, are answered BUSY; the session lives on."""
    talk = Conversation(slots=32)
    talk.executes_at_once = False
    initiator = talk.login()
    assert talk.session is not None
    blocker = talk.space.pool.allocate(20 << 16)  # type: ignore[union-attr]
    assert blocker is not None
    waiting = initiator.command(write_cdb(0, 2048), write=bytes(1 << 20))
    talk.run()
    talk.space.detach()
    talk.session.space_lost()
    talk.run()
    assert initiator.results[waiting].status == scsi.BUSY
    late = initiator.command(write_cdb(0, 8), write=bytes(4096))
    talk.run()
    assert initiator.results[late].status == scsi.BUSY
    talk.space.attach(SlotPool(memoryview(bytearray(32 * 65536)), 65536), [talk.session.window])
    talk.executes_at_once = True
    again = initiator.command(write_cdb(0, 8), write=b"d" * 4096)
    talk.run()
    assert initiator.results[again].status == scsi.GOOD
    assert bytes(talk.disk[:4096]) == b"d" * 4096
