"""What a volume takes, from the volume server to LOG SENSE; and modes that were saved, behind a restart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from iscsi_ovs import scsi
from tests.targets.house import House, kept

LOG_SENSE = bytes.fromhex("4d 00 0c 00 00 0000 00ff 00")
SAVE_SWP = bytes.fromhex("15 11 0000 10 00"), bytes.fromhex("00000000 0a0a0210 08 00000000000000")
WRITE = bytes.fromhex("2a 00 00000000 00 0001 00")


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


def done(client: Any, cdb: bytes, data: bytes = b"", room: int = 0) -> Any:
    return client.do(client.initiator.command(cdb, write=data, read=room))


def test_usage(house: House) -> None:
    """LOG SENSE page 0C asks the volume server; while that is away it is BUSY."""
    client = house.login()
    house.service.change(allocated_bytes=3 << 20)
    client.attentions()
    result = done(client, LOG_SENSE, room=255)
    assert result.data[8:12].hex() == "00000003"
    house.service.lose()
    assert done(client, LOG_SENSE, room=255).status == scsi.BUSY


def test_saved_modes_outlive_the_target(house: House) -> None:
    """Another process finds the disk write protected, before it lets anybody in."""
    client = house.login()
    assert done(client, *SAVE_SWP).status == scsi.GOOD
    assert house.service.records["demo", "modes"][0] == 1
    for later in kept(House()):
        later.service.records = house.service.records
        client = later.login()
        assert done(client, WRITE, bytes(512)).additional_sense == (0x27, 0x00)
