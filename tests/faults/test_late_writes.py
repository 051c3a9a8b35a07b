"""A write that hangs in the volume server, and everything that may happen before it lands (CONTRACTS 2).

The server's first write into one block takes SLOW_S. Issue #2 speaks of 5 s; what is tested does not depend on the
number, and the suite is to be quick. After each of these the block holds what was acknowledged last, and still does
when the slow write's time is long over.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.net import driver
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.target import Settings
from iscsi_ovs.testing.socket_initiator import LoginRefusedError
from tests.faults.targets import Bench, Disk, ProcessTarget, ThreadTarget, wait_until

SLOW_S = 1.0
LBA = 2048
OLD, NEW = b"L" * 4096, b"N" * 4096


class Late:
    """The slow write of this test: when it began, and what the block holds after its time."""

    def __init__(self, bench: Bench) -> None:
        rule = {"operations": ["write"], "offset": LBA * 512, "length": 4096, "seconds": SLOW_S, "count": 1}
        bench.serve(delay=[rule])
        self.bench = bench
        self.begun = 0.0
        self.tag = 0

    def begin(self, disk: Disk) -> None:
        """The write is sent, and in the volume server."""
        self.tag = disk.begin_write(LBA, OLD)
        self.bench.until_in_flight()
        self.begun = time.monotonic()

    def is_over(self) -> bool:
        return self.bench.in_flight() == 0

    def check(self, disk: Disk) -> None:
        """What is written now stays, whatever is still under way."""
        disk.write(LBA, NEW)
        assert disk.read(LBA, 8) == NEW
        wait_until(lambda: time.monotonic() > self.begun + SLOW_S + 0.2 and self.is_over(), "the late write is over")
        assert disk.read(LBA, 8) == NEW


@pytest.fixture
def late(bench: Bench) -> Late:
    return Late(bench)


def log_in(bench: Bench, target: ThreadTarget | ProcessTarget, number: int) -> Disk:
    """A login that is repeated while the target can't admit it yet, as initiators do."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return bench.login(target, number)
        except LoginRefusedError as refused:
            if refused.status[0] != 3 or time.monotonic() > deadline:  # a target error is worth another try
                raise


def kill(disk: Disk) -> None:
    """The initiator's end, as its kernel tells it after kill -9: a reset."""
    disk._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    disk.close()


def test_abort_task(bench: Bench, late: Late) -> None:
    """ABORT TASK is answered *complete* when the write is really over, and not before; the write is not answered."""
    disk = bench.login(bench.target())
    late.begin(disk)
    result = disk.tmf(pdu.ABORT_TASK, referenced_task_tag=late.tag)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert late.is_over()
    assert time.monotonic() - late.begun > SLOW_S / 2
    assert not disk.initiator.results[late.tag].is_complete
    late.check(disk)
    assert not disk.initiator.results[late.tag].is_complete


@pytest.fixture
def short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task management gives up before the late write is over."""
    monkeypatch.setattr(ThreadTarget, "settings", Settings(timing=Timing(management_s=0.1)))
    monkeypatch.setattr(driver, "TICK_S", 0.05)


@pytest.mark.usefixtures("short_deadline")
def test_abort_task_at_its_deadline(bench: Bench, late: Late) -> None:
    """A write that does not end in time: *rejected*, never *complete*, and said once; the session goes on."""
    disk = bench.login(bench.target())
    late.begin(disk)
    result = disk.tmf(pdu.ABORT_TASK, referenced_task_tag=late.tag)
    assert result.response == pdu.FUNCTION_REJECTED
    assert not late.is_over()
    wait_until(late.is_over, "the late write is over")
    assert disk.nop_out(b"still here").data == b"still here"
    late.check(disk)


@pytest.mark.usefixtures("short_deadline")
def test_abort_task_then_killed(bench: Bench, late: Late) -> None:
    """Aborted, rejected at the deadline, its initiator killed, a new login writes there: the newer write stays."""
    target = bench.target()
    disk = bench.login(target)
    late.begin(disk)
    assert disk.tmf(pdu.ABORT_TASK, referenced_task_tag=late.tag).response == pdu.FUNCTION_REJECTED
    kill(disk)
    late.check(log_in(bench, target, 1))


@pytest.mark.parametrize("number", [1, 2], ids=["the same initiator port", "another one"])
@pytest.mark.parametrize("end", [kill, Disk.close], ids=["reset", "closed"])
def test_initiator_killed(bench: Bench, late: Late, number: int, end: Callable[[Disk], None]) -> None:
    """Its initiator dies with the write in the server: whoever logs in next writes after it, not before."""
    target = bench.target()
    disk = bench.login(target)
    late.begin(disk)
    end(disk)
    wait_until(lambda: bool(target.server.disks), "the target runs")
    late.check(log_in(bench, target, number))


def test_session_reinstatement(bench: Bench, late: Late) -> None:
    """The same initiator port logs in again while its old session lives: that one ends first, with its write."""
    target = bench.target()
    old = bench.login(target)
    late.begin(old)
    new = log_in(bench, target, 1)
    assert late.is_over()
    with pytest.raises((EOFError, ConnectionError)):
        old.nop_out(b"anybody there?")
    late.check(new)


def test_logical_unit_reset(bench: Bench, late: Late) -> None:
    """LOGICAL UNIT RESET from another session is *complete* when the write is over; its session hears of the reset."""
    target = bench.target()
    disk, other = bench.login(target, 1), bench.login(target, 2)
    late.begin(disk)
    assert other.tmf(pdu.LOGICAL_UNIT_RESET).response == pdu.FUNCTION_COMPLETE
    assert late.is_over()
    assert not disk.initiator.results[late.tag].is_complete
    reset = disk.command(bytes(6))
    assert (reset.sense_key, reset.additional_sense and reset.additional_sense[0]) == (6, 0x29)
    other.attention()
    late.check(other)
    assert disk.read(LBA, 8) == NEW


def test_logout(bench: Bench, late: Late) -> None:
    """A logout is answered when nothing of the session can reach the volume any more."""
    target = bench.target()
    disk = bench.login(target)
    late.begin(disk)
    disk.logout()
    assert disk.initiator.is_logged_out
    assert late.is_over()
    late.check(log_in(bench, target, 1))


def test_target_killed(bench: Bench, late: Late) -> None:
    """kill -9 of the whole target with the write in the server: another target opens the volume when it is over."""
    target = bench.target_process()
    disk = bench.login(target)
    late.begin(disk)
    target.kill()
    late.check(log_in(bench, bench.target_process(), 1))


def test_target_killed_with_another_there(bench: Bench, late: Late) -> None:
    """The same with a second target that waits for the volume: it is refused, or let in after the write."""
    first, second = bench.target_process(), bench.target_process()
    disk = bench.login(first)
    with pytest.raises(LoginRefusedError) as refused:
        bench.login(second, 2)
    assert refused.value.status == (3, 1), "service unavailable: the volume is another target's"
    late.begin(disk)
    first.kill()
    late.check(log_in(bench, second, 2))
