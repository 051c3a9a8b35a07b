"""Target port groups: what is reported, who may change it, who hears of it, and what an inactive path still does."""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import OPERATIONS, alua
from iscsi_ovs.scsi import AccessState, PortGroup, StatusCode, TargetPorts
from tests.commands.bench import IQN, UUID, Bench, code, field_pointer, list_pointer, new_nexus

CHANGED = (0x6, 0x2A, 0x06)
STANDBY = (0x2, 0x04, 0x0B)
UNAVAILABLE = (0x2, 0x04, 0x0C)
REPORT = "a3 0a 00000000 00000400 00 00"
REPORT_EXTENDED = "a3 2a 00000000 00000400 00 00"
GROUPS = "00 0f 0001 00 00 00 01 0000 0001  00 0f 0002 00 00 00 01 0000 0002"
MEDIUM_COMMANDS = ("00", "28 00 00000000 00 0001 00", "25", "35", "2a 00 00000000 00 0000 00")


def hexed(text: str) -> str:
    return text.replace(" ", "")


def set_groups(disk: Bench, *descriptors: str, nexus: scsi.Nexus | None = None, head: str = "00000000") -> scsi.Outcome:
    data = bytes.fromhex(head + "".join(descriptors))
    return disk.execute(f"a4 0a 00000000 {len(data):08x} 00 00", data_out=data, nexus=nexus)


# REPORT TARGET PORT GROUPS --------------------------------------------------------------------------------------


def test_report(disk: Bench) -> None:
    """Every group of the target device with its port, whichever the path; the extended header on demand."""
    for nexus in (disk.nexus, disk.login(tag=2)):
        assert disk.execute(REPORT, nexus=nexus).data.hex() == "00000018" + hexed(GROUPS)
        assert disk.execute(REPORT_EXTENDED, nexus=nexus).data.hex() == "0000001c10000000" + hexed(GROUPS)


@pytest.mark.parametrize("length", [0, 1, 4, 27, 28, 29])
def test_report_is_cut(disk: Bench, length: int) -> None:
    """At the allocation length; the length in it stays that of the whole."""
    whole = disk.execute(REPORT).data
    assert disk.execute(f"a3 0a 00000000 {length:08x} 00 00").data == whole[:length]


@pytest.mark.parametrize("data_format", range(2, 8))
def test_unknown_formats(disk: Bench, data_format: int) -> None:
    """Reserved."""
    outcome = disk.execute(f"a3 {data_format << 5 | 0xA:02x} 00000000 00000400 00 00")
    assert (code(outcome), field_pointer(outcome)) == ((0x5, 0x24, 0x00), (1, 7))


def test_a_preferred_group_and_why_it_is_as_it_is(disk: Bench) -> None:
    """PREF, the state and the status code."""
    disk.ports.groups[2].is_preferred = True
    alua.change(disk.ports, {2: AccessState.ACTIVE_NON_OPTIMIZED}, StatusCode.IMPLICIT)
    disk.nexus.attentions[disk.unit].clear()
    assert disk.execute(REPORT).data[16:24].hex() == "810f000200020001"


# What is said of it elsewhere -----------------------------------------------------------------------------------


def test_where_initiators_may_not_set(disk: Bench) -> None:
    """TPGS is implicit only, the command is not there, and is not reported."""
    nexus = new_nexus(ports=TargetPorts(IQN, [PortGroup(1, 1)]))
    nexus.devices[disk.unit] = disk.device
    disk.router.establish(nexus)
    nexus.attentions[disk.unit].clear()
    assert disk.execute("12 00 00 00ff 00", nexus=nexus).data[5] & 0x30 == 0x10
    assert disk.execute("12 00 00 00ff 00").data[5] & 0x30 == 0x30
    assert code(set_groups(disk, "01000001", nexus=nexus)) == (0x5, 0x20, 0x00)
    assert disk.execute("a3 0c 02 a4 000a 000000ff 00 00", nexus=nexus).data.hex() == "00010000"
    assert disk.execute("a3 0c 02 a4 000a 000000ff 00 00").data[1] == 3
    codes = [disk.execute("a3 0c 00 00 0000 0000ffff 00 00", nexus=each).data for each in (nexus, disk.nexus)]
    assert len(codes[1]) == len(codes[0]) + 8


def test_a_nexus_that_knows_of_no_other_port() -> None:
    """Its own is all there is."""
    nexus = scsi.Nexus("iqn.test:initiator", b"\x80\0\0\0\0\1", IQN, portal_group_tag=7, relative_port=3)
    assert nexus.port_group.relative_port == 3
    assert nexus.ports.port_name(nexus.port_group) == f"{IQN},t,0x0007"


# SET TARGET PORT GROUPS -----------------------------------------------------------------------------------------


def test_set(disk: Bench) -> None:
    """States change at once; every other nexus hears of it, whichever its path, and the one that did it does not."""
    same_path, other_path = disk.login(), disk.login(tag=2)
    outcome = set_groups(disk, "01000001", "02000002")
    assert (outcome.status, outcome.transfer_bytes) == (scsi.GOOD, 12)
    assert disk.execute("00") == scsi.Outcome()
    assert code(disk.execute("00", nexus=same_path)) == CHANGED
    assert code(disk.execute("00", nexus=other_path)) == CHANGED
    data = disk.execute(REPORT, nexus=other_path).data
    assert data[4:12].hex() == "010f000100010001"
    assert data[16:24].hex() == "020f000200010001"


def test_what_is_as_it_was_is_no_change(disk: Bench) -> None:
    """Nobody hears of it; nor of an empty list."""
    other = disk.login()
    assert set_groups(disk, "00000001").status == scsi.GOOD
    assert disk.execute("a4 0a 00000000 00000000 00 00") == scsi.Outcome()
    assert set_groups(disk).status == scsi.GOOD
    assert disk.execute("00", nexus=other) == scsi.Outcome()
    assert disk.execute(REPORT).data[9] == StatusCode.NONE


@pytest.mark.parametrize(
    ("descriptors", "pointer"),
    [
        (("04000001",), (4, 3)),
        (("0e000001",), (4, 3)),
        (("0f000001",), (4, 3)),
        (("01000003",), (6, None)),
        (("01000000",), (6, None)),
        (("01000001", "01000001"), (10, None)),
        (("01000001", "05000002"), (8, 3)),
    ],
)
def test_refused_lists(disk: Bench, descriptors: tuple[str, ...], pointer: tuple[int, int | None]) -> None:
    """States that there are not, groups that there are not, a group twice: nothing changes."""
    outcome = set_groups(disk, *descriptors)
    assert (code(outcome), list_pointer(outcome)) == ((0x5, 0x26, 0x00), pointer)
    assert disk.execute(REPORT).data.hex() == "00000018" + hexed(GROUPS)


def test_cut_lists(disk: Bench) -> None:
    """A list without its head, half a descriptor, and one that does not come."""
    for data in ("000000", "00000000 010000", "00000000 01000001 0100"):
        raw = bytes.fromhex(data)
        assert code(disk.execute(f"a4 0a 00000000 {len(raw):08x} 00 00", data_out=raw)) == (0x5, 0x1A, 0x00)
    assert code(disk.execute("a4 0a 00000000 00000008 00 00")) == (0x5, 0x1A, 0x00)


# Inactive paths -------------------------------------------------------------------------------------------------


def test_standby(disk: Bench) -> None:
    """The medium is reached through the other group; this one still says who it is, and can be set again."""
    other = disk.login(tag=2)
    set_groups(disk, "02000001")
    other.attentions[disk.unit].clear()
    for text in MEDIUM_COMMANDS:
        assert code(disk.execute(text)) == STANDBY
        assert disk.execute(text, nexus=other).status == scsi.GOOD
    for text in ("12 00 00 0024 00", "1a 00 3f 00 ff 00", "03 00 0000 ff 00", "4d 00 00 00 00 0000 00ff 00", REPORT):
        assert disk.execute(text).status == scsi.GOOD
    assert disk.execute("03 01 0000 ff 00").data[1:4] == bytes(STANDBY)
    assert set_groups(disk, "00000001").status == scsi.GOOD
    assert disk.execute("00") == scsi.Outcome()
    assert not disk.unit.is_obstructed


def test_unavailable(disk: Bench) -> None:
    """SPC-4's list and nothing else: INQUIRY, REPORT LUNS, REQUEST SENSE, REPORT and SET TARGET PORT GROUPS."""
    other = disk.login(tag=2)
    alua.change(disk.ports, {1: AccessState.UNAVAILABLE}, StatusCode.IMPLICIT)
    for nexus in (disk.nexus, other):
        assert code(disk.execute("00", nexus=nexus)) == CHANGED
    for text in (*MEDIUM_COMMANDS, "1a 00 3f 00 ff 00", "4d 00 00 00 00 0000 00ff 00", "a3 0c 00 00 0000 000000ff"):
        assert code(disk.execute(text)) == UNAVAILABLE
        assert disk.execute(text, nexus=other).status == scsi.GOOD
    for text in ("12 00 00 0024 00", "a0 00 00 000000 00000010 00 00", "03 00 0000 ff 00", REPORT):
        assert disk.execute(text).status == scsi.GOOD
    assert [row.name for row in OPERATIONS if row.allowed_while_unavailable] == [
        "REQUEST SENSE", "INQUIRY", "REPORT LUNS", "REPORT TARGET PORT GROUPS", "SET TARGET PORT GROUPS",
    ]  # fmt: skip


def test_who_comes_through_an_inactive_group(disk: Bench) -> None:
    """It is inactive for a login that comes later, too, and the unit is free again when that is gone."""
    alua.change(disk.ports, {2: AccessState.STANDBY}, StatusCode.IMPLICIT)
    disk.nexus.attentions[disk.unit].clear()
    assert not disk.unit.is_obstructed
    late = disk.login(tag=2)
    assert code(disk.execute("00", nexus=late)) == STANDBY
    assert disk.execute("00") == scsi.Outcome()
    disk.router.release(late)
    alua.change(disk.ports, {2: AccessState.ACTIVE_OPTIMIZED}, StatusCode.IMPLICIT)
    assert not disk.unit.is_obstructed


def test_every_unit_of_every_map_hears_of_it(disk: Bench) -> None:
    """A nexus sees its own map; all units in it have changed."""
    unit = scsi.LogicalUnit(disk.unit.command_set, scsi.Identity("x", UUID), disk.device.geometry)
    other_map = scsi.TaskRouter(disk.unit.command_set, {0: unit, 1: disk.unit})
    nexus = new_nexus(tag=2, ports=disk.ports)
    other_map.establish(nexus)
    for attentions in nexus.attentions.values():
        attentions.clear()
    set_groups(disk, "01000001")
    assert nexus.attentions == {unit: [CHANGED[1:]], disk.unit: [CHANGED[1:]]}
