"""INQUIRY data: the standard page and the vital product data pages (SPC-4 6.6.2 and 7.8, SBC-3 6.5).

Identity comes from the volume (CONTRACTS 4): its UUID never changes, so neither do serial number and NAA, on any path;
what names the *port* of the path (relative port, port group, port name) comes from the nexus.
Pages are a table: page 00 lists what is in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import ClassVar

from construct import Bytes, Int8ub, Int16ub, Int32ub, Int64ub, Struct

from iscsi_ovs import scsi
from iscsi_ovs.commands import alua, atomics, third_party_copy
from iscsi_ovs.scsi import PortGroup
from iscsi_ovs.wire import Derived

RMB = 0x80
THIRD_PARTY_COPY = 0x08  # 3PC
MULTIP = 0x10
SPC_4 = 0x06  # the VERSION field
RESPONSE_DATA_FORMAT = 0x02
HISUP = 0x10
CMDQUE = 0x02

# SAM-5, iSCSI, SPC-4, SBC-3, each "no version claimed" (SPC-4 annex E)
VERSION_DESCRIPTORS = (0x00A0, 0x0960, 0x0460, 0x04C0)

# Designators (SPC-4 7.8.6)
ISCSI_PROTOCOL = 0x50
BINARY, ASCII, UTF_8 = 1, 2, 3
PIV = 0x80
LOGICAL_UNIT, TARGET_PORT, TARGET_DEVICE = 0x00, 0x10, 0x20
T10_VENDOR, NAA, RELATIVE_TARGET_PORT, TARGET_PORT_GROUP, SCSI_NAME_STRING = 1, 3, 4, 5, 8

# Page 86 (SPC-4 7.8.7)
SIMPSUP, ORDSUP, HEADSUP = 0x01, 0x02, 0x04  # task attributes (targets.ordering)
V_SUP = 0x01
LUICLR = 0x01

# Page 87 (SPC-4 7.8.9)
EVERY_PAGE, EVERY_SUBPAGE, SHARED = 0x3F, 0xFF, 0x00

UGAVALID = 0x80000000
WSNZ = 0x01
WABEREQ_READABLE = 0x40  # 01b: after SANITIZE, BLOCK ERASE "the device server completes read commands"
LBPU, LBPWS, LBPWS10, LBPRZ = 0x80, 0x40, 0x20, 0x04
THIN = 0x02
THRESHOLD_SET_BYTES = 1 << 20


class StandardInquiry(Derived):
    """SPC-4 6.6.2, 96 bytes."""

    declaration = Struct(
        "peripheral" / Int8ub, "removable" / Int8ub, "version" / Int8ub, "response_data_format" / Int8ub,
        "additional_length" / Int8ub, "flags_5" / Int8ub, "flags_6" / Int8ub, "flags_7" / Int8ub,
        "vendor" / Bytes(8), "product" / Bytes(16), "revision" / Bytes(4), "vendor_specific_36" / Bytes(20),
        "flags_56" / Int8ub, "reserved_57" / Int8ub, "version_descriptors" / Bytes(16), "reserved_74" / Bytes(22),
    )  # fmt: skip
    defaults: ClassVar[dict[str, int]] = {
        "version": SPC_4,
        "response_data_format": HISUP | RESPONSE_DATA_FORMAT,
        "additional_length": 91,
        "flags_7": CMDQUE,
    }


class PageHeader(Derived):
    """SPC-4 7.8.2: what every VPD page starts with."""

    declaration = Struct("peripheral" / Int8ub, "page_code" / Int8ub, "page_length" / Int16ub)


class DesignatorHeader(Derived):
    """SPC-4 7.8.6.1."""

    declaration = Struct(
        "protocol_and_code_set" / Int8ub, "association_and_type" / Int8ub, "reserved_2" / Int8ub, "length" / Int8ub
    )


class ExtendedInquiry(Derived):
    """SPC-4 7.8.7, without the header: page length 3Ch."""

    declaration = Struct(
        "flags_4" / Int8ub, "flags_5" / Int8ub, "flags_6" / Int8ub, "flags_7" / Int8ub, "flags_8" / Int8ub,
        "flags_9" / Int8ub, "extended_self_test_completion_minutes" / Int16ub, "flags_12" / Int8ub,
        "maximum_supported_sense_data_length" / Int8ub, "reserved_14" / Bytes(50),
    )  # fmt: skip


class ModePagePolicy(Derived):
    """SPC-4 7.8.9: a descriptor."""

    declaration = Struct(
        "policy_page_code" / Int8ub, "policy_subpage_code" / Int8ub, "policy" / Int8ub, "reserved_3" / Int8ub
    )


class ScsiPort(Derived):
    """SPC-4 7.8.13: a descriptor, without an initiator port; the target port's designators follow."""

    declaration = Struct(
        "reserved_0" / Int16ub, "relative_port" / Int16ub, "reserved_4" / Int16ub,
        "initiator_port_transport_id_length" / Int16ub, "reserved_8" / Int16ub,
        "target_port_descriptors_length" / Int16ub,
    )  # fmt: skip


class BlockLimits(Derived):
    """SBC-3 6.5.3, and SBC-4's atomic writes, without the header: page length 3Ch."""

    declaration = Struct(
        "wsnz" / Int8ub, "maximum_compare_and_write_length" / Int8ub, "optimal_transfer_granularity" / Int16ub,
        "maximum_transfer_length" / Int32ub, "optimal_transfer_length" / Int32ub, "maximum_prefetch_length" / Int32ub,
        "maximum_unmap_lba_count" / Int32ub, "maximum_unmap_descriptor_count" / Int32ub,
        "optimal_unmap_granularity" / Int32ub, "unmap_granularity_alignment" / Int32ub,
        "maximum_write_same_length" / Int64ub, "maximum_atomic_transfer_length" / Int32ub,
        "atomic_alignment" / Int32ub, "atomic_transfer_length_granularity" / Int32ub,
        "maximum_atomic_transfer_length_with_boundary" / Int32ub, "maximum_atomic_boundary_size" / Int32ub,
    )  # fmt: skip


class BlockDeviceCharacteristics(Derived):
    """SBC-3 6.5.2, without the header: page length 3Ch."""

    declaration = Struct(
        "medium_rotation_rate" / Int16ub, "product_type" / Int8ub, "flags_7" / Int8ub, "flags_8" / Int8ub,
        "reserved_9" / Bytes(55),
    )  # fmt: skip


class LogicalBlockProvisioning(Derived):
    """SBC-3 6.5.4, without the header."""

    declaration = Struct(
        "threshold_exponent" / Int8ub, "flags_5" / Int8ub, "provisioning_type" / Int8ub, "reserved_7" / Int8ub
    )


def padded(text: str, length: int) -> bytes:
    """Left-aligned ASCII, filled with spaces (SPC-4 4.4.1)."""
    return text.encode("ascii", "replace")[:length].ljust(length)


def standard(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """The standard INQUIRY data."""
    personality = unit.personality
    is_disk = unit.peripheral == scsi.DISK
    return StandardInquiry(
        peripheral=unit.peripheral,
        removable=RMB if personality.is_removable else 0,
        flags_5=alua.tpgs(nexus) | (THIRD_PARTY_COPY if third_party_copy.is_supported(unit) else 0) if is_disk else 0,
        flags_6=MULTIP if is_disk and len(nexus.ports.groups) > 1 else 0,
        vendor=padded(personality.vendor, 8),
        product=padded(personality.product, 16),
        revision=padded(personality.revision, 4),
        version_descriptors=b"".join(value.to_bytes(2, "big") for value in VERSION_DESCRIPTORS).ljust(16, b"\0"),
    ).pack()


def naa_locally_assigned(uuid_hex: str) -> int:
    """NAA 3 (SPC-4 7.8.6.6.4): 60 bits that are ours to choose; they are the SHA-256 of the UUID."""
    digest = hashlib.sha256(bytes.fromhex(uuid_hex)).digest()
    return 0x3 << 60 | int.from_bytes(digest[:8], "big") & (1 << 60) - 1


def naa(unit: scsi.LogicalUnit) -> bytes:
    """The NAA designator's value: sixteen bytes for NAA 6 (IEEE registered extended), else eight."""
    value = unit.personality.naa
    if value is None:
        value = naa_locally_assigned(unit.identity.uuid_hex)
    return value.to_bytes(16 if value >> 64 else 8, "big")


def serial_number(unit: scsi.LogicalUnit) -> bytes:
    """The product serial number: the UUID, unless the operator has another."""
    return (unit.personality.serial or unit.identity.uuid_hex).encode("ascii", "replace")


def _supported_pages(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    return bytes(pages_of(unit))


def _unit_serial_number(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    return serial_number(unit)


def _designator(association: int, kind: int, code_set: int, value: bytes) -> bytes:
    # PIV and the protocol are for ports and devices only (SPC-4 table 590)
    port = association in (TARGET_PORT, TARGET_DEVICE)
    header = DesignatorHeader(
        protocol_and_code_set=(ISCSI_PROTOCOL if port else 0) | code_set,
        association_and_type=(PIV if port else 0) | association | kind,
        length=len(value),
    )
    return header.pack() + value


def _name_string(name: str) -> bytes:
    """SPC-4 7.8.6.11: null-terminated, null-padded to a multiple of four."""
    encoded = name.encode("utf-8")
    return encoded + bytes(4 - len(encoded) % 4)


def _device_identification(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """A well known unit has no name of its own (SPC-4 7.8.6.2.1): the path's and the device's only."""
    group = nexus.port_group
    return b"".join(
        (
            _unit_designators(unit) if unit.peripheral == scsi.DISK else b"",
            _designator(TARGET_PORT, RELATIVE_TARGET_PORT, BINARY, group.relative_port.to_bytes(4, "big")),
            _designator(TARGET_PORT, TARGET_PORT_GROUP, BINARY, group.tag.to_bytes(4, "big")),
            _port_name(nexus, group),
            _designator(TARGET_DEVICE, SCSI_NAME_STRING, UTF_8, _name_string(nexus.target_name)),
        )
    )


def _unit_designators(unit: scsi.LogicalUnit) -> bytes:
    identifier = naa(unit)
    t10 = padded(unit.personality.vendor, 8) + serial_number(unit)
    return b"".join(
        (
            _designator(LOGICAL_UNIT, NAA, BINARY, identifier),
            _designator(LOGICAL_UNIT, T10_VENDOR, ASCII, t10),
            _designator(LOGICAL_UNIT, SCSI_NAME_STRING, UTF_8, _name_string(f"naa.{identifier.hex().upper()}")),
        )
    )


def _port_name(nexus: scsi.Nexus, group: PortGroup) -> bytes:
    """RFC 7143 section 4.2.7.1 and SPC-4: a target port is the iSCSI name, ",t,0x" and the portal group tag."""
    return _designator(TARGET_PORT, SCSI_NAME_STRING, UTF_8, _name_string(nexus.ports.port_name(group)))


def _extended_inquiry(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """V_SUP: what is not flushed is lost with the power. LUICLR: REPORT LUNS clears its unit attention on every unit
    (spc.report_luns)."""
    return ExtendedInquiry(flags_5=SIMPSUP | ORDSUP | HEADSUP, flags_6=V_SUP, flags_7=LUICLR).pack()


def _mode_page_policy(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """All mode pages are shared by all nexuses; each unit has its own."""
    return ModePagePolicy(policy_page_code=EVERY_PAGE, policy_subpage_code=EVERY_SUBPAGE, policy=SHARED).pack()


def _scsi_ports(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """Every port of the target device, whichever this nexus came through."""
    ports = b""
    for group in nexus.ports.groups.values():
        name = _port_name(nexus, group)
        header = ScsiPort(relative_port=group.relative_port, target_port_descriptors_length=len(name))
        ports += header.pack() + name
    return ports


def _block_limits(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    limits = unit.limits
    atomic_bytes = atomics.max_atomic_write_bytes(unit, nexus)
    physical_blocks = unit.personality.physical_block_bytes // unit.block_bytes
    can_unmap = unit.personality.is_thin
    return BlockLimits(
        wsnz=WSNZ if can_unmap else 0,
        maximum_compare_and_write_length=limits.max_compare_and_write_blocks,
        optimal_transfer_granularity=physical_blocks,
        maximum_transfer_length=unit.max_transfer_blocks,
        optimal_transfer_length=min(limits.optimal_transfer_bytes // unit.block_bytes, unit.max_transfer_blocks),
        maximum_prefetch_length=unit.max_transfer_blocks,
        maximum_unmap_lba_count=limits.max_unmap_blocks if can_unmap else 0,
        maximum_unmap_descriptor_count=limits.max_unmap_descriptors if can_unmap else 0,
        optimal_unmap_granularity=physical_blocks if can_unmap else 0,
        unmap_granularity_alignment=UGAVALID if can_unmap else 0,  # alignment 0
        # What holds for any block; zeros may be longer (scsi.Limits). Zero, "no limit", would be a lie for data.
        maximum_write_same_length=limits.max_write_same_bytes // unit.block_bytes,
        # What the store can do; no alignment, no granularity. Zero: WRITE ATOMIC is not there.
        maximum_atomic_transfer_length=min(atomic_bytes, limits.max_transfer_bytes) // unit.block_bytes,
    ).pack()


def _block_device_characteristics(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    return BlockDeviceCharacteristics(
        medium_rotation_rate=unit.personality.rotation_rate,
        flags_7=WABEREQ_READABLE if unit.personality.is_thin else 0,  # thick ones have no SANITIZE, BLOCK ERASE
    ).pack()


def _logical_block_provisioning(unit: scsi.LogicalUnit, nexus: scsi.Nexus) -> bytes:
    """The threshold set is what log page 0C and mode page 1C/02 count in."""
    exponent = (THRESHOLD_SET_BYTES // unit.block_bytes).bit_length() - 1
    flags = LBPU | LBPWS | LBPWS10 | LBPRZ
    return LogicalBlockProvisioning(threshold_exponent=exponent, flags_5=flags, provisioning_type=THIN).pack()


Page = Callable[[scsi.LogicalUnit, scsi.Nexus], bytes]

PAGES: dict[int, Page] = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0x86: _extended_inquiry,
    0x87: _mode_page_policy,
    0x88: _scsi_ports,
    third_party_copy.PAGE: third_party_copy.page,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}
assert list(PAGES) == sorted(PAGES), "page 00 lists them in ascending order"


def pages_of(unit: scsi.LogicalUnit) -> list[int]:
    """The pages that a unit has: all for a disk that is all of it, the list alone where there is none."""
    if unit.peripheral != scsi.DISK:
        return [0x00] if unit.peripheral == scsi.ABSENT else [0x00, 0x83]
    absent = {0xB2} if not unit.personality.is_thin else set()
    if not third_party_copy.is_supported(unit):
        absent.add(third_party_copy.PAGE)
    return [code for code in PAGES if code not in absent]


def page(unit: scsi.LogicalUnit, nexus: scsi.Nexus, page_code: int) -> bytes | None:
    """A whole VPD page; None for one that this unit does not have."""
    if page_code not in pages_of(unit):
        return None
    body = PAGES[page_code](unit, nexus)
    return PageHeader(peripheral=unit.peripheral, page_code=page_code, page_length=len(body)).pack() + body
