"""A volume that is rolled back, without processes: what living sessions hear of it, and those that come back."""

from __future__ import annotations

from iscsi_ovs import pdu
from shm_server.abi import control
from tests.targets.house import IQN, House, info_of

CHANGED, LOST, CAPACITY = (0x28, 0x00), (0x29, 0x07), (0x2A, 0x09)


def test_a_living_session_hears() -> None:
    """Of other data on the medium, and of another size; of nothing where the generation is the same."""
    house = House()
    client = house.login()
    house.service.change(sanitize_failed=False)
    assert client.attentions() == []
    house.service.change(generation=1)
    assert client.attentions() == [CHANGED]
    house.service.change(generation=2, size_bytes=2 << 20)
    assert client.attentions() == [CHANGED, CAPACITY]


def test_growth_is_no_other_medium() -> None:
    """VolumeResized: only the size is new."""
    house = House()
    client = house.login()
    house.service.on_event(control.VolumeResized(1, info_of(size=2 << 20, generation=1)))
    assert client.attentions() == [CAPACITY]


def test_it_happened_while_the_volume_server_was_away() -> None:
    """For all that the target knows then, another generation is other data."""
    house = House()
    client = house.login()
    house.service.lose()
    house.service.infos["demo"] = info_of(generation=5)
    house.restart()
    house.run()
    assert CHANGED in client.attentions()


def test_who_is_logged_out_is_told_and_hears_when_it_comes_back() -> None:
    """AsyncEvent 3 first; then, behind the loss of its nexus, that the medium has changed; others have nothing to
    forget."""
    house = House()
    client = house.login()
    house.service.on_event(control.ReleaseRequested(1, "demo", info_of().uuid))
    house.run()
    assert client.connection.is_closed
    message = client.initiator.received[-1].header
    assert isinstance(message, pdu.AsynchronousMessage)
    assert message.async_event == pdu.ASYNC_DROP_SESSION
    house.service.change(generation=1, size_bytes=2 << 20)
    again = house.client()
    again.initiator.login(IQN)
    house.run()
    assert again.attentions() == [LOST, CHANGED, CAPACITY]
    assert house.login(name="iqn.2020-01.com.example:new").attentions() == []
