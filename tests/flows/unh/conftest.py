"""A target without processes, and an initiator that is logged in to it and judges what it hears."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.targets.house import Client, House, kept


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


@pytest.fixture
def client(house: House) -> Client:
    client = house.login()
    client.initiator.received.clear()
    return client
