"""What the exchanges share: logins with chosen keys, and looking at the PDUs that came."""

from __future__ import annotations

from typing import Any, TypeVar

from iscsi_ovs import pdu
from tests.targets.house import IQN, Client, House

Kind = TypeVar("Kind", bound=pdu.Pdu)


def login(house: House, **keys: Any) -> Client:
    """Into full feature phase with these keys; unit attentions are heard already."""
    client = house.client()
    client.initiator.login(IQN, **keys)
    house.run()
    assert client.initiator.is_logged_in
    client.attentions()
    client.initiator.received.clear()
    return client


def discover(house: House, **keys: Any) -> Client:
    client = house.client()
    client.initiator.login(None, **keys)
    house.run()
    assert client.initiator.is_logged_in
    client.initiator.received.clear()
    return client


def came(client: Client, kind: type[Kind]) -> list[Any]:
    """The headers of this kind that have come, in order."""
    return [each.header for each in client.initiator.received if isinstance(each.header, kind)]


def read_cdb(lba: int, blocks: int) -> bytes:
    return bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write_cdb(lba: int, blocks: int) -> bytes:
    return b"\x2a" + read_cdb(lba, blocks)[1:]
