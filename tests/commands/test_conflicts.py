"""The gate, for every operation and every type of reservation, against the standards' tables written out by hand.

SPC-4 table 63 and SBC-3 table 13 have five columns: Write Exclusive and Exclusive Access for any other I_T nexus;
registrants only and all registrants types for registered ones (never a conflict), then for others. RESERVE is a sixth.
"""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import OPERATIONS
from tests.commands import sharing
from tests.commands.sharing import REGISTER, RESERVE, Cluster

A, C = False, True  # allowed, conflict

# Write Exclusive, Exclusive Access | registered | not registered: WE, EA | RESERVE
LOOK = (A, A, A, A, A, C)
READ = (A, C, A, A, C, C)
WRITE = (C, C, A, C, C, C)
EVER = (A, A, A, A, A, A)

# (operation, what its CDB has beyond opcode and service action as {byte: value}, row of the table)
TABLE: list[tuple[str, dict[int, int], tuple[bool, ...]]] = [
    ("COMPARE AND WRITE", {}, WRITE),
    ("EXTENDED COPY (LID1)", {}, WRITE),
    ("FORMAT UNIT", {}, WRITE),
    ("GET LBA STATUS", {}, READ),
    ("INQUIRY", {}, EVER),
    ("LOG SELECT", {}, WRITE),
    ("LOG SENSE", {}, EVER),
    ("MODE SELECT (6)", {}, WRITE),
    ("MODE SELECT (10)", {}, WRITE),
    ("MODE SENSE (6)", {}, READ),
    ("MODE SENSE (10)", {}, READ),
    ("ORWRITE (16)", {}, WRITE),
    ("PERSISTENT RESERVE IN, READ KEYS", {}, LOOK),
    ("PERSISTENT RESERVE IN, READ RESERVATION", {}, LOOK),
    ("PERSISTENT RESERVE IN, REPORT CAPABILITIES", {}, LOOK),
    ("PERSISTENT RESERVE IN, READ FULL STATUS", {}, LOOK),
    ("PRE-FETCH (10)", {}, READ),
    ("PRE-FETCH (16)", {}, READ),
    ("PREVENT ALLOW MEDIUM REMOVAL", {}, EVER),
    ("PREVENT ALLOW MEDIUM REMOVAL", {4: 1}, WRITE),
    ("READ (6)", {}, READ),
    ("READ (10)", {}, READ),
    ("READ (12)", {}, READ),
    ("READ (16)", {}, READ),
    ("READ CAPACITY (10)", {}, LOOK),
    ("READ CAPACITY (16)", {}, LOOK),
    ("READ DEFECT DATA (10)", {}, READ),
    ("READ DEFECT DATA (12)", {}, READ),
    ("RECEIVE COPY OPERATING PARAMETERS", {}, READ),
    ("RECEIVE COPY STATUS (LID1)", {}, READ),
    ("REPORT LUNS", {}, EVER),
    ("REPORT SUPPORTED OPERATION CODES", {}, READ),
    ("REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS", {}, READ),
    ("REPORT TARGET PORT GROUPS", {}, EVER),
    ("REPORT TIMESTAMP", {}, LOOK),
    ("REQUEST SENSE", {}, EVER),
    ("SANITIZE, BLOCK ERASE", {}, WRITE),
    ("SANITIZE, CRYPTOGRAPHIC ERASE", {}, WRITE),
    ("SANITIZE, EXIT FAILURE MODE", {}, WRITE),
    ("SANITIZE, OVERWRITE", {}, WRITE),
    ("SEND DIAGNOSTIC", {}, WRITE),
    ("SET TARGET PORT GROUPS", {}, WRITE),
    ("SET TIMESTAMP", {}, WRITE),
    ("START STOP UNIT", {4: 0x01}, LOOK),
    ("START STOP UNIT", {4: 0x00}, WRITE),
    ("START STOP UNIT", {4: 0x11}, WRITE),
    ("SYNCHRONIZE CACHE (10)", {}, WRITE),
    ("SYNCHRONIZE CACHE (16)", {}, WRITE),
    ("TEST UNIT READY", {}, LOOK),
    ("UNMAP", {}, WRITE),
    ("VERIFY (10)", {}, READ),
    ("VERIFY (12)", {}, READ),
    ("VERIFY (16)", {}, READ),
    ("WRITE (6)", {}, WRITE),
    ("WRITE (10)", {}, WRITE),
    ("WRITE (12)", {}, WRITE),
    ("WRITE (16)", {}, WRITE),
    ("WRITE AND VERIFY (10)", {}, WRITE),
    ("WRITE AND VERIFY (12)", {}, WRITE),
    ("WRITE AND VERIFY (16)", {}, WRITE),
    ("WRITE ATOMIC (16)", {}, WRITE),
    ("WRITE SAME (10)", {}, WRITE),
    ("WRITE SAME (16)", {}, WRITE),
]
OWN_RULES = ("PERSISTENT RESERVE OUT", "RESERVE (", "RELEASE (")

ROWS = {row.name: row for row in OPERATIONS}
SERVED = [entry for entry in TABLE if entry[0] in ROWS]


def test_every_operation_is_in_the_table() -> None:
    """But for those with rules of their own, which have tests of their own."""
    named = {name for name, _, _ in TABLE}
    assert [name for name in ROWS if name not in named and not name.startswith(OWN_RULES)] == []


def cdb_of(name: str, values: dict[int, int]) -> str:
    row = ROWS[name]
    cdb = bytearray(len(row.usage))
    cdb[0], cdb[1] = row.opcode, row.service_action or 0
    for at, value in values.items():
        cdb[at] = value
    return cdb.hex()


def reserved(kind: int) -> Cluster:
    """a1 holds the reservation, b1 is registered too, c1 is not."""
    cluster = Cluster()
    for who, key in (("a1", 0xA), ("b1", 0xB)):
        cluster.do(who, REGISTER, 0, key)
    cluster.do("a1", RESERVE, 0xA, kind=kind)
    return cluster


def refused(cluster: Cluster, who: str) -> list[tuple[str, dict[int, int]]]:
    """What the gate does not let through. (What is let through may fail for other reasons.)"""
    return [
        (name, values)
        for name, values, _ in SERVED
        if cluster.disk.execute(cdb_of(name, values), nexus=cluster.nexuses[who]).status == scsi.RESERVATION_CONFLICT
    ]


def expected(column: int) -> list[tuple[str, dict[int, int]]]:
    return [(name, values) for name, values, row in SERVED if row[column] is C]


@pytest.mark.parametrize("kind", sharing.TYPES)
def test_what_each_type_refuses_to_whom(kind: int) -> None:
    """Each operation of the table, from the holder, a registered nexus, and one that is not."""
    is_exclusive_access = kind in (sharing.EXCLUSIVE_ACCESS, sharing.EARO, sharing.EAAR)
    is_for_registrants = kind not in (sharing.WRITE_EXCLUSIVE, sharing.EXCLUSIVE_ACCESS)
    cluster = reserved(kind)
    assert refused(cluster, "a1") == []
    assert refused(cluster, "b1") == (expected(2) if is_for_registrants else expected(is_exclusive_access))
    assert refused(cluster, "c1") == expected((3 if is_for_registrants else 0) + is_exclusive_access)
    assert refused(cluster, "a2") == refused(cluster, "c1"), "the holder's other port is another I_T nexus"


def test_what_reserve_refuses() -> None:
    """SPC-2: all but what everybody must be able to ask; nothing to who has reserved, but PERSISTENT RESERVE."""
    cluster = Cluster()
    assert cluster.disk.execute("16 00 000000 00", nexus=cluster.nexuses["a1"]).status == scsi.GOOD
    assert refused(cluster, "b1") == expected(5)
    mine = refused(cluster, "a1")
    assert mine == [(name, {}) for name in ROWS if name.startswith("PERSISTENT RESERVE IN")]


def test_without_a_reservation_the_gate_is_not_there() -> None:
    """Registrations alone refuse nothing."""
    cluster = Cluster()
    cluster.do("a1", REGISTER, 0, 0xA)
    assert cluster.disk.unit.reservation is None
    assert refused(cluster, "b1") == []


def test_an_operation_that_nobody_knows_has_its_own_answer() -> None:
    """INVALID COMMAND OPERATION CODE, whoever has reserved the unit."""
    cluster = reserved(sharing.EXCLUSIVE_ACCESS)
    outcome = cluster.disk.execute("c1 00 000000 00", nexus=cluster.nexuses["c1"])
    assert (outcome.status, outcome.sense[12:14]) == (scsi.CHECK_CONDITION, b"\x20\0")
