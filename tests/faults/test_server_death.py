"""The volume server away, and volumes that change under sessions: what initiators see (CONTRACTS 5, 9, 10)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from iscsi_ovs.shm_client import Context
from iscsi_ovs.testing.socket_initiator import LoginRefusedError
from tests.faults.targets import (
    BLOCK,
    READ_CAPACITY_16,
    TEST_UNIT_READY,
    Bench,
    Disk,
    ThreadTarget,
    read_16,
    wait_until,
    write_16,
)

MIB = 1 << 20
BUSY = 8
SANITIZE_IN_PROGRESS = (0x04, 0x1B)


@pytest.fixture
def manager(bench: Bench, target: ThreadTarget) -> Iterator[Context]:
    with bench.context() as context:
        yield context


def capacity(disk: Disk) -> int:
    """Bytes, by READ CAPACITY (16)."""
    result = disk.command(READ_CAPACITY_16, read=32)
    assert result.status == 0, result.sense.hex()
    return (int.from_bytes(result.data[:8], "big") + 1) * int.from_bytes(result.data[8:12], "big")


def is_gone(disk: Disk) -> bool:
    """The target has closed the connection."""
    try:
        disk.nop_out()
    except (EOFError, ConnectionError):
        return True
    return False


def test_the_session_outlives_the_server(bench: Bench, target: ThreadTarget, disk: Disk) -> None:
    """While it is down pings are answered and I/O is BUSY; when it is back the same session reads what it wrote."""
    disk.write(0, b"a" * 4096)
    bench.server.kill()
    wait_until(lambda: disk.command(read_16(0, 8), read=4096).status == BUSY, "the target has noticed")
    for number in range(20):
        assert disk.nop_out(b"%d" % number).data == b"%d" % number
        assert disk.command(write_16(0, 8), write=b"b" * 4096).status == BUSY
    assert disk.command(bytes.fromhex("12000000ff00"), read=255).status == 0, "INQUIRY needs no server"
    assert list(disk.send_targets("")) == ["iqn.2016-01.com.openvstorage:demo"]
    bench.server.start()
    wait_until(lambda: disk.command(TEST_UNIT_READY).status == 0, "the disk is back")
    assert disk.read(0, 8) == b"a" * 4096
    disk.write(0, b"c" * 4096)
    assert disk.read(0, 8) == b"c" * 4096


def test_what_is_in_flight_is_busy(bench: Bench, disk: Disk) -> None:
    """Reads and writes that the server took with it are answered BUSY: they may be repeated."""
    bench.server.signal(signal.SIGSTOP)
    tags = [disk.initiator.command(write_16(8 * n, 8), write=b"x" * 4096) for n in range(3)]
    tags += [disk.initiator.command(read_16(8 * n, 8), read=4096) for n in range(3)]
    assert disk.nop_out(b"before").data == b"before"
    bench.server.kill()
    assert [disk.wait(tag).status for tag in tags] == [BUSY] * 6
    bench.server.start()


def test_what_may_not_be_done_twice_is_aborted(bench: Bench, disk: Disk) -> None:
    """COMPARE AND WRITE and EXTENDED COPY: nobody knows whether they were done, so ABORTED COMMAND and not BUSY."""
    naa = disk.command(bytes.fromhex("120183040000"), read=1024).data[8:16]
    named = bytes.fromhex("e400000001030008") + naa.ljust(20, b"\0") + BLOCK.to_bytes(4, "big")
    segment = bytes.fromhex("020000180000000000000008") + (0).to_bytes(8, "big") + (64).to_bytes(8, "big")
    copies = bytes.fromhex("01000020000000000000001c00000000") + named + segment
    bench.server.signal(signal.SIGSTOP)
    tags = [
        disk.initiator.command(bytes.fromhex("89" + "00" * 12 + "010000"), write=bytes(2 * BLOCK)),
        disk.initiator.command(bytes.fromhex("83" + "00" * 9 + "0000004c0000"), write=copies),
    ]
    assert disk.nop_out(b"before").data == b"before"
    bench.server.kill()
    assert [disk.wait(tag).sense[2] & 0xF for tag in tags] == [0xB, 0xB]
    bench.server.start()


def test_a_sanitize_operation_goes_on(bench: Bench) -> None:
    """SBC-3 4.11: after a restart of the server the unit still says that it is being sanitized, until it is."""
    bench.serve(size=2 << 20, delay=[{"operations": ["flush"], "seconds": 1.5}])
    target = bench.target()
    disk = bench.login(target)
    disk.write(0, b"s" * 4096)
    sanitize = bytes.fromhex("48810000000000") + (8).to_bytes(2, "big") + b"\0"  # OVERWRITE, IMMED
    assert disk.command(sanitize, write=bytes.fromhex("01000004 c3c3c3c3")).status == 0
    assert disk.command(TEST_UNIT_READY).additional_sense == SANITIZE_IN_PROGRESS
    bench.server.kill()
    bench.server.start()
    with bench.context() as context:
        assert context.stat_volume("demo").sanitize is not None
    for command, room in ((TEST_UNIT_READY, 0), (read_16(0, 8), 4096)):
        assert disk.command(command, read=room).additional_sense == SANITIZE_IN_PROGRESS
    wait_until(lambda: disk.command(TEST_UNIT_READY).status == 0, "it is sanitized")
    assert disk.read(0, 8) == b"\xc3" * 4096
    assert disk.read((2 << 20) // BLOCK - 8, 8) == b"\xc3" * 4096


def test_login_while_the_server_is_down(bench: Bench, target: ThreadTarget, disk: Disk) -> None:
    """It is refused with 03/01, service unavailable, for which Linux tries again; discovery works; then it succeeds."""
    bench.server.kill()
    wait_until(lambda: disk.command(TEST_UNIT_READY).status == BUSY, "the target has noticed")
    with pytest.raises(LoginRefusedError) as refused:
        bench.login(target, 2)
    assert refused.value.status == (3, 1)
    finder = Disk(target.address, 3)
    bench.disks.append(finder)
    finder.login(None)
    assert list(finder.send_targets()) == ["iqn.2016-01.com.openvstorage:demo"]
    bench.server.start()
    wait_until(lambda: disk.command(TEST_UNIT_READY).status == 0, "the disk is back")
    bench.login(target, 2).write(0, bytes(BLOCK))


@pytest.mark.parametrize("name", ["iqn.2016-01.com.openvstorage:demo", None], ids=["login", "discovery"])
def test_a_target_that_has_not_reached_the_server_yet(bench: Bench, name: str | None) -> None:
    """It says "not now" (03/01), never "no such target", at which Linux gives up a session that outlived its target."""
    bench.serve()
    bench.server.signal(signal.SIGSTOP)
    try:
        early = bench.target(is_ready=False)
        disk = Disk(early.address)
        bench.disks.append(disk)
        with pytest.raises(LoginRefusedError) as refused:
            disk.login(name)
        assert refused.value.status == (3, 1)
    finally:
        bench.server.signal(signal.SIGCONT)
    early.wait_ready()
    bench.login(early, 2)


def test_growth(bench: Bench, target: ThreadTarget, disk: Disk, manager: Context) -> None:
    """When the command returns, READ CAPACITY is new on every session, and each gets 06/2A/09 once."""
    other = bench.login(target, 2)
    assert capacity(disk) == 64 * MIB
    assert disk.command(write_16(64 * MIB // BLOCK, 8), write=bytes(4096)).sense_key == 5
    manager.truncate_volume("demo", 96 * MIB)
    for session in (disk, other):
        told = session.command(TEST_UNIT_READY)
        assert (told.sense_key, told.additional_sense) == (6, (0x2A, 0x09))
        assert session.command(TEST_UNIT_READY).status == 0
        assert capacity(session) == 96 * MIB
    disk.write(96 * MIB // BLOCK - 8, b"z" * 4096)
    assert other.read(96 * MIB // BLOCK - 8, 8) == b"z" * 4096
    assert capacity(bench.login(target, 3)) == 96 * MIB


def test_growth_without_an_attention_for_who_comes_later(bench: Bench, target: ThreadTarget, manager: Context) -> None:
    """A session of after the growth sees the size and no attention about it."""
    manager.truncate_volume("demo", 80 * MIB)
    disk = Disk(target.address, 4)
    bench.disks.append(disk)
    disk.login("iqn.2016-01.com.openvstorage:demo")
    senses = []
    while (told := disk.command(TEST_UNIT_READY)).status:
        senses.append(told.additional_sense)
    assert (0x2A, 0x09) not in senses
    assert capacity(disk) == 80 * MIB


def test_forced_removal(bench: Bench, target: ThreadTarget, disk: Disk, manager: Context) -> None:
    """A held volume is EBUSY; by force its sessions are logged out, it is gone, and sessions on others stay."""
    manager.create_volume("other", 16 * MIB)
    wait_until(lambda: len(target.server.disks) == 2, "the new volume is served")
    other = bench.login(target, 2, volume="other")
    with pytest.raises(OSError, match="held by iscsi target, 1 session") as busy:
        manager.remove_volume("demo")
    assert busy.value.errno == 16
    disk.begin_write(0, bytes(MIB))
    manager.remove_volume("demo", force=True)
    assert [volume.name for volume in manager.list_volumes()] == ["other"]
    assert is_gone(disk)
    assert not is_gone(other)
    other.write(0, b"o" * 4096)
    wait_until(lambda: len(target.server.disks) == 1, "the volume is withdrawn")
    with pytest.raises(LoginRefusedError) as refused:
        bench.login(target, 3)
    assert refused.value.status == (2, 3)
    assert list(other.send_targets("")) == ["iqn.2016-01.com.openvstorage:other"]


def test_removed_and_made_again(bench: Bench, target: ThreadTarget, disk: Disk, manager: Context) -> None:
    """A volume of the same name is another one: a new session reads zeros, and another identity."""

    def identity(session: Disk) -> bytes:
        return bytes(session.command(bytes.fromhex("12018000ff00"), read=255).data)

    disk.write(0, b"old" + bytes(4093))
    before = identity(disk)
    manager.remove_volume("demo", force=True)
    manager.create_volume("demo", 16 * MIB)
    wait_until(lambda: any(d.info.size_bytes == 16 * MIB for d in target.server.disks), "it is served")
    new = bench.login(target)
    assert new.read(0, 8) == bytes(4096)
    assert identity(new) != before


def test_stopped_with_requests_in_flight(bench: Bench, target: ThreadTarget, disk: Disk) -> None:
    """A target that is stopped while the server has its requests ends without a word of failure."""
    bench.server.signal(signal.SIGSTOP)
    for number in range(4):
        disk.begin_write(8 * number, bytes(4096))
    assert disk.nop_out(b"x").data == b"x"
    target.stop()
    bench.server.signal(signal.SIGCONT)
    assert is_gone(disk)
