"""Corpus 9, parameter lists: PERSISTENT RESERVE OUT, MODE SELECT, EXTENDED COPY, SANITIZE, with lengths that lie.

SPC-4 4.3.6 and the sections of the commands: a list that is cut is 05/1A/00, a field of it that can't be 05/26/00, a
copy target that this session does not see 0A/0D/02 (others copied from it: CVE-2020-28374, CVE-2021-3139).
"""

from __future__ import annotations

import pytest

from iscsi_ovs import scsi
from tests.corpus.scene import Scene
from tests.corpus.test_cdbs import ask, give, it  # noqa: F401  its disk of its own
from tests.targets.house import uuid_of

LENGTH_ERROR = (0x05, 0x1A, 0x00)
INVALID_LIST = (0x05, 0x26, 0x00)
INVALID_CDB = (0x05, 0x24, 0x00)


def reserve_out(action: int, data: bytes, said: int | None = None) -> tuple[bytes, bytes]:
    length = len(data) if said is None else said
    return bytes((0x5F, action, 0, 0, 0)) + length.to_bytes(4, "big") + bytes(7), data


def key_list(flags: int = 0, rest: bytes = b"") -> bytes:
    """The key 1 to be registered."""
    return bytes(8) + (1).to_bytes(8, "big") + bytes(4) + bytes((flags, 0, 0, 0)) + rest


def transport_ids(said: int, ids: bytes) -> bytes:
    return key_list(0x08, said.to_bytes(4, "big") + ids)


NAME = b"iqn.2016-01.com.openvstorage.testing:x\0"
NAME += bytes(-len(NAME) % 4)


def transport_id(length: int, name: bytes = NAME) -> bytes:
    return bytes((0x05, 0)) + length.to_bytes(2, "big") + name


RESERVE_OUT = {
    **{f"{length} bytes": (reserve_out(0, key_list()[:length]), LENGTH_ERROR) for length in (1, 8, 16, 23)},
    "25 bytes": (reserve_out(0, key_list() + b"\0"), LENGTH_ERROR),
    "512 bytes": (reserve_out(0, key_list() + bytes(488)), LENGTH_ERROR),
    "none": (reserve_out(0, b""), LENGTH_ERROR),
    "4 GiB, said": (reserve_out(0, key_list(), 0xFFFFFFFF), LENGTH_ERROR),
    "TransportIDs of 4 GiB": (reserve_out(0, transport_ids(0xFFFFFFFF, transport_id(len(NAME)))), LENGTH_ERROR),
    "fewer TransportIDs than said": (reserve_out(0, transport_ids(200, transport_id(len(NAME)))), LENGTH_ERROR),
    "more TransportIDs than said": (reserve_out(0, transport_ids(0, transport_id(len(NAME)))), LENGTH_ERROR),
    "a TransportID of 64 KiB": (
        reserve_out(0, transport_ids(4 + len(NAME), transport_id(0xFFFF))),
        INVALID_LIST,
    ),
    "a TransportID of length 0": (reserve_out(0, transport_ids(4 + len(NAME), transport_id(0))), INVALID_LIST),
    "a TransportID of another transport": (
        reserve_out(0, transport_ids(24, b"\x06" + bytes(23))),
        INVALID_LIST,
    ),
    "a service action that is none": (reserve_out(0x1F, key_list()), INVALID_CDB),
}


@pytest.mark.parametrize("name", RESERVE_OUT)
def test_persistent_reserve_out(it: Scene, name: str) -> None:  # noqa: F811
    """Nothing is registered by a list that is not right."""
    (cdb, data), wanted = RESERVE_OUT[name]
    assert give(it, cdb, data)[1] == wanted
    status, _, keys = ask(it, bytes((0x5E, 0, 0, 0, 0, 0, 0, 0, 255)) + bytes(7))
    assert status == scsi.GOOD
    assert keys[4:8] == bytes(4)


def select(data: bytes, said: int | None = None) -> tuple[bytes, bytes]:
    return bytes((0x15, 0x10, 0, 0, len(data) if said is None else said, 0)) + bytes(10), data


CONTROL = bytes((0x0A, 0x0A)) + bytes(10)
MODE_SELECT = {
    **{f"{length} bytes, no header": (select(bytes(length)), LENGTH_ERROR) for length in (1, 2, 3)},
    "a page cut short": (select(bytes(4) + CONTROL[:5]), LENGTH_ERROR),
    "a page longer than it is": (select(bytes(4) + b"\x0a\xff" + bytes(10)), INVALID_LIST),
    "a page shorter than it is": (select(bytes(4) + b"\x0a\x02" + bytes(2)), INVALID_LIST),
    "a page that is none": (select(bytes(4) + b"\x3e\x0a" + bytes(10)), INVALID_LIST),
    "a block descriptor that is not there": (select(bytes((0, 0, 0, 8))), LENGTH_ERROR),
    "255 bytes of block descriptors": (select(bytes((0, 0, 0, 255)) + bytes(200)), None),
    "more than came": (select(bytes(4) + CONTROL, 255), LENGTH_ERROR),
}


@pytest.mark.parametrize("name", MODE_SELECT)
def test_mode_select(it: Scene, name: str) -> None:  # noqa: F811
    """A list is taken whole or not at all."""
    (cdb, data), wanted = MODE_SELECT[name]
    code = give(it, cdb, data)[1]
    assert code == wanted if wanted else code in {LENGTH_ERROR, INVALID_LIST}
    assert ask(it, bytes((0x1A, 8, 0x0A, 0, 255, 0)) + bytes(10))[0] == scsi.GOOD


def naa_target(designator: bytes) -> bytes:
    """An identification descriptor CSCD descriptor (E4h)."""
    return bytes((0xE4, 0, 0, 0, 1, 3, 0, len(designator))) + designator.ljust(20, b"\0") + bytes((0, 0, 2, 0))


def extended_copy(targets: bytes, segments: bytes = b"", *, targets_said: int | None = None, inline: int = 0) -> bytes:
    said = len(targets) if targets_said is None else targets_said
    head = bytes((1, 0)) + said.to_bytes(2, "big") + bytes(4) + len(segments).to_bytes(4, "big")
    return head + inline.to_bytes(4, "big") + targets + segments


def copied(it: Scene, data: bytes, said: int | None = None) -> tuple[int, int, int] | None:  # noqa: F811
    length = len(data) if said is None else said
    return give(it, bytes((0x83, 0)) + bytes(8) + length.to_bytes(4, "big") + bytes(2), data)[1]


SEGMENT = bytes((0x02, 0, 0, 0x18, 0, 0, 0, 1, 0, 0, 0, 1)) + bytes(16)


def identity(it: Scene) -> bytes:  # noqa: F811
    """The NAA designator of the bad peer's own disk."""
    page = ask(it, bytes((0x12, 1, 0x83, 0, 255, 0)) + bytes(10))[2]
    at = page.index(b"\x01\x03\0")
    return page[at + 4 : at + 4 + page[at + 3]]


def test_a_copy_never_leaves_the_map(it: Scene) -> None:  # noqa: F811
    """The other target's disk has a designator, too; to this session it is not reachable, read or write."""
    page = it.good.do(it.good.initiator.command(bytes((0x12, 1, 0x83, 0, 255, 0)), read=255)).data
    at = bytes(page).index(b"\x01\x03\0")
    foreign, own = bytes(page[at + 4 : at + 4 + page[at + 3]]), identity(it)
    assert foreign != own
    for pair in (naa_target(foreign) + naa_target(own), naa_target(own) + naa_target(foreign)):
        code = copied(it, extended_copy(pair, SEGMENT))
        assert code is not None
        assert (code[0], code[1:]) == (0x0A, (0x0D, 0x02))
    assert uuid_of("victim")  # both are disks of the same server


def test_extended_copy_lists_that_lie(it: Scene) -> None:  # noqa: F811
    """Cut, longer than they are, with target lengths that are no multiple of 32, with 64 KiB of inline data."""
    own = naa_target(identity(it))
    whole = extended_copy(own, SEGMENT)
    assert copied(it, whole[:15]) == LENGTH_ERROR
    assert copied(it, whole, 0xFFFFFF) == LENGTH_ERROR
    assert copied(it, extended_copy(own, targets_said=0xFFE0)) == LENGTH_ERROR
    for wrong in (extended_copy(own, targets_said=31), extended_copy(own, inline=70000)):
        code = copied(it, wrong)
        assert code is not None
        assert code[:2] in ((0x05, 0x26), (0x05, 0x1A))


SANITIZES = {
    "no list": (b"", INVALID_CDB),
    "a header alone": (bytes((1, 0, 0, 0)), None),
    "a pattern shorter than said": (bytes((1, 0, 2, 0)) + bytes(100), None),
    "a pattern of no bytes": (bytes((1, 0, 0, 0)) + bytes(4), None),
    "a pattern longer than a block": (bytes((1, 0, 4, 0)) + bytes(1024), None),
    "no passes": (bytes((0, 0, 0, 4)) + bytes(4), None),
}


@pytest.mark.parametrize("name", SANITIZES)
def test_sanitize_overwrite(it: Scene, name: str) -> None:  # noqa: F811
    """A wrong list begins nothing: the volume server is not asked, and the medium is there."""
    data, wanted = SANITIZES[name]
    code = give(it, bytes((0x48, 0x81)) + bytes(5) + len(data).to_bytes(2, "big") + bytes(7), data)[1]
    assert code == wanted if wanted else code in {LENGTH_ERROR, INVALID_LIST, INVALID_CDB}
    assert it.house.service.sanitizes == []
    assert ask(it, bytes((0x28,)) + bytes(7) + b"\x01" + bytes(7))[0] == scsi.GOOD
