"""PERSISTENT RESERVE IN and OUT, byte by byte: answers, parameter lists, errors, unit attentions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import registrations
from tests.commands import sharing
from tests.commands.bench import code
from tests.commands.sharing import (
    ALL_TG_PT,
    APTPL,
    CLEAR,
    EAAR,
    EARO,
    EXCLUSIVE_ACCESS,
    PREEMPT,
    PREEMPT_AND_ABORT,
    READ_FULL_STATUS,
    READ_KEYS,
    READ_RESERVATION,
    REGISTER,
    REGISTER_AND_IGNORE,
    REGISTER_AND_MOVE,
    RELEASE,
    REPORT_CAPABILITIES,
    RESERVE,
    SPEC_I_PT,
    TYPES,
    UNREG,
    WEAR,
    WERO,
    WRITE_EXCLUSIVE,
    Cluster,
    id_of,
    move_list,
    plain_list,
    register_all,
    with_ids,
)

INVALID_FIELD_IN_CDB = (5, 0x24, 0)
INVALID_FIELD_IN_PARAMETER_LIST = (5, 0x26, 0)
INVALID_RELEASE = (5, 0x26, 4)
PARAMETER_LIST_LENGTH_ERROR = (5, 0x1A, 0)
INSUFFICIENT_REGISTRATION_RESOURCES = (5, 0x55, 4)
RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED, REGISTRATIONS_PREEMPTED = (0x2A, 3), (0x2A, 4), (0x2A, 5)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def pointer(outcome: scsi.Outcome) -> tuple[int, bool]:
    """The byte that sense points at, and whether it is one of the CDB."""
    assert outcome.sense[15] & 0x80
    return int.from_bytes(outcome.sense[16:18], "big"), bool(outcome.sense[15] & 0x40)


# PERSISTENT RESERVE IN ------------------------------------------------------------------------------------------


def test_nothing_is_registered_at_first(cluster: Cluster) -> None:
    """Headers alone, of generation zero."""
    for action in (READ_KEYS, READ_RESERVATION, READ_FULL_STATUS):
        assert cluster.ask(action) == bytes(8)


def test_capabilities(cluster: Cluster) -> None:
    """CRH, SIP_C, ATP_C, PTPL_C; TMV, ALLOW COMMANDS 011b, all six types; PTPL_A as the last REGISTER said."""
    assert cluster.ask(REPORT_CAPABILITIES) == bytes.fromhex("0008 1d b0 ea01 0000")
    cluster.do("a1", REGISTER, 0, 1, flags=APTPL)
    assert cluster.ask(REPORT_CAPABILITIES) == bytes.fromhex("0008 1d b1 ea01 0000")
    cluster.do("b1", REGISTER, 0, 1)
    assert cluster.ask(REPORT_CAPABILITIES)[3] == 0xB0


def test_keys_and_reservation(cluster: Cluster) -> None:
    """In order of registration; the reservation with the holder's key, or with zero where all hold it."""
    register_all(cluster)
    cluster.do("b1", REGISTER, 0xB1, 0xB1)
    assert cluster.keys() == [0xA1, 0xB1, 0xC1]
    cluster.do("b1", RESERVE, 0xB1, kind=WERO)
    assert cluster.reservation() == (0xB1, WERO)
    cluster.do("b1", RELEASE, 0xB1, kind=WERO)
    cluster.do("b1", RESERVE, 0xB1, kind=WEAR)
    assert cluster.reservation() == (0, WEAR)


def test_full_status(cluster: Cluster) -> None:
    """Each registration with its TransportID and relative port; R_HOLDER and the type for who holds."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("b2", REGISTER, 0, 0xB2)
    cluster.do("b2", RESERVE, 0xB2, kind=EXCLUSIVE_ACCESS)
    a = bytes.fromhex("00000000000000a1 00000000 00 00 00000000 0001") + with_ids(id_of("iqn.test:a"))
    b = bytes.fromhex("00000000000000b2 00000000 01 03 00000000 0002") + with_ids(id_of("iqn.test:b"))
    assert cluster.ask(READ_FULL_STATUS) == bytes.fromhex("00000002") + (len(a + b)).to_bytes(4, "big") + a + b
    cluster.do("b2", RELEASE, 0xB2, kind=EXCLUSIVE_ACCESS)
    cluster.do("b2", RESERVE, 0xB2, kind=EAAR)
    status = cluster.ask(READ_FULL_STATUS)
    assert (status[8 + 12], status[8 + 13], status[8 + len(a) + 12]) == (1, EAAR, 1)


@pytest.mark.parametrize("action", [READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS])
def test_answers_are_cut_at_any_allocation_length(cluster: Cluster, action: int) -> None:
    """Which is no error; the length inside is that of the whole."""
    register_all(cluster)
    cluster.do("b1", RESERVE, 0xB1, kind=WERO)
    whole = cluster.ask(action)
    for length in range(len(whole) + 3):
        assert cluster.ask(action, length=length) == whole[:length]


def test_service_actions_that_are_not_there(cluster: Cluster) -> None:
    """INVALID FIELD IN CDB, at the service action; reserved bits above it are not looked at."""
    for opcode, first in ((0x5E, 4), (0x5F, 8)):
        for action in range(first, 0x20):
            outcome = cluster.disk.execute(f"{opcode:02x} {action:02x} 0000000000 0018 00", data_out=bytes(24))
            assert code(outcome) == INVALID_FIELD_IN_CDB
            assert pointer(outcome) == (1, True)


# REGISTER -------------------------------------------------------------------------------------------------------


def test_register_change_unregister(cluster: Cluster) -> None:
    """SPC-4 table 47, and the generation counts each of them."""
    assert cluster.conflicts("a1", REGISTER, 1, 2)
    cluster.do("a1", REGISTER, 0, 0)
    assert (cluster.keys(), cluster.generation) == ([], 0)
    cluster.do("a1", REGISTER, 0, 0xA1)
    assert (cluster.keys(), cluster.generation) == ([0xA1], 1)
    assert cluster.conflicts("a1", REGISTER, 0, 0xA2)
    assert cluster.conflicts("a1", REGISTER, 0xA2, 0)
    assert cluster.conflicts("a2", REGISTER, 0xA1, 0), "another port is another nexus"
    cluster.do("a1", REGISTER, 0xA1, 0xA2)
    assert (cluster.keys(), cluster.generation) == ([0xA2], 2)
    cluster.do("a1", REGISTER, 0xA2, 0)
    assert (cluster.keys(), cluster.generation) == ([], 3)


def test_register_and_ignore_existing_key(cluster: Cluster) -> None:
    """Whatever the reservation key says."""
    cluster.do("a1", REGISTER_AND_IGNORE, 77, 0)
    assert cluster.generation == 0
    cluster.do("a1", REGISTER_AND_IGNORE, 77, 0xA1)
    cluster.do("a1", REGISTER_AND_IGNORE, 78, 0xA2)
    assert (cluster.keys(), cluster.generation) == ([0xA2], 2)
    cluster.do("a1", REGISTER_AND_IGNORE, 79, 0)
    assert cluster.keys() == []


def test_names_are_compared_in_lower_case(cluster: Cluster) -> None:
    """An initiator that spells its name otherwise is the same one."""
    nexus = cluster.nexuses["a1"]
    shouting = replace(nexus, initiator_name=nexus.initiator_name.upper())
    assert shouting.initiator_name != nexus.initiator_name
    assert registrations.Registrant.of(shouting) == registrations.Registrant.of(nexus)


def test_register_for_others(cluster: Cluster) -> None:
    """SPEC_I_PT: the named ports are registered with who asks, known or not, and those that are registered stay."""
    cluster.do("b1", REGISTER, 0, 0xB1)
    named = id_of("iqn.test:b") + id_of("iqn.test:c") + id_of("iqn.unknown", bytes(6)) + id_of("iqn.test:c")
    outcome = cluster.send("a1", REGISTER, plain_list(0, 0xA1, SPEC_I_PT, with_ids(named)))
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, 28 + len(named))
    assert cluster.keys() == [0xB1, 0xA1, 0xA1, 0xA1]
    assert cluster.generation == 2
    assert cluster.conflicts("c1", REGISTER, 0, 1)
    cluster.do("c1", REGISTER, 0xA1, 0xC1)
    again = cluster.send("c1", REGISTER, plain_list(0xC1, 5, SPEC_I_PT, with_ids(named)))
    assert code(again) == INVALID_FIELD_IN_PARAMETER_LIST
    assert pointer(again) == (20, False)
    assert cluster.send("c1", REGISTER, plain_list(1, 5, SPEC_I_PT, with_ids(named))).status == 0x18
    ignore = cluster.send("c1", REGISTER_AND_IGNORE, plain_list(0, 5, SPEC_I_PT))
    assert code(ignore) == INVALID_FIELD_IN_PARAMETER_LIST


def test_an_initiator_without_isid_means_all_its_ports_that_are_known(cluster: Cluster) -> None:
    """Format 00b: those that have sessions, or registrations; nobody known is an error."""
    other = bytes.fromhex("80000000000f")
    cluster.nexuses["B1"] = cluster.disk.login(sharing.new_nexus("iqn.test:b", isid=other))
    name = bytes.fromhex("05000014") + b"iqn.test:b".ljust(20, b"\0")
    assert cluster.send("a1", REGISTER, plain_list(0, 0xA1, SPEC_I_PT, with_ids(name))).status == scsi.GOOD
    assert cluster.keys() == [0xA1] * 3
    cluster.do("B1", REGISTER, 0xA1, 0xBB)
    nobody = bytes.fromhex("05000014") + b"iqn.test:x".ljust(20, b"\0")
    outcome = cluster.send("c1", REGISTER, plain_list(0, 1, SPEC_I_PT, with_ids(nobody)))
    assert code(outcome) == INVALID_FIELD_IN_PARAMETER_LIST


def test_register_through_all_target_ports(cluster: Cluster) -> None:
    """ALL_TG_PT: as if it had come through each; so it changes and ends through each, and conflicts if one does."""
    cluster.do("a1", REGISTER, 0, 0xA, flags=ALL_TG_PT)
    assert cluster.keys() == [0xA, 0xA]
    cluster.do("a2", REGISTER, 0xA, 0xA2)
    assert cluster.keys() == [0xA, 0xA2]
    assert cluster.out("a1", REGISTER, 0xA, 0, flags=ALL_TG_PT).status == scsi.RESERVATION_CONFLICT
    cluster.do("a1", REGISTER_AND_IGNORE, 0, 0, flags=ALL_TG_PT)
    assert cluster.keys() == []
    both = plain_list(0, 7, SPEC_I_PT | ALL_TG_PT, with_ids(id_of("iqn.test:c")))
    assert cluster.send("b2", REGISTER, both).status == scsi.GOOD
    assert cluster.keys() == [7] * 4
    cluster.do("c2", REGISTER, 7, 0)


def test_registrations_have_a_limit(cluster: Cluster) -> None:
    """INSUFFICIENT REGISTRATION RESOURCES, and nothing of it is registered; names of the longest kind do not matter."""
    count = 0
    while True:
        ids = b"".join(id_of("iqn." + "x" * 210 + f"{number:05}") for number in range(count, count + 10))
        outcome = cluster.send("a1", REGISTER, plain_list(0, 1, SPEC_I_PT, with_ids(ids)))
        if outcome.status != scsi.GOOD:
            break
        cluster.do("a1", REGISTER, 1, 0)
        count += 10
    assert code(outcome) == INSUFFICIENT_REGISTRATION_RESOURCES
    assert len(cluster.keys()) == count >= 64
    cluster.do("a1", REGISTER, 0, 1)
    cluster.do("a1", CLEAR, 1)
    assert len(cluster.disk.records["reservations"]) <= 64 << 10
    assert cluster.keys() == []


def test_a_parameter_list_has_a_limit(cluster: Cluster) -> None:
    """A list that could never be registered is not looked through: a longest one would hold up everybody."""
    ids = id_of("iqn.test:c") * (4 << 20 >> 5)
    outcome = cluster.send("a1", REGISTER, plain_list(0, 1, SPEC_I_PT, with_ids(ids)))
    assert code(outcome) == INSUFFICIENT_REGISTRATION_RESOURCES
    twice = plain_list(0, 1, SPEC_I_PT, with_ids(id_of("iqn.test:c") * 2))
    assert cluster.send("a1", REGISTER, twice).status == scsi.GOOD


# RESERVE and RELEASE --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_who_holds_and_who_may_reserve(cluster: Cluster, kind: int) -> None:
    """A holder may ask again for what it has; all else conflicts. With all registrants types everybody holds."""
    register_all(cluster)
    assert cluster.conflicts("a2", RESERVE, 0, kind=kind), "not registered"
    assert cluster.conflicts("a1", RESERVE, 0xB1, kind=kind), "another one's key"
    cluster.do("a1", RESERVE, 0xA1, kind=kind)
    cluster.do("a1", RESERVE, 0xA1, kind=kind)
    other = TYPES[TYPES.index(kind) - 1]
    assert cluster.conflicts("a1", RESERVE, 0xA1, kind=other)
    is_held_by_all = kind in (WEAR, EAAR)
    assert cluster.conflicts("b1", RESERVE, 0xB1, kind=kind) is not is_held_by_all
    assert cluster.reservation() == (0 if is_held_by_all else 0xA1, kind)
    assert cluster.generation == 3, "RESERVE does not count"


@pytest.mark.parametrize("kind", TYPES)
def test_release(cluster: Cluster, kind: int) -> None:
    """By a holder, of what it holds: the other registered nexuses hear of it where they had access by it."""
    register_all(cluster)
    cluster.do("a1", RELEASE, 0xA1, kind=kind)
    cluster.do("a1", RESERVE, 0xA1, kind=kind)
    assert cluster.conflicts("a1", RELEASE, 0xB1, kind=kind)
    for wrong in (kind | 0x10, 0, 2, TYPES[TYPES.index(kind) - 1]):
        assert code(cluster.out("a1", RELEASE, 0xA1, kind=wrong)) == INVALID_RELEASE
    if kind not in (WEAR, EAAR):
        cluster.do("b1", RELEASE, 0xB1, kind=kind)  # no holder: GOOD, and nothing happens
    assert cluster.reservation() is not None
    assert cluster.all_attentions() == {}
    cluster.do("a1", RELEASE, 0xA1, kind=kind)
    assert cluster.reservation() is None
    hear = kind not in (WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS)
    assert cluster.all_attentions() == ({"b1": [RESERVATIONS_RELEASED], "c1": [RESERVATIONS_RELEASED]} if hear else {})


@pytest.mark.parametrize("action", [RESERVE, PREEMPT, PREEMPT_AND_ABORT])
def test_scopes_and_types_that_are_not_there(cluster: Cluster, action: int) -> None:
    """INVALID FIELD IN CDB: only the logical unit can be reserved, in six ways."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    for kind in range(256):
        if kind not in TYPES:
            outcome = cluster.out("a1", action, 0xA1, 0xA1, kind=kind)
            assert code(outcome) == INVALID_FIELD_IN_CDB, kind
            assert pointer(outcome) == (2, True)


def test_the_holder_unregisters(cluster: Cluster) -> None:
    """The reservation goes with it; with all registrants it goes with the last one, and nobody is left to hear."""
    register_all(cluster)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    cluster.do("a1", REGISTER, 0xA1, 0)
    assert cluster.reservation() is None
    assert cluster.all_attentions() == {"b1": [RESERVATIONS_RELEASED], "c1": [RESERVATIONS_RELEASED]}
    cluster.do("b1", RESERVE, 0xB1, kind=WRITE_EXCLUSIVE)
    cluster.do("b1", REGISTER_AND_IGNORE, 0, 0)
    assert (cluster.reservation(), cluster.all_attentions()) == (None, {})
    cluster.do("a1", REGISTER, 0, 0xA1)
    cluster.do("c1", RESERVE, 0xC1, kind=EAAR)
    cluster.do("c1", REGISTER, 0xC1, 0)
    assert cluster.reservation() == (0, EAAR)
    cluster.do("a1", REGISTER, 0xA1, 0)
    assert (cluster.reservation(), cluster.all_attentions()) == (None, {})


# CLEAR and PREEMPT ----------------------------------------------------------------------------------------------


def test_clear(cluster: Cluster) -> None:
    """Everything goes; everybody else who was registered hears RESERVATIONS PREEMPTED."""
    register_all(cluster)
    cluster.do("a1", RESERVE, 0xA1, kind=EXCLUSIVE_ACCESS)
    assert cluster.conflicts("a2", CLEAR, 0xA1)
    assert cluster.conflicts("b1", CLEAR, 0xA1)
    cluster.do("b1", CLEAR, 0xB1)
    assert (cluster.keys(), cluster.reservation(), cluster.generation) == ([], None, 4)
    assert cluster.all_attentions() == {"a1": [RESERVATIONS_PREEMPTED], "c1": [RESERVATIONS_PREEMPTED]}
    assert cluster.can_write("c2")


def test_preempt_the_holder(cluster: Cluster) -> None:
    """Its registrations go, the reservation is ours; who stays hears of it if the type is another one."""
    register_all(cluster)
    cluster.do("a2", REGISTER, 0, 0xA1)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    assert cluster.conflicts("b1", PREEMPT, 0xA1, 0xA1, kind=WERO)
    assert cluster.conflicts("b1", PREEMPT, 0xB1, 0xDD, kind=WERO), "nobody has that key"
    cluster.do("b1", PREEMPT, 0xB1, 0xA1, kind=EARO)
    assert (cluster.keys(), cluster.reservation()) == ([0xB1, 0xC1], (0xB1, EARO))
    assert cluster.all_attentions() == {
        "a1": [REGISTRATIONS_PREEMPTED],
        "a2": [REGISTRATIONS_PREEMPTED],
        "c1": [RESERVATIONS_RELEASED],
    }
    assert not cluster.can_read("a1")
    cluster.do("c1", PREEMPT, 0xC1, 0xB1, kind=EARO)
    assert cluster.all_attentions() == {"b1": [REGISTRATIONS_PREEMPTED]}
    assert cluster.reservation() == (0xC1, EARO)


def test_preempt_others_leaves_the_reservation(cluster: Cluster) -> None:
    """Registrations only; zero names nobody, but where all registrants hold it."""
    register_all(cluster)
    outcome = cluster.out("a1", PREEMPT, 0xA1, 0, kind=WERO)
    assert (code(outcome), pointer(outcome)) == (INVALID_FIELD_IN_PARAMETER_LIST, (8, False))
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    assert code(cluster.out("a1", PREEMPT, 0xA1, 0, kind=WERO)) == INVALID_FIELD_IN_PARAMETER_LIST
    cluster.do("b1", PREEMPT, 0xB1, 0xC1, kind=EXCLUSIVE_ACCESS)
    assert (cluster.keys(), cluster.reservation()) == ([0xA1, 0xB1], (0xA1, WERO))
    assert cluster.all_attentions() == {"c1": [REGISTRATIONS_PREEMPTED]}


def test_preempt_all_registrants(cluster: Cluster) -> None:
    """A key: those go, and the reservation stays everybody's. Zero: all go but who asks, who takes it over."""
    register_all(cluster)
    cluster.do("a1", RESERVE, 0xA1, kind=WEAR)
    cluster.do("b1", PREEMPT, 0xB1, 0xA1, kind=EARO)
    assert (cluster.keys(), cluster.reservation()) == ([0xB1, 0xC1], (0, WEAR))
    cluster.all_attentions()
    cluster.do("b1", PREEMPT, 0xB1, 0, kind=EARO)
    assert (cluster.keys(), cluster.reservation()) == ([0xB1], (0xB1, EARO))
    assert cluster.all_attentions() == {"c1": [REGISTRATIONS_PREEMPTED]}


def test_preempt_oneself(cluster: Cluster) -> None:
    """Who asks keeps its registration, and gets another type."""
    register_all(cluster)
    cluster.do("b2", REGISTER, 0, 0xA1)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    cluster.do("a1", PREEMPT, 0xA1, 0xA1, kind=EAAR)
    assert (cluster.keys(), cluster.reservation()) == ([0xA1, 0xB1, 0xC1], (0, EAAR))
    heard = cluster.all_attentions()
    assert heard == {
        "b2": [REGISTRATIONS_PREEMPTED],
        "b1": [RESERVATIONS_RELEASED],
        "c1": [RESERVATIONS_RELEASED],
    }


def test_preempt_and_abort(cluster: Cluster) -> None:
    """And the tasks of those who were preempted end before it is answered; of who asks only if it named itself."""
    register_all(cluster)
    cluster.do("a1", RESERVE, 0xA1, kind=EXCLUSIVE_ACCESS)
    cluster.do("b1", PREEMPT, 0xB1, 0xA1, kind=EXCLUSIVE_ACCESS)
    assert cluster.disk.aborted == []
    cluster.do("c1", PREEMPT_AND_ABORT, 0xC1, 0xB1, kind=WERO)
    assert cluster.disk.aborted == [cluster.nexuses["b1"]]
    assert cluster.reservation() == (0xC1, WERO)
    cluster.do("c1", PREEMPT_AND_ABORT, 0xC1, 0xC1, kind=WERO)
    assert cluster.disk.aborted[1:] == [cluster.nexuses["c1"]]
    cluster.do("a2", REGISTER, 0, 0xA1)
    cluster.do("c1", RELEASE, 0xC1, kind=WERO)
    cluster.do("c1", RESERVE, 0xC1, kind=WEAR)
    cluster.all_attentions()
    cluster.do("a2", PREEMPT_AND_ABORT, 0xA1, 0, kind=WERO)
    assert cluster.disk.aborted[2:] == [cluster.nexuses["c1"]]


# REGISTER AND MOVE ----------------------------------------------------------------------------------------------


def test_register_and_move(cluster: Cluster) -> None:
    """To a port that was not registered, by who holds; it may stay registered or not."""
    register_all(cluster)
    to = move_list(0xA1, 0xB2, id_of("iqn.test:b"), port=2)
    assert cluster.send("a1", REGISTER_AND_MOVE, to).status == scsi.RESERVATION_CONFLICT, "there is nothing to move"
    cluster.do("a1", RESERVE, 0xA1, kind=WRITE_EXCLUSIVE)
    assert cluster.send("b1", REGISTER_AND_MOVE, to).status == scsi.RESERVATION_CONFLICT
    outcome = cluster.send("a1", REGISTER_AND_MOVE, to)
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, len(to))
    assert (cluster.keys(), cluster.reservation()) == ([0xA1, 0xB1, 0xC1, 0xB2], (0xB2, WRITE_EXCLUSIVE))
    assert (cluster.can_write("b2"), cluster.can_write("a1"), cluster.generation) == (True, False, 4)
    back = move_list(0xB2, 0xAA, id_of("iqn.test:a"), port=1, flags=UNREG | APTPL)
    assert cluster.send("b2", REGISTER_AND_MOVE, back).status == scsi.GOOD
    assert (cluster.keys(), cluster.reservation()) == ([0xAA, 0xB1, 0xC1], (0xAA, WRITE_EXCLUSIVE))
    assert cluster.ask(REPORT_CAPABILITIES)[3] & 1
    assert cluster.all_attentions() == {}


def test_a_move_that_can_not_be(cluster: Cluster) -> None:
    """No key, no such port, nobody or two behind a name, oneself; what all registrants hold can't be moved."""
    register_all(cluster)
    cluster.do("a1", RESERVE, 0xA1, kind=WERO)
    b = id_of("iqn.test:b")
    name = bytes.fromhex("05000014") + b"iqn.test:b".ljust(20, b"\0")
    nobody = bytes.fromhex("05000014") + b"iqn.test:x".ljust(20, b"\0")
    for data, at in (
        (move_list(0xA1, 0, b), 8),
        (move_list(0xA1, 1, b, port=3), 18),
        (move_list(0xA1, 1, b, port=0), 18),
        (move_list(0xA1, 1, id_of("iqn.test:a")), 24),
        (move_list(0xA1, 1, nobody), 24),
        (move_list(0xA1, 1, b + bytes(4)), 20),
        (move_list(0xA1, 1, b"\x46" + b[1:]), 24),
    ):
        outcome = cluster.send("a1", REGISTER_AND_MOVE, data)
        assert (code(outcome), pointer(outcome)) == (INVALID_FIELD_IN_PARAMETER_LIST, (at, False))
    assert cluster.send("a1", REGISTER_AND_MOVE, move_list(0xA1, 1, name)).status == scsi.GOOD
    assert cluster.reservation() == (1, WERO)
    cluster.do("c1", PREEMPT, 0xC1, 1, kind=WEAR)
    assert cluster.send("c1", REGISTER_AND_MOVE, move_list(0xC1, 1, b)).status == scsi.RESERVATION_CONFLICT


# Lengths that lie -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", range(7))
def test_a_list_of_another_length_is_refused(cluster: Cluster, action: int) -> None:
    """Twenty-four bytes, no byte less or more, in the CDB and on the wire."""
    cluster.do("a1", REGISTER, 0, 0xA1)
    whole = plain_list(0xA1, 0xA1)
    for length in (0, 1, 8, 16, 20, 22, 23, 25, 28, 64, 1 << 16, 0xFFFFFFFF):
        data = (whole + bytes(64))[: min(length, 80)]
        outcome = cluster.send("a1", action, data, WERO, length=length)
        assert code(outcome) == PARAMETER_LIST_LENGTH_ERROR, length
    for sent in (0, 23):
        outcome = cluster.send("a1", action, whole[:sent], WERO, length=24)
        assert code(outcome) == PARAMETER_LIST_LENGTH_ERROR
    assert cluster.send("a1", action, whole + bytes(8), WERO, length=24).status == scsi.GOOD


def test_transport_ids_whose_lengths_lie(cluster: Cluster) -> None:
    """Of the list, of each of them; one byte less, one more, none at all: refused, and nobody is registered."""
    ids = id_of("iqn.test:b") + id_of("iqn.test:c")
    head = plain_list(0, 0xA1, SPEC_I_PT)

    def refused(data: bytes, length: int | None = None) -> tuple[int, int, int]:
        outcome = cluster.send("a1", REGISTER, data, length=length)
        assert cluster.keys() == []
        return code(outcome)

    assert refused(head) == PARAMETER_LIST_LENGTH_ERROR
    assert refused(head + bytes(3)) == PARAMETER_LIST_LENGTH_ERROR
    assert refused(head + bytes(4)) == INVALID_FIELD_IN_PARAMETER_LIST
    for wrong in (0, len(ids) - 1, len(ids) + 1, len(ids) // 2, 1 << 31):
        assert refused(head + wrong.to_bytes(4, "big") + ids) == PARAMETER_LIST_LENGTH_ERROR
    for cut in range(1, len(ids)):
        if cut != len(ids) // 2:
            assert refused(head + with_ids(ids[:cut])) == INVALID_FIELD_IN_PARAMETER_LIST
        assert refused(head + with_ids(ids), length=28 + cut) == PARAMETER_LIST_LENGTH_ERROR
    lying = bytearray(ids)
    lying[2:4] = b"\xff\xfc"
    assert refused(head + with_ids(bytes(lying))) == INVALID_FIELD_IN_PARAMETER_LIST
    for length in range(24, 24 + len(ids)):
        cluster.do("b1", REGISTER_AND_IGNORE, 0, 1)
        cluster.do("b1", RESERVE, 1, kind=WERO)
        data = move_list(1, 2, id_of("iqn.test:c"))
        if length != len(data):
            outcome = cluster.send("b1", REGISTER_AND_MOVE, (data + bytes(64))[:length])
            assert code(outcome) == PARAMETER_LIST_LENGTH_ERROR
        cluster.do("b1", REGISTER_AND_IGNORE, 0, 0)
