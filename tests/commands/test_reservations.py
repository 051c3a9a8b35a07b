"""RESERVE and RELEASE as SPC-2 has them, how they end, and how they stand beside persistent reservations."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from tests.commands import sharing
from tests.commands.bench import Bench, code
from tests.commands.sharing import CLEAR, PREEMPT, REGISTER, RESERVE, TYPES, Cluster

RESERVE_6, RELEASE_6 = "16 00 000000 00", "17 00 000000 00"
RESERVE_10, RELEASE_10 = "56 00 0000000000 0000 00", "57 00 0000000000 0000 00"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def ask(cluster: Cluster, who: str, text: str) -> int:
    return cluster.disk.execute(text, nexus=cluster.nexuses[who]).status


@pytest.mark.parametrize(("reserve", "release"), [(RESERVE_6, RELEASE_6), (RESERVE_10, RELEASE_10)])
def test_one_reserves_and_releases(cluster: Cluster, reserve: str, release: str) -> None:
    """Twice is no error; the others wait; to release what one has not is GOOD and nothing."""
    assert ask(cluster, "a1", release) == scsi.GOOD
    assert ask(cluster, "a1", reserve) == scsi.GOOD
    assert ask(cluster, "a1", reserve) == scsi.GOOD
    assert ask(cluster, "b1", reserve) == scsi.RESERVATION_CONFLICT
    assert ask(cluster, "a2", reserve) == scsi.RESERVATION_CONFLICT
    assert ask(cluster, "b1", release) == scsi.GOOD
    assert (cluster.can_write("a1"), cluster.can_read("b1")) == (True, False)
    assert ask(cluster, "a1", release) == scsi.GOOD
    assert cluster.disk.unit.reservation is None
    assert ask(cluster, "b1", reserve) == scsi.GOOD
    assert not cluster.can_read("a1")


@pytest.mark.parametrize("kind", scsi.Reset)
def test_every_reset_ends_it(cluster: Cluster, kind: scsi.Reset) -> None:
    """LOGICAL UNIT RESET, TARGET WARM and COLD RESET."""
    ask(cluster, "a1", RESERVE_6)
    cluster.disk.unit.reset(kind)
    cluster.all_attentions()
    assert cluster.can_write("b1")


def test_nexus_loss_ends_its_own(cluster: Cluster) -> None:
    """The end of the session, or I_T NEXUS RESET; another nexus' end does not."""
    unit, router = cluster.disk.unit, cluster.disk.router
    ask(cluster, "a1", RESERVE_6)
    router.release(cluster.nexuses["b1"])
    assert not cluster.can_read("c1")
    router.release(cluster.nexuses["a1"])
    assert cluster.can_read("c1")
    ask(cluster, "c1", RESERVE_6)
    unit.nexus_lost(cluster.nexuses["c1"])
    assert cluster.can_read("a2")
    assert cluster.attentions("c1") == [(0x29, 0x07)]


def test_a_new_nexus_is_not_taken_for_one_that_went(cluster: Cluster) -> None:
    """Whoever comes is looked at anew, wherever the memory of the last one lies."""
    cluster.do("a1", REGISTER, 0, 1)
    cluster.do("a1", RESERVE, 1, kind=sharing.EXCLUSIVE_ACCESS)
    for _ in range(100):
        nexus = cluster.disk.login(sharing.new_nexus("iqn.test:a"))
        cluster.nexuses["x"] = nexus
        assert cluster.can_read("x"), "the same names are the same nexus"
        cluster.disk.router.release(nexus)
        del cluster.nexuses["x"], nexus
        cluster.nexuses["x"] = cluster.disk.login(sharing.new_nexus("iqn.test:z"))
        assert not cluster.can_read("x")
        cluster.disk.router.release(cluster.nexuses.pop("x"))


@pytest.mark.parametrize("text", ["16 10 000000 00", "16 01 000000 00", "17 02 000000 00", "56 10", "57 02", "56 01"])
def test_third_parties_and_extents_are_obsolete(cluster: Cluster, text: str) -> None:
    """INVALID FIELD IN CDB."""
    outcome = cluster.disk.execute(text.ljust(29, "0") if text[0] == "5" else text, nexus=cluster.nexuses["a1"])
    assert code(outcome) == (5, 0x24, 0)


def test_persistent_reserve_conflicts_while_reserved(cluster: Cluster) -> None:
    """For everybody, who reserved too: the two ways don't mix."""
    ask(cluster, "a1", RESERVE_6)
    for who in ("a1", "b1"):
        assert cluster.conflicts(who, REGISTER, 0, 1)
        assert ask(cluster, who, "5e 00 0000000000 00ff 00") == scsi.RESERVATION_CONFLICT
    ask(cluster, "a1", RELEASE_6)
    cluster.do("a1", REGISTER, 0, 1)


def test_registrations_alone_keep_reserve_out(cluster: Cluster) -> None:
    """From anybody, registered or not, as long as somebody is."""
    cluster.do("a1", REGISTER, 0, 1)
    for who in ("a1", "b1"):
        for text in (RESERVE_6, RELEASE_6, RESERVE_10, RELEASE_10):
            assert ask(cluster, who, text) == scsi.RESERVATION_CONFLICT
    cluster.do("a1", CLEAR, 1)
    assert ask(cluster, "b1", RESERVE_6) == scsi.GOOD


@pytest.mark.parametrize("kind", TYPES)
def test_compatible_reservation_handling(cluster: Cluster, kind: int) -> None:
    """SPC-4 5.13.3: GOOD without any effect for a holder, and for the registered where those have access."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("b1", REGISTER, 0, 0xB1)
    cluster.do("a1", RESERVE, 0xA1, kind=kind)
    is_for_registrants = kind not in (sharing.WRITE_EXCLUSIVE, sharing.EXCLUSIVE_ACCESS)
    before = cluster.reservation()
    for text in (RESERVE_6, RELEASE_6, RESERVE_10, RELEASE_10):
        assert ask(cluster, "a1", text) == scsi.GOOD
        assert (ask(cluster, "b1", text) == scsi.GOOD) is is_for_registrants
        assert ask(cluster, "c1", text) == scsi.RESERVATION_CONFLICT
        assert cluster.reservation() == before
        assert not cluster.can_write("c1")
    cluster.do("b1", PREEMPT, 0xB1, 0 if kind in (7, 8) else 0xA1, kind=kind)


def test_a_pending_unit_attention_comes_before_a_conflict(cluster: Cluster) -> None:
    """The order of the gates."""
    ask(cluster, "a1", RESERVE_6)
    cluster.disk.unit.attend(cluster.nexuses["b1"], scsi.CAPACITY_DATA_HAS_CHANGED)
    outcome = cluster.disk.execute("00 00 000000 00", nexus=cluster.nexuses["b1"])
    assert code(outcome) == (6, 0x2A, 9)
    assert ask(cluster, "b1", "00 00 000000 00") == scsi.RESERVATION_CONFLICT


def test_other_units_of_the_map_are_not_reserved() -> None:
    """A reservation is of one logical unit."""
    disk = Bench()
    other = Bench()
    disk.router.add(1, other.unit)
    disk.nexus.attentions[disk.unit].clear()
    disk.nexus.attentions[other.unit].clear()
    other.nexus.attentions[other.unit].clear()
    assert disk.execute(RESERVE_6).status == scsi.GOOD
    assert other.execute("28 00 00000000 00 0001 00").status == scsi.GOOD
