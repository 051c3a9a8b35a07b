"""One greedy or stalled initiator never starves another (CONTRACTS 3): on the default region of 64 MiB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.session.liveness import Timing
from tests.targets.house import BLOCK, IQN, Client, House, kept

MIB = 1 << 20
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House(slots=1024))


def login(house: House, number: int) -> Client:
    client = house.client(isid=bytes((0x80, 0, 0, 0, 0, number)))
    client.initiator.login(IQN, **SOLICITED)
    house.run()
    client.attentions()
    return client


def stall(house: House) -> tuple[Client, Client]:
    """One that answers no R2T, and one that reads no answer; both with more under way than the region holds."""
    writer, reader = login(house, 1), login(house, 2)
    writer.initiator.answer_r2t = False
    for _ in range(128):
        writer.write(0, bytes(MIB))
    for _ in range(128):
        reader.read(0, MIB // BLOCK)
    house.run(storage=False)
    reader.give(reader.initiator.to_send())
    reader.is_stopped = True
    house.run()
    return writer, reader


def test_sessions_beside_a_stalled_writer_and_a_stalled_reader(house: House) -> None:
    """Each of 38 writes and reads more than a fair share of the region, at once; all finish while the two stall."""
    stall(house)
    others = [login(house, 3 + number) for number in range(38)]
    tags = [(client, client.write(0, bytes([number]) * MIB)) for number, client in enumerate(others)]
    tags += [(client, client.read(0, MIB // BLOCK)) for client in others for _ in range(2)]
    house.run()
    assert {client.initiator.results[tag].status for client, tag in tags} == {scsi.GOOD}


def test_what_a_stalled_writer_holds_comes_back(house: House) -> None:
    """At its R2Ts' deadline; others that wait have their turn then, and its own later writes."""
    writer, _ = stall(house)
    for _ in range(round(Timing().transfer_s) + 2):
        house.pass_time(1.0)
        house.run()
    timed_out = [tag for tag, result in writer.initiator.results.items() if result.additional_sense == (0x4B, 0x06)]
    assert len(timed_out) > 8
    (session,) = (each for each in house.target.members.sessions() if each.nexus.isid == writer.initiator.isid)
    assert session.tasks.find(timed_out[0]) is None


def test_a_slow_reader_is_not_given_more_than_its_share(house: House) -> None:
    """The reserve is left, whatever it asks for."""
    stall(house)
    assert house.service.pool.free_slots >= MIB // house.service.pool.slot_bytes * 8 - 16
