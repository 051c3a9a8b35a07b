"""What a target does about its volume server's segment and about mistakes behind completions."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from iscsi_ovs import scsi
from tests.targets.house import OTHER_PORT, Client, House, kept

INQUIRY_B0 = bytes.fromhex("1201b0004000")
MIB = 1 << 20


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


def limits(client: Client) -> tuple[int, int]:
    """MAXIMUM and OPTIMAL TRANSFER LENGTH, in bytes."""
    data = client.do(client.initiator.command(INQUIRY_B0, read=64)).data
    return int.from_bytes(data[8:12], "big") * 512, int.from_bytes(data[12:16], "big") * 512


@pytest.mark.parametrize(
    ("slots", "maximum", "optimal"),
    [(512, 8 * MIB, MIB), (256, 8 * MIB, MIB), (64, 2 * MIB, MIB), (16, MIB // 2, MIB // 2)],
)
def test_no_more_is_promised_than_there_is_room_for(slots: int, maximum: int, optimal: int) -> None:
    """VPD B0 says what the segment can hold at once; so much can be read, a block more is refused."""
    house = House(slots)
    client = house.login()
    assert limits(client) == (maximum, optimal)
    if maximum <= MIB:  # as large as the volume
        assert client.do(client.read(0, maximum // 512)).status == scsi.GOOD
        assert client.do(client.read(0, maximum // 512 + 1)).additional_sense == (0x24, 0x00)


def test_a_new_segment_has_its_own_limit(house: House) -> None:
    """The volume server came back with less room."""
    client = house.login()
    house.service.lose()
    house.service.slots = 64
    house.restart()
    house.run()
    client.attentions()
    assert limits(client)[0] == 2 * MIB
    house.service.lose()
    house.service.slots = 1024
    house.restart()
    house.run()
    client.attentions()
    assert limits(client)[0] == 8 * MIB


def test_a_mistake_behind_a_completion_costs_one_session(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged with its traceback, the session ends and lets go of its volume; another one goes on."""
    client, other = house.login(), house.login(isid=OTHER_PORT)
    for handle in house.service.handles:
        handle.hold()
    client.read(0, 1)
    house.run()
    (request,) = [request for handle in house.service.handles for request in handle.held]
    for handle in house.service.handles:
        handle._held.clear()  # it comes back, but what was to become of it raises
        handle.let_go()
    with caplog.at_level(logging.ERROR):
        house.service.on_mistake(request, ZeroDivisionError("a mistake"))
    house.run()
    assert client.connection.is_closed
    assert "a mistake of ours behind READ" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert other.do(other.read(0, 1)).status == scsi.GOOD
    house.run()
    assert len(house.service.handles) == 1
