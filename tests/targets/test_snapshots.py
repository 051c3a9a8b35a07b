"""Snapshots as disks, without processes: when they are there, what they are, and that nobody writes to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.target import Settings
from shm_server.abi import control
from tests.config.files import load
from tests.targets.house import IQN, Client, House, info_of, kept, uuid_of

TEXT = """\
[lun.demo]
[lun.past]
volume = "demo@Before_X"
[target.demo]
lun.0 = "demo"
lun.1 = "past"
"""
NAME = "demo@Before_X"
WRITE = bytes.fromhex("2a000000000000000100")
UNMAP = bytes.fromhex("42000000000000001800")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield from kept(House(configuration=load(tmp_path, TEXT)))


def come(house: House, name: str) -> None:
    """A snapshot is made."""
    house.service.infos[name] = info_of(name, uuid_of(name))
    house.service.on_event(control.VolumeCreated(1, house.service.infos[name]))
    house.run()


def go(house: House, name: str) -> None:
    info = house.service.infos.pop(name)
    house.service.on_event(control.VolumeRemoved(2, name, info.uuid))
    house.run()


def heard(client: Client) -> list[object]:
    return client.attentions()


def test_it_comes_and_goes_under_a_session(house: House) -> None:
    """As soon as the snapshot is there so is its LUN; others of the volume are nobody's; it goes with either."""
    house.run()
    client = house.login()
    assert client.luns() == [0]
    come(house, "demo@other")
    assert client.luns() == [0]
    come(house, NAME)
    assert heard(client) == [(0x3F, 0x0E)]  # REPORTED LUNS DATA HAS CHANGED
    assert client.luns() == [0, 1]
    go(house, NAME)
    assert client.luns() == [0]
    come(house, NAME)
    assert client.luns() == [0, 1]
    house.service.on_event(control.VolumeRemoved(3, "demo", uuid_of("demo")))
    house.run()
    assert client.luns() == []


def test_it_is_read_only_and_its_own_disk(house: House) -> None:
    """DATA PROTECT for whatever writes, the WP bit, a serial number of its own; opened to be read, and no more."""
    come(house, NAME)
    client = house.login()
    client.attentions(1)
    for cdb, data in ((WRITE, bytes(512)), (UNMAP, bytes(24))):
        result = client.do(client.initiator.command(cdb, write=data, lun=1))
        assert (result.sense[2] & 0x0F, result.additional_sense) == (0x07, (0x27, 0x00))
    mode = client.do(client.initiator.command(bytes.fromhex("1a083f00ff00"), read=255, lun=1)).data
    assert mode[2] & 0x80
    sync = client.do(client.initiator.command(bytes.fromhex("35000000000000000000"), lun=1))
    assert sync.status == scsi.GOOD
    assert client.do(client.read(0, 8, lun=1)).status == scsi.GOOD
    serials = [client.do(client.initiator.command(bytes.fromhex("12018000ff00"), read=255, lun=lun)).data
               for lun in (0, 1)]  # fmt: skip
    assert bytes(serials[1])[4:] == uuid_of(NAME).encode()
    assert serials[0] != serials[1]
    assert sorted((handle.info.name, handle.access) for handle in house.service.handles) == [
        ("demo", "rw"), (NAME, "r"),
    ]  # fmt: skip


def test_the_volume_server_comes_back(house: House) -> None:
    """It is asked again whether the snapshot is there: the session goes on with it, or without."""
    come(house, NAME)
    client = house.login()
    client.attentions(1)
    house.service.lose()
    house.restart()
    house.run()
    client.attentions(1)
    assert client.do(client.read(0, 8, lun=1)).status == scsi.GOOD
    house.service.lose()
    del house.service.infos[NAME]
    house.restart()
    house.run()
    client.attentions()
    assert client.luns() == [0]


def test_without_a_configuration(house: House) -> None:
    """It is a target of its own if it is asked for, with a colon for the @: no volume's name has one."""
    plain = House()
    plain.target.snapshots.want(["demo@monday"])
    plain.service.infos["demo@monday"] = info_of("demo@monday", uuid_of("demo@monday"))
    plain.service.lose()
    plain.restart()
    plain.run()
    assert [node.iqn for node in plain.target.nodes] == [IQN, f"{IQN}:monday"]
    assert Settings(instance="two").iqn("demo@monday").endswith(":two.demo:monday")
    client = plain.client()
    client.initiator.login(f"{IQN}:monday")
    plain.run()
    client.attentions()
    result = client.do(client.initiator.command(WRITE, write=bytes(512)))
    assert result.additional_sense == (0x27, 0x00)
    plain.target.snapshots.want([])
    plain.run()
    assert [node.iqn for node in plain.target.nodes] == [IQN]


@pytest.mark.parametrize("volume", ["demo@", "@s", "demo@s@t", "demo@.s", "De@s", "demo@" + "s" * 128])
def test_names_that_can_not_be(tmp_path: Path, volume: str) -> None:
    """A name that no snapshot has is refused with its place."""
    with pytest.raises(ConfigurationError, match=r"lun\.past"):
        load(tmp_path, TEXT.replace(NAME, volume))
