"""Corpus 12, resources: peers that are slow, many, deaf, or in a hurry. None of them takes what others need.

No clock but the scene's, no sockets: net/ has its own tests of accept queues and of writing that stalls.
"""

from __future__ import annotations

import random

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import READ, TAG, Client, Scene, command, read_cdb, scene
from tests.corpus.test_first_pdu import OPERATIONAL, SECURITY, flags, identity, login
from tests.targets.house import IQN


def test_a_login_a_byte_a_second() -> None:
    """Slow loris: bytes are no progress; the login's time runs from the connection on."""
    with scene() as it:
        whole = login(flags(SECURITY, OPERATIONAL), identity())
        for at in range(int(Timing().login_s) + 2):
            if it.bad.connection.is_closed:
                break
            it.send(whole[at : at + 1])
            it.house.pass_time(1.0)
        it.closed()


def test_ten_thousand_half_open_logins() -> None:
    """They cost no slot, and each is gone after its time; a good login among them is let in."""
    with scene(slots=64) as it:
        before = it.house.service.pool.free_slots
        few = [it.connect() for _ in range(200)]  # 10,000 are the same 200 fifty times: nothing is shared among them
        for client in few:
            client.give(login(flags(SECURITY, OPERATIONAL), identity())[:60])
        assert it.house.service.pool.free_slots == before
        it.house.login(isid=b"\x80\x12\x34\x56\x00\x77")
        it.house.pass_time(Timing().login_s + 1)
        assert all(client.connection.is_closed for client in few)


def deaf(it: Scene) -> Client:
    """A peer that sends and reads nothing."""
    it.login()
    it.bad.is_stopped = True
    return it.bad


def test_answers_that_nobody_reads() -> None:
    """Reading stops when enough lies there unread; other sessions do not notice; after its time the connection ends."""
    with scene() as it:
        client = deaf(it)
        ping = encode(pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=1, cmd_sn=it.peer.cmd_sn)) * 200
        sent = 0
        while client.connection.wants_read and sent < 1_000_000:
            client.give(ping)
            sent += 200
        assert not client.connection.wants_read
        it.others_go_on()
        it.house.pass_time(1)
        it.house.pass_time(Timing().stall_s + 1)
        assert client.connection.is_closed


def test_pings_of_the_largest_size_in_a_loop() -> None:
    """Echoes that are not read are memory of ours: the connection ends before they are much."""
    with scene() as it:
        client = deaf(it)
        ping = encode(pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=1, cmd_sn=it.peer.cmd_sn), bytes(262144))
        for _ in range(20):
            if not client.connection.is_closed:
                client.give(ping)
        assert client.connection.is_closed


def test_pings_of_the_largest_size_that_are_read() -> None:
    """Then they are pings: as many as it likes, each echoed as far as its MaxRecvDataSegmentLength goes."""
    with scene() as it:
        peer = it.login(MaxRecvDataSegmentLength="1024")
        for number in range(20):
            header = pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=TAG + number, cmd_sn=peer.cmd_sn)
            it.send(encode(header, bytes(262144)))
            (echo,) = it.says()
            assert len(echo.data) == 1024
        it.lives()


def test_sessions_under_one_name_after_the_other() -> None:
    """Random ISIDs are sessions of their own (section 4.2.7.3): they get smaller windows, and each still works."""
    with scene(slots=128) as it:
        rng = random.Random(7)
        clients = [it.house.login(isid=b"\x80" + rng.randbytes(5)) for _ in range(100)]
        for client in clients:
            assert client.do(client.read(0, 1)).status == scsi.GOOD
        it.others_go_on()
        assert it.house.service.pool.free_slots > 0


def test_connections_that_come_and_go() -> None:
    """In each state that a connection can be left in; nothing remains of any."""
    with scene() as it:
        whole = login(flags(OPERATIONAL, 3), identity())
        for cut in range(0, len(whole), 7):
            client = it.connect()
            client.give(whole[:cut])
            client.lose()
        for _ in range(20):
            client = it.house.login(isid=b"\x80\x12\x34\x56\x00\x77")
            client.initiator.command(read_cdb(0, 1), read=512)
            client.give(client.initiator.to_send())
            client.lose()
            it.house.run()


def test_a_storm_of_reinstatements() -> None:
    """Section 6.3.5: each login of the same port ends the one before, also one that is still waiting to be let in."""
    with scene() as it:
        clients = []
        for number in range(30):
            client = it.connect()
            client.initiator.login(IQN)
            clients.append(client)
            if number % 3:
                client.give(client.initiator.to_send())
            else:
                it.house.run()
        it.house.run()
        alive = [client for client in clients if not client.connection.is_closed]
        assert len(alive) == 1
        assert alive[0].initiator.is_logged_in
        alive[0].attentions()
        assert alive[0].do(alive[0].read(0, 1)).status == scsi.GOOD


@pytest.mark.parametrize("piece", [1, 3, 47, 49])
def test_a_session_in_small_segments(piece: int) -> None:
    """However TCP cuts it: the same answers."""
    with scene() as it:
        peer = it.login()
        whole = b"".join(
            command(peer, read_cdb(number, 1), READ, 512, initiator_task_tag=TAG + number) for number in range(2)
        )
        for at in range(0, len(whole), piece):
            it.bad.give(whole[at : at + piece])
        assert [each.header.initiator_task_tag for each in it.says()] == [TAG, TAG + 1]
