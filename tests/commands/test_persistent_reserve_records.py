"""What PERSISTENT RESERVE OUT keeps: nothing holds before it is durable, and what is left after a power loss."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import registrations
from tests.commands.bench import cdb
from tests.commands.sharing import (
    APTPL,
    EARO,
    EXCLUSIVE_ACCESS,
    PREEMPT,
    REGISTER,
    RESERVE,
    WERO,
    Cluster,
    plain_list,
    register_all,
)

RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED, REGISTRATIONS_PREEMPTED = (0x2A, 3), (0x2A, 4), (0x2A, 5)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def start(cluster: Cluster, who: str, action: int, data: bytes, kind: int = 0) -> scsi.RecordUpdate:
    text = f"5f {action:02x} {kind:02x} 0000 {len(data):08x} 00"
    result = cluster.disk.start(text, data_out=data, nexus=cluster.nexuses[who])
    assert isinstance(result, scsi.RecordUpdate)
    return result


def test_nothing_holds_before_it_is_durable(cluster: Cluster) -> None:
    """Until then the unit is as it was; and if it never is, BUSY, and as if it had not been asked."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    update = start(cluster, "a1", RESERVE, plain_list(0xA1, 0), EXCLUSIVE_ACCESS)
    assert cluster.can_write("b1")
    assert cluster.reservation() is None
    outcome = update.finish(OSError(5, "the volume server is gone"))
    assert isinstance(outcome, scsi.Outcome)
    assert outcome.status == scsi.BUSY
    assert (cluster.can_write("b1"), cluster.reservation()) == (True, None)
    assert update.finish(None) == scsi.Outcome(transfer_bytes=24)
    assert (cluster.can_write("b1"), cluster.reservation()) == (False, (0xA1, EXCLUSIVE_ACCESS))


def test_what_changes_nothing_is_not_kept(cluster: Cluster) -> None:
    """RELEASE of nothing, RESERVE of what one has, REGISTER of nothing: no write for them."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    before = cluster.disk.records.pop("reservations")
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    cluster.do("b1", REGISTER, 0, 0)
    assert "reservations" not in cluster.disk.records
    assert registrations.decode(before, None).state.type == WERO


def after(cluster: Cluster, power_on: str) -> Cluster:
    """The same disk in another process, perhaps after a power loss."""
    another = Cluster()
    another.disk.unit = scsi.LogicalUnit(
        cluster.disk.unit.command_set, cluster.disk.unit.identity, block.Geometry(1 << 20)
    )
    another.disk.unit.power_on = power_on
    another.disk.router = scsi.TaskRouter(another.disk.unit.command_set, {0: another.disk.unit})
    another.disk.unit.load_record("reservations", 5, cluster.disk.records["reservations"])
    for nexus in another.nexuses.values():
        nexus.devices[another.disk.unit] = another.disk.device
        another.disk.login(nexus)
    return another


@pytest.mark.parametrize("flags", [0, APTPL])
def test_what_is_left_after_a_power_loss(cluster: Cluster, flags: int) -> None:
    """With APTPL all of it, from generation zero on; without it nothing. Another process of the same life has all."""
    cluster.do("a1", REGISTER, 0, 0xA1, flags=flags)
    cluster.do("b1", REGISTER, 0, 0xB1, flags=flags)
    cluster.do("b1", RESERVE, 0xB1, kind=EXCLUSIVE_ACCESS)
    another = after(cluster, "second")
    if flags:
        assert (another.keys(), another.reservation()) == ([0xA1, 0xB1], (0xB1, EXCLUSIVE_ACCESS))
        assert (another.can_read("a1"), another.can_read("b1")) == (False, True)
    else:
        assert (another.keys(), another.reservation()) == ([], None)
        assert another.can_write("a1")
    assert another.generation == 0
    assert another.all_attentions() == {}
    assert after(cluster, "first").generation == 2
    assert after(cluster, "first").reservation() == (0xB1, EXCLUSIVE_ACCESS)


def test_what_another_process_has_changed_is_heard_here(cluster: Cluster) -> None:
    """Its record brings the unit attentions, too: to the nexuses of this process."""
    register_all(cluster)
    another = after(cluster, "first")
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    cluster.do("b1", PREEMPT, 0xB1, 0xA1, kind=EARO)
    another.disk.unit.load_record("reservations", 7, cluster.disk.records["reservations"])
    assert another.reservation() == (0xB1, EARO)
    assert another.all_attentions() == {"a1": [REGISTRATIONS_PREEMPTED], "c1": [RESERVATIONS_RELEASED]}
    assert not another.can_write("a1")
    another.disk.unit.load_record("reservations", 7, cluster.disk.records["reservations"])
    assert another.all_attentions() == {}


def test_a_power_on_reset_is_a_power_loss(cluster: Cluster) -> None:
    """TARGET COLD RESET: what was not to persist is gone; other resets leave registrations alone."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("a1", RESERVE, 0xA1, kind=EXCLUSIVE_ACCESS)
    for kind in (scsi.Reset.LOGICAL_UNIT, scsi.Reset.HARD):
        cluster.disk.unit.reset(kind)
        cluster.all_attentions()
        assert cluster.reservation() == (0xA1, EXCLUSIVE_ACCESS)
    cluster.disk.unit.reset(scsi.Reset.POWER_ON)
    cluster.all_attentions()
    assert (cluster.keys(), cluster.reservation(), cluster.can_write("b1")) == ([], None, True)


def test_a_record_that_is_none(cluster: Cluster) -> None:
    """Anything but what we write is a ValueError, which keeps the unit from being served."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    good = cluster.disk.records["reservations"]
    assert registrations.decode(good, None).state.holder == cluster.registrant("a1")
    for at in range(len(good)):
        for bad in (good[:at], good[:at] + bytes([good[at] ^ 0x81]) + good[at + 1 :]):
            try:
                registrations.decode(bad, None)
            except ValueError:
                continue
            assert len(bad) in (0, len(good)), "a record that is cut can't be read"
    with pytest.raises(ValueError, match="format 2"):
        registrations.decode(good.replace(b"\xa6format\x01", b"\xa6format\x02"), None)


def test_before_the_record_is_read_there_is_no_answer(cluster: Cluster) -> None:
    """BUSY: nothing may be said of registrations that are not known, nor after a record that could not be read."""
    unit = scsi.LogicalUnit(cluster.disk.unit.command_set, cluster.disk.unit.identity, block.Geometry(1 << 20))
    command = scsi.Command(cluster.nexuses["a1"], 0, cdb("5e 00 0000000000 00ff 00"), 255)
    assert unit.execute(command) == scsi.Outcome(scsi.BUSY)
    with pytest.raises(ValueError):
        unit.load_record("reservations", 1, b"what is this?")
    assert unit.execute(command) == scsi.Outcome(scsi.BUSY)
    unit.load_record("reservations", 2, b"")
    result = unit.execute(command)
    assert isinstance(result, scsi.Outcome)
    assert (result.status, result.data) == (scsi.GOOD, bytes(8))
