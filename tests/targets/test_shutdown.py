"""How a target ends: who is asked, who is dropped, and that it does not wait for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import pdu
from tests.targets.house import IQN, Client, House, kept


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


def begin(house: House) -> None:
    house.target.shutdown.begin()
    house.run()


def pass_time(house: House, seconds: float) -> None:
    for _ in range(round(seconds * 100)):
        house.pass_time(0.01)
        house.run()


def stopped(house: House) -> bool:
    return bool(house.target.core.driver.stopped)  # type: ignore[attr-defined]


def asked(client: Client) -> list[int]:
    headers = [each.header for each in client.initiator.received]
    return [header.async_event for header in headers if isinstance(header, pdu.AsynchronousMessage)]


def test_without_sessions_it_stops_at_once(house: House) -> None:
    begin(house)
    assert stopped(house)


def test_who_logs_out_is_not_dropped(house: House) -> None:
    """It stops when the last one has gone."""
    client = house.login()
    begin(house)
    assert asked(client) == [pdu.ASYNC_LOGOUT_REQUEST]
    assert not stopped(house)
    client.initiator.logout()
    house.run()
    assert client.initiator.is_logged_out
    pass_time(house, 0.1)
    assert stopped(house)


def test_who_does_not_is_dropped(house: House) -> None:
    """With words in front."""
    client = house.login()
    begin(house)
    pass_time(house, 2.9)
    assert not client.connection.is_closed
    pass_time(house, 0.3)
    assert asked(client) == [pdu.ASYNC_LOGOUT_REQUEST, pdu.ASYNC_DROP_SESSION]
    assert client.connection.is_closed
    assert stopped(house)


def test_a_stuck_disk_does_not_hold_it(house: House) -> None:
    """A moment after everybody was dropped it stops, whatever the volume server still has."""
    client = house.login()
    house.service.handles[0].hold()
    client.write(0, b"w" * 4096)
    house.run()
    begin(house)
    pass_time(house, 3.5)
    assert not stopped(house)
    pass_time(house, 1.0)
    assert stopped(house)


def test_nobody_is_let_in_any_more(house: House) -> None:
    """Service unavailable: initiators try again, and find who comes after us. A login under way hears the same."""
    client = house.login()
    house.service.holds_opens = True
    late = house.client(isid=b"\x80\x12\x34\x56\x00\x03")
    late.initiator.login(IQN)
    house.run()
    begin(house)
    later = house.client(isid=b"\x80\x12\x34\x56\x00\x04")
    later.initiator.login(IQN)
    house.run()
    assert late.initiator.login_status == (3, 1)
    assert later.initiator.login_status == (3, 1)
    house.service.holds_opens = False
    client.initiator.logout()
    house.run()
    pass_time(house, 0.1)
    assert stopped(house)
