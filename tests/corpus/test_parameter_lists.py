"""Corpus 9, parameter lists: lengths that lie, descriptors that overrun, a copy that names somebody else's unit.

Each is refused before anything is done: after every case the other peer's data are what they were, and so are the bad
one's.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import vpd
from tests.corpus.scene import Scene, with_a_victim
from tests.corpus.test_cdbs import ask, give
from tests.targets.house import BLOCK

Code = tuple[int, int, int]

PARAMETER_LIST_LENGTH: Code = (0x5, 0x1A, 0x00)
INVALID_IN_LIST: Code = (0x5, 0x26, 0x00)
INVALID_IN_CDB: Code = (0x5, 0x24, 0x00)
NOT_REACHABLE: Code = (0xA, 0x0D, 0x02)


@pytest.fixture
def it() -> Iterator[Scene]:
    """The bad peer has a disk of its own; the good one's is another unit of the same process."""
    yield from with_a_victim()


def images(it: Scene) -> dict[str, bytes]:
    return {uuid: bytes(data) for uuid, data in it.house.service.bytes_of.items()}


def refused(it: Scene, cdb: bytes, data: bytes, *codes: Code) -> None:
    before = images(it)
    status, code, _ = give(it, cdb, data)
    assert status == scsi.CHECK_CONDITION
    assert code in codes
    assert images(it) == before
    it.lives()


# PERSISTENT RESERVE OUT -----------------------------------------------------------------------------------------

KEYS = (0).to_bytes(8, "big") + (0xABC).to_bytes(8, "big")
SPEC_I_PT = 0x08


def reserve_out(action: int, length: int) -> bytes:
    return bytes((0x5F, action, 0, 0, 0)) + length.to_bytes(4, "big") + b"\0"


@pytest.mark.parametrize("length", [0, 1, 16, 23, 25, 28, 64])
def test_persistent_reserve_out_lengths(it: Scene, length: int) -> None:
    """SPC-4 6.16.2: 24 bytes, unless SPEC_I_PT says that more follow."""
    data = (KEYS + bytes(48))[:length]
    refused(it, reserve_out(0x00, length), data, PARAMETER_LIST_LENGTH)


@pytest.mark.parametrize(
    "transport_ids",
    [
        "", "00000000", "ffffffff", "00000004 05000000", "00000018 05000000", "00000018 0500ffff" + "00" * 20,
        "00000018 45000014" + "00" * 20, "00000018 85000014" + "41" * 20, "00000018 05000014" + "ff" * 20,
        "00000001 05",
    ],
)  # fmt: skip
def test_transport_ids_that_lie(it: Scene, transport_ids: str) -> None:
    """SPEC_I_PT with lengths beyond the list, formats that there are not, names that are none: nobody is registered."""
    data = KEYS + bytes(4) + bytes((SPEC_I_PT, 0, 0, 0)) + bytes.fromhex(transport_ids)
    refused(it, reserve_out(0x00, len(data)), data, PARAMETER_LIST_LENGTH, INVALID_IN_LIST)
    status, _, keys = ask(it, bytes.fromhex("5e000000000000ffff00"))
    assert (status, keys[4:8]) == (scsi.GOOD, bytes(4))


# MODE SELECT ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cdb", "data", "code"),
    [
        ("151000000100", "00", PARAMETER_LIST_LENGTH),
        ("151000000300", "000000", PARAMETER_LIST_LENGTH),
        ("151000000800", "000000080000000000000000", PARAMETER_LIST_LENGTH),  # the block descriptor is cut
        ("151000001000", "00000000" + "0a0a" + "00" * 10, PARAMETER_LIST_LENGTH),  # fewer bytes than the CDB says
        ("151000000600", "00000000" + "0a0a", PARAMETER_LIST_LENGTH),  # the page is cut
        ("151000001000", "00000000" + "0aff" + "00" * 10, INVALID_IN_LIST),  # the page says another length
        ("151000001000", "00000000" + "3e0a" + "00" * 10, INVALID_IN_LIST),  # no such page
        ("55100000000000000400", "00000000", PARAMETER_LIST_LENGTH),
    ],
)  # fmt: skip
def test_mode_select_lists(it: Scene, cdb: str, data: str, code: Code) -> None:
    """Shorter than the header, than a descriptor, than a page; pages that lie."""
    refused(it, bytes.fromhex(cdb), bytes.fromhex(data), code, *((INVALID_IN_LIST,) if code != INVALID_IN_LIST else ()))


# EXTENDED COPY --------------------------------------------------------------------------------------------------


def unit_of(it: Scene, name: str) -> scsi.LogicalUnit:
    disk = it.house.target.disks.named(name)
    assert disk is not None
    return disk.unit


def target(designator: bytes, kind: int = 0xE4) -> bytes:
    return bytes((kind, 0, 0, 0, 1, 3, 0, len(designator))) + designator.ljust(20, b"\0") + BLOCK.to_bytes(4, "big")


SEGMENT = bytes.fromhex("02000018 0000 0001 0000 0008 0000000000000000 0000000000000040")


def copy_list(first: bytes, second: bytes, **lies: int) -> bytes:
    """``lies``: what the header says instead of the true lengths."""
    return (
        b"\1\0" + lies.get("targets", len(first)).to_bytes(2, "big") + bytes(4)
        + lies.get("segments", len(second)).to_bytes(4, "big") + lies.get("inline", 0).to_bytes(4, "big")
        + first + second
    )  # fmt: skip


def copy_cdb(length: int) -> bytes:
    return b"\x83" + bytes(9) + length.to_bytes(4, "big") + b"\0\0"


@pytest.mark.parametrize("way", ["from", "to"])
def test_a_copy_of_a_foreign_unit(it: Scene, way: str) -> None:
    """CVE-2020-28374, CVE-2021-3139: a right designator of a unit that is in no map of this initiator's."""
    own, foreign = target(vpd.naa(unit_of(it, "victim"))), target(vpd.naa(unit_of(it, "demo")))
    data = copy_list(foreign + own if way == "from" else own + foreign, SEGMENT)
    refused(it, copy_cdb(len(data)), data, NOT_REACHABLE)


def test_copy_lists_that_lie(it: Scene) -> None:
    """Lists longer than what came, inline data of 4 GiB, descriptors of kinds and lengths that there are not."""
    own = target(vpd.naa(unit_of(it, "victim"))) * 2
    for lies in (
        {"targets": 0xFFFF}, {"segments": 0xFFFFFFFF}, {"targets": 65, "segments": 28}, {"segments": 29},
        {"targets": 0xFFE0, "segments": 0xFFFFFFE4},
    ):  # fmt: skip
        data = copy_list(own, SEGMENT, **lies)
        refused(it, copy_cdb(len(data)), data, PARAMETER_LIST_LENGTH)
    data = copy_list(own, SEGMENT, inline=0xFFFFFFFF)
    refused(it, copy_cdb(len(data)), data, (0x5, 0x26, 0x0B))
    data = copy_list(own, SEGMENT)
    for length in (1, 15, len(data) + 1, 0xFFFFFFFF):
        refused(it, copy_cdb(length), data, PARAMETER_LIST_LENGTH)
    for segment, code in (
        (SEGMENT[:2] + b"\xff\xff" + SEGMENT[4:], INVALID_IN_LIST),
        (SEGMENT[:2] + b"\0\0" + SEGMENT[4:], INVALID_IN_LIST),
        (b"\xbe\0\0\0", (0x5, 0x26, 0x09)),
        (SEGMENT[:4] + b"\xff\xff" + SEGMENT[6:], (0xA, 0x08, 0x04)),
        (SEGMENT[:12] + b"\xff" * 16, (0xA, 0x00, 0x00)),
    ):
        data = copy_list(own, segment)
        refused(it, copy_cdb(len(data)), data, code)
    data = copy_list(target(b"\x30" * 8, kind=0xE0), SEGMENT)
    refused(it, copy_cdb(len(data)), data, (0x5, 0x26, 0x07))
    data = copy_list(own[:7] + b"\xff" + own[8:], SEGMENT)
    refused(it, copy_cdb(len(data)), data, INVALID_IN_LIST)


# SANITIZE and FORMAT UNIT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "data", "code"),
    [
        (0, b"", INVALID_IN_CDB),
        (4, bytes.fromhex("01000000"), INVALID_IN_CDB),
        (BLOCK + 5, bytes(BLOCK + 5), INVALID_IN_CDB),
        (0xFFFF, bytes(8), INVALID_IN_CDB),
        (8, bytes.fromhex("010000"), PARAMETER_LIST_LENGTH),
        (8, bytes.fromhex("01000005") + bytes(4), PARAMETER_LIST_LENGTH),
        (8, bytes.fromhex("0100ffff") + bytes(4), INVALID_IN_LIST),
        (8, bytes.fromhex("01000000") + bytes(4), INVALID_IN_LIST),
        (8, bytes.fromhex("00000004") + bytes(4), INVALID_IN_LIST),
    ],
)
def test_sanitize_lists(it: Scene, length: int, data: bytes, code: Code) -> None:
    """Nothing is asked of the volume server, let alone wiped."""
    refused(it, bytes((0x48, 0x01)) + bytes(5) + length.to_bytes(2, "big") + b"\0", data, code)
    assert it.house.service.sanitizes == []


@pytest.mark.parametrize("header", ["", "0000", "000000ff", "0000ffff", "07000000", "00ff0000"])
def test_format_lists(it: Scene, header: str) -> None:
    """Defects and options that there are not, and lists that are cut."""
    refused(it, bytes.fromhex("041000000000"), bytes.fromhex(header), PARAMETER_LIST_LENGTH, INVALID_IN_LIST)
