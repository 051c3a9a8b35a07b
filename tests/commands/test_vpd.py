"""Vital product data, golden bytes; and that identity is the same on every path, and nowhere else."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, scsi
from iscsi_ovs.commands import COMMAND_SET, OPERATIONS, vpd
from iscsi_ovs.scsi import PortGroup
from tests.commands.bench import IQN, UUID, Bench


def page(disk: Bench, page_code: int, nexus: scsi.Nexus | None = None) -> bytes:
    data = disk.execute(f"12 01 {page_code:02x} ffff 00", nexus=nexus).data
    assert data[0] == 0
    assert data[1] == page_code
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    return data[4:]


def designators(body: bytes) -> list[tuple[int, int, bytes]]:
    """(byte 0, byte 1, value) of each designator."""
    found = []
    while body:
        assert body[2] == 0
        found.append((body[0], body[1], body[4 : 4 + body[3]]))
        body = body[4 + body[3] :]
    return found


def test_supported_pages(disk: Bench) -> None:
    """Ascending, and every page of the list is there."""
    codes = page(disk, 0x00)
    assert codes.hex() == "0080838687888fb0b1b2"
    for each in codes:
        page(disk, each)


def test_unit_serial_number(disk: Bench) -> None:
    """The UUID in hex."""
    assert page(disk, 0x80) == UUID.encode()


def test_device_identification(disk: Bench) -> None:
    """Unit: NAA 3, T10, name. Port: relative port, group, name. Device: name."""
    naa = vpd.naa_locally_assigned(UUID).to_bytes(8, "big")
    names = (f"naa.{naa.hex().upper()}", f"{IQN},t,0x0001", IQN)
    unit_name, port_name, device_name = (name.encode() + bytes(4 - len(name) % 4) for name in names)
    assert designators(page(disk, 0x83)) == [
        (0x01, 0x03, naa),
        (0x02, 0x01, b"OVS     " + UUID.encode()),
        (0x03, 0x08, unit_name),
        (0x51, 0x94, bytes.fromhex("00000001")),
        (0x51, 0x95, bytes.fromhex("00000001")),
        (0x53, 0x98, port_name),
        (0x53, 0xA8, device_name),
    ]


def test_identity_is_of_the_volume_not_of_the_path(disk: Bench) -> None:
    """Another portal: the same unit, another port. Another volume of the same name: another unit."""
    disk.ports.groups[0xABCD] = PortGroup(0xABCD, 2)
    other = disk.login(tag=0xABCD)
    here, there = (designators(page(disk, 0x83, nexus)) for nexus in (disk.nexus, other))
    assert here[:3] == there[:3]
    assert [value for _, _, value in there[3:5]] == [bytes.fromhex("00000002"), bytes.fromhex("0000abcd")]
    assert there[5][2].rstrip(b"\0") == f"{IQN},t,0xabcd".encode()
    assert vpd.naa_locally_assigned(UUID) != vpd.naa_locally_assigned("f" * 32)


@pytest.mark.parametrize(("uuid_hex", "naa"), [(UUID, "38faed6abbf35c12"), ("f" * 32, "3ac6a5945f165009")])
def test_naa_never_changes(uuid_hex: str, naa: str) -> None:
    """Disks are found by it after every upgrade: 3h, then sixty bits of the SHA-256 of the UUID's sixteen bytes."""
    assert f"{vpd.naa_locally_assigned(uuid_hex):016x}" == naa


@pytest.mark.parametrize("length", range(1, 9))
def test_names_are_terminated_and_padded(length: int) -> None:
    """SPC-4 7.8.6.11: at least one null, a multiple of four."""
    name = vpd._name_string("x" * length)
    assert len(name) % 4 == 0
    assert name.rstrip(b"\0") == b"x" * length
    assert name.endswith(b"\0")


def test_block_limits(disk: Bench) -> None:
    """What CONTRACTS 3 and 7 state: 8 MiB, 2^20 blocks in 256 descriptors, 32 MiB, WSNZ, granularity 4 KiB.

    And 255 blocks for COMPARE AND WRITE, 8 MiB for PRE-FETCH.
    """
    assert page(disk, 0xB0).hex(" ") == (
        "01 ff 00 08 00 00 40 00 00 00 08 00 00 00 40 00 00 10 00 00 00 00 01 00 00 00 00 08 80 00 00 00 "
        "00 00 00 00 00 01 00 00 " + " ".join(["00"] * 20)
    )


def test_block_limits_of_a_fully_provisioned_unit() -> None:
    """Nothing about unmapping, and WRITE SAME may be told to go to the end: WSNZ=0."""
    body = page(Bench(personality=scsi.Personality(is_thin=False)), 0xB0)
    assert body[0] == 0
    assert body[16:32] == bytes(16)


def test_block_limits_of_4096_byte_blocks() -> None:
    """The same bytes, in bigger blocks."""
    body = page(Bench(logical_block_bytes=4096), 0xB0)
    assert body[2:8].hex() == "000100000800"
    assert body[32:40].hex() == "0000000000002000"


def test_block_limits_follow_the_limits() -> None:
    """Another limit is stated as it is obeyed."""
    limits = scsi.Limits(max_transfer_bytes=1 << 20, max_unmap_blocks=77, max_unmap_descriptors=3)
    unit = scsi.LogicalUnit(COMMAND_SET, scsi.Identity("x", UUID), block.Geometry(1 << 30), limits=limits)
    disk = Bench()
    disk.router.add(1, unit)
    disk.nexus.devices[unit] = disk.device
    body = disk.execute("12 01 b0 00ff 00", lun=1 << 48).data[4:]
    assert body[4:8].hex() == "00000800"
    assert body[16:24].hex() == "0000004d00000003"
    disk.nexus.attentions[unit].clear()
    assert isinstance(disk.start("28 00 00000000 00 0800 00", lun=1 << 48, data_in=1 << 20), block.Request)
    assert isinstance(disk.start("28 00 00000000 00 0801 00", lun=1 << 48, data_in=1 << 20), scsi.Outcome)


def test_block_device_characteristics(disk: Bench) -> None:
    """Nothing rotates; after SANITIZE (BLOCK ERASE) blocks can be read."""
    assert page(disk, 0xB1).hex() == "00010040" + "00" * 56


def test_logical_block_provisioning(disk: Bench) -> None:
    """LBPU, LBPWS, LBPWS10, LBPRZ; thin; threshold sets of a mebibyte."""
    assert page(disk, 0xB2).hex() == "0be40200"


def test_extended_inquiry(disk: Bench) -> None:
    """Tasks of each attribute, a volatile cache, and a REPORT LUNS that clears its unit attention everywhere."""
    assert page(disk, 0x86).hex() == "00070101" + "00" * 56


def test_mode_page_policy(disk: Bench) -> None:
    """Every page is shared."""
    assert page(disk, 0x87).hex() == "3fff0000"


def test_scsi_ports(disk: Bench) -> None:
    """All ports of the target device, on whichever path one asks."""
    names = [f"{IQN},t,0x{tag:04x}".encode() for tag in (1, 2)]
    expected = b""
    for number, name in enumerate(names, 1):
        name += bytes(4 - len(name) % 4)
        expected += (
            bytes.fromhex(f"0000 {number:04x} 0000 0000 0000 {len(name) + 4:04x} 53 98 00 {len(name):02x}") + name
        )
    assert page(disk, 0x88) == expected
    assert page(disk, 0x88, disk.login(tag=2)) == expected


def test_third_party_copy(disk: Bench) -> None:
    """Commands by opcode and service action, limits, descriptor types, general copy operations."""
    body = page(disk, 0x8F)
    descriptors = {}
    while body:
        kind, length = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
        assert length % 4 == 0
        descriptors[kind] = body[4 : 4 + length]
        body = body[4 + length :]
    assert list(descriptors) == [0x0001, 0x0004, 0x0008, 0x8001]
    actions = {
        opcode: bytes(row.service_action or 0 for row in OPERATIONS if row.opcode == opcode) for opcode in (0x83, 0x84)
    }
    commands = b"".join(bytes((opcode, len(each))) + each for opcode, each in actions.items())
    assert descriptors[1].rstrip(b"\0") == (bytes((len(commands),)) + commands).rstrip(b"\0")
    parameters = disk.execute("84 03 0000000000000000 0000ffff 00 00").data
    assert descriptors[4].hex() == "00000000" + parameters[8:16].hex() + "00000000" + "00" * 12
    implemented = parameters[44:]
    assert descriptors[8] == bytes((len(implemented),)) + implemented + bytes(-(len(implemented) + 1) % 4)
    assert descriptors[0x8001].hex() == "000000ff000000ff" + parameters[16:20].hex() + "0900" + "00" * 18


def test_the_well_known_unit_names_the_path_only(disk: Bench) -> None:
    """No designator of a logical unit, as SPC-4 wants it."""
    lun = scsi.REPORT_LUNS_WELL_KNOWN_LUN
    assert disk.execute("12 01 00 00ff 00", lun=lun).data.hex() == "1e0000020083"
    kinds = [kind for _, kind, _ in designators(disk.execute("12 01 83 00ff 00", lun=lun).data[4:])]
    assert kinds == [0x94, 0x95, 0x98, 0xA8]
