"""EXTENDED COPY through a whole target: between the LUNs of one map, and never beyond it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.testing.initiator import Result
from tests.config.files import load
from tests.targets.house import BLOCK, Client, House, kept, uuid_of

PREFIX = "iqn.2016-01.com.openvstorage:"
NOT_REACHABLE = (0x0D, 0x02)
TEXT = """\
open = true
[portal-group.all]
listen = ["127.0.0.1:3260"]
[lun.one]
[lun.two]
[lun.three]
[target.pair]
portal-group = "all"
lun.0 = "one"
lun.3 = "two"
lun.4 = { lun = "three", read-only = true }
[target.single]
portal-group = "all"
lun.0 = "one"
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(configuration=load(tmp_path, TEXT), volumes="one two three")
    yield from kept(house)


@pytest.fixture
def login(house: House) -> Callable[[str], Client]:
    def log_in(target: str) -> Client:
        client = house.client()
        client.initiator.login(PREFIX + target)
        house.run()
        for lun in client.luns():
            client.attentions(lun)
        return client

    return log_in


def naa(client: Client, lun: int) -> bytes:
    """As its device identification page has it."""
    data = client.do(client.initiator.command(bytes.fromhex("1201830400 00"), read=1024, lun=lun)).data
    assert data[4:6].hex() == "0103"
    return bytes(data[8 : 8 + data[7]])


def copy(client: Client, source: bytes, destination: bytes, blocks: int, lun: int = 0) -> Result:
    """Blocks from LBA 8 on to LBA 100 on."""
    targets = b"".join(
        bytes((0xE4, 0, 0, 0, 1, 3, 0, len(each))) + each.ljust(20, b"\0") + BLOCK.to_bytes(4, "big")
        for each in (source, destination)
    )
    segment = bytes.fromhex("02000018 0000 0001 0000") + blocks.to_bytes(2, "big")
    segment += (8).to_bytes(8, "big") + (100).to_bytes(8, "big")
    data = bytes.fromhex("0100 0040 00000000 0000001c 00000000") + targets + segment
    cdb = bytes.fromhex("83000000000000000000") + len(data).to_bytes(4, "big") + b"\0\0"
    return client.do(client.initiator.command(cdb, write=data, lun=lun))


def content(house: House, name: str) -> bytearray:
    return house.service.bytes_of[uuid_of(name)]


def test_between_two_luns(house: House, login: Callable[[str], Client]) -> None:
    """Whichever LUN the command goes to: the requests go to the destination's handle."""
    client = login("pair")
    one, two = naa(client, 0), naa(client, 3)
    client.do(client.write(8, b"1" * 16 * BLOCK))
    for lun in (0, 3, 4):
        content(house, "two")[100 * BLOCK : 116 * BLOCK] = bytes(16 * BLOCK)
        assert copy(client, one, two, 16, lun).status == (scsi.GOOD if lun != 4 else scsi.CHECK_CONDITION)
        is_there = bytes(content(house, "two")[100 * BLOCK : 116 * BLOCK]) == b"1" * 16 * BLOCK
        assert is_there is (lun != 4)
    assert copy(client, two, one, 4).status == scsi.GOOD


def test_a_destination_that_this_map_may_not_write(login: Callable[[str], Client]) -> None:
    """COPY ABORTED, WRITE PROTECTED; reading from it is allowed."""
    client = login("pair")
    one, three = naa(client, 0), naa(client, 4)
    result = copy(client, one, three, 1)
    assert (result.sense[2] & 0xF, result.additional_sense) == (0xA, (0x27, 0x00))
    assert copy(client, three, one, 1).status == scsi.GOOD


def test_never_beyond_the_map(house: House, login: Callable[[str], Client]) -> None:
    """The right designator of a volume that another session of this very target process has open."""
    other, client = login("pair"), login("single")
    foreign, own = naa(other, 3), naa(client, 0)
    other.do(other.initiator.command(bytes.fromhex("2a000000000800000100"), write=b"s" * BLOCK, lun=3))
    before = bytes(content(house, "one")), bytes(content(house, "two"))
    for source, destination in ((foreign, own), (own, foreign)):
        result = copy(client, source, destination, 1)
        assert (result.sense[2] & 0xF, result.additional_sense) == (0xA, NOT_REACHABLE)
    assert (bytes(content(house, "one")), bytes(content(house, "two"))) == before
