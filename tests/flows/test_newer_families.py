"""Families that libiscsi's suite has in its newer versions only: REPORT LUNS and REPORT TARGET PORT GROUPS.

Through the assembled target, over two portal groups, by the initiator of iscsi_ovs.testing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.net.portal import Address
from iscsi_ovs.testing.results import Result
from tests.config.files import load
from tests.targets.house import Client, House, kept

IQN = "iqn.2016-01.com.openvstorage:disk"
PORTALS = {1: Address("127.0.0.1", 3260), 9: Address("127.0.0.2", 3260)}
TEXT = """\
[portal-group.near]
tag = 1
listen = ["127.0.0.1:3260"]
preferred = true
[portal-group.far]
tag = 9
listen = ["127.0.0.2:3260"]
access = "non-optimized"
[lun.one]
[lun.two]
[target.disk]
portal-group = ["near", "far"]
explicit-alua = true
lun.0 = "one"
lun.300 = "two"
"""
INVALID_FIELD = (0x24, 0x00)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield from kept(House(configuration=load(tmp_path, TEXT), volumes="one two"))


def log_in(house: House, tag: int = 1, name: str = "iqn.2020-01.com.example:a") -> Client:
    client = house.client(name=name, at=PORTALS[tag])
    client.initiator.login(IQN)
    house.run()
    assert client.initiator.is_logged_in
    client.attentions(0)
    return client


def ask(client: Client, text: str, write: bytes = b"") -> Result:
    cdb = bytes.fromhex(text)
    result: Result = client.do(client.initiator.command(cdb, read=0 if write else 4096, write=write))
    return result


def data_of(client: Client, text: str) -> bytes:
    result = ask(client, text)
    assert result.status == scsi.GOOD
    assert result.underflow
    assert result.residual_count == 4096 - len(result.data)
    return bytes(result.data)


# REPORT LUNS ----------------------------------------------------------------------------------------------------


def report_luns(select: int, length: int = 4096) -> str:
    return f"a0 00 {select:02x} 000000 {length:08x} 00 00"


def test_report_luns(house: House) -> None:
    """All, well known, both; the list's length is its own, wherever it is cut."""
    client = log_in(house)
    units, well_known = "0000000000000000412c000000000000", "c101000000000000"
    for select, luns in ((0, units), (1, well_known), (2, units + well_known)):
        whole = bytes.fromhex(f"{len(luns) // 2:08x}00000000" + luns)
        assert data_of(client, report_luns(select)) == whole
        for length in (16, 17, len(whole), len(whole) + 1):
            assert data_of(client, report_luns(select, length)) == whole[:length]


def test_report_luns_refusals(house: House) -> None:
    """Lengths under sixteen, selections that there are not."""
    client = log_in(house)
    for text in [report_luns(0, length) for length in range(16)] + [report_luns(select) for select in (3, 0x10, 0xFF)]:
        assert ask(client, text).additional_sense == INVALID_FIELD


# REPORT TARGET PORT GROUPS --------------------------------------------------------------------------------------


def descriptors(data: bytes) -> dict[int, tuple[int, bool, list[int]]]:
    """By group: its access state, whether it is preferred, its relative target ports."""
    found: dict[int, tuple[int, bool, list[int]]] = {}
    at = 0
    while at < len(data):
        count = data[at + 7]
        ports = [int.from_bytes(data[at + 10 + 4 * n : at + 12 + 4 * n], "big") for n in range(count)]
        found[int.from_bytes(data[at + 2 : at + 4], "big")] = data[at] & 0xF, bool(data[at] & 0x80), ports
        at += 8 + 4 * count
    return found


GROUPS = {1: (0, True, [1]), 9: (1, False, [9])}


@pytest.mark.parametrize("tag", PORTALS)
def test_report_target_port_groups(house: House, tag: int) -> None:
    """The same on every path, in both formats; and INQUIRY says that there is something to report."""
    client = log_in(house, tag)
    plain = data_of(client, "a3 0a 00000000 00001000 00 00")
    extended = data_of(client, "a3 2a 00000000 00001000 00 00")
    assert int.from_bytes(plain[:4], "big") == len(plain) - 4
    assert int.from_bytes(extended[:4], "big") == len(extended) - 4
    assert extended[4] == 0x10
    assert descriptors(plain[4:]) == descriptors(extended[8:]) == GROUPS
    assert data_of(client, "12 00 00 00ff 00")[5] & 0x30 == 0x30


@pytest.mark.parametrize("tag", PORTALS)
def test_a_path_says_which_group_it_is(house: House, tag: int) -> None:
    """VPD page 83 names the group and the port that REPORT TARGET PORT GROUPS has."""
    page = data_of(log_in(house, tag), "12 01 83 1000 00")[4:]
    values = {}
    while page:
        values[page[1]] = page[4 : 4 + page[3]]
        page = page[4 + page[3] :]
    group, port = int.from_bytes(values[0x95], "big"), int.from_bytes(values[0x94], "big")
    assert group == tag
    assert GROUPS[group][2] == [port]


def test_set_target_port_groups(house: House) -> None:
    """One path makes the other its equal; that hears of it, and both see it."""
    near, far = log_in(house), log_in(house, 9, "iqn.2020-01.com.example:b")
    wanted = bytes.fromhex("00000000 00000009")
    assert ask(near, "a4 0a 00000000 00000008 00 00", wanted).status == scsi.GOOD
    assert far.attentions() == [(0x2A, 0x06)]
    assert near.attentions() == []
    for client in (near, far):
        assert descriptors(data_of(client, "a3 0a 00000000 00001000 00 00")[4:])[9][0] == 0
