"""However a session ends, in the middle of whatever: its slots, grants, handles, places in line and tasks come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from iscsi_ovs import block, pdu
from shm_server.abi import control
from tests.targets.house import BLOCK, IQN, OTHER_PORT, Client, House, info_of, kept

KIB = 1024
READ_BLOCKS = 2048
REGISTER = bytes((0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0))
COMPARE_AND_WRITE = bytes((0x89, *bytes(12), 1, 0, 0))


class Crowded(House):
    """``crowd`` has the slots that others wait for."""

    crowd: block.Buffer | None = None


End = Callable[[Crowded, Client], None]


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(Crowded(slots=256))


def busy(house: Crowded, waits_for: str) -> Client:
    """A session with something in every state that a task can be in, and a data segment that is half here. Some wait
    for slots or for their turn: who waits for its turn would be sent away where slots are short."""
    client = house.login()
    for _ in range(64):  # the window grows
        client.write(0, bytes(BLOCK))
    house.run()
    for handle in house.service.handles:
        handle.hold()
    initiator = client.initiator
    house.service.holds_records = True
    client.read(0, READ_BLOCKS)
    held = client.write(0, b"w" * 4 * KIB)
    initiator.command(COMPARE_AND_WRITE, write=bytes(2 * BLOCK))
    initiator.command(REGISTER, write=bytes(24))
    if waits_for == "its turn":
        initiator.command(bytes((0x2A, *bytes(6), 0, 1, 0)), write=bytes(BLOCK), attribute=pdu.ATTRIBUTE_ORDERED)
    initiator.command(bytes((0x2A, *bytes(6), 0, 1, 0)), write=bytes(BLOCK), immediate=True)
    initiator.answer_r2t = False
    client.write(0, b"r" * 512 * KIB)  # beyond its first burst: it waits for slots, or for what its R2Ts ask for
    initiator.command(bytes((0x2A, *bytes(6), 0, 16, 0)), write=bytes(8 * KIB), immediate_data=0)
    house.run()
    if waits_for == "slots":
        pool = house.service.pool
        house.crowd = pool.allocate((pool.free_slots - 8) * pool.slot_bytes)
        client.read(0, READ_BLOCKS)
        house.run()
    initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=held)
    house.run()
    initiator.cmd_sn += 1  # a gap: what comes behind it is not in its turn
    client.write(0, bytes(4 * KIB))
    house.run()
    client.is_stopped = True  # it reads no answers any more
    cdb = bytes((0x2A, *bytes(6), 0, 128, 0))
    if waits_for == "slots":
        initiator.cmd_sn -= 2
        initiator.command(cdb, write=bytes(64 * KIB))
    else:
        initiator.command(cdb, write=bytes(64 * KIB), immediate_data=0)
    data = initiator.to_send()
    client.give(data[: len(data) - 1000])
    house.run()
    (handle,) = house.service.handles
    handle.complete(next(request for request in handle.held if request.operation is block.Operation.READ))
    session = client.connection.session
    assert session is not None
    tasks = list(session.tasks)
    assert client.connection.outbox.pending_marks
    assert client.connection._framing._pending_bytes == 1000
    assert session.holds_commands
    assert session.management.under_way
    assert house.target.space.has_waiters if waits_for == "slots" else house.target.ordering.sets
    assert any(task.transfers for task in tasks)
    assert any(task.is_aborted for task in tasks)
    assert any(task.unsolicited_end for task in tasks) == (waits_for == "its turn")
    return client


def whole(house: Crowded) -> None:
    """Nothing is left of any session."""
    if house.crowd is not None:
        house.crowd.release()
    house.service.holds_records = False
    for handle in house.service.handles:
        handle.let_go()
    for _ in range(15):
        house.run()
        house.pass_time(1.0)
        house.target.tick(house.now)
    for client in house.clients:
        assert client.connection.is_closed
        client.lose()  # as its socket is closed, with what was never sent
    target = house.target
    assert target.members.is_empty
    assert target.members.sessions() == []
    assert target.space.granted_slots == 0
    assert not target.space.has_waiters
    assert target.ordering.sets == {}
    assert house.service.handles == []
    if house.service.is_attached:
        assert house.service.pool.is_whole
    for disk in target.disks:
        assert disk.holdings == []
        assert disk.stuck == 0
        assert disk.unit.blocked_because is None
    for client in house.clients:
        assert client.connection.outbox.pending_marks == 0


def login_again(house: Crowded, **identity: bytes) -> Client:
    client = house.client(**identity)
    client.initiator.login(IQN)
    house.run()
    return client


def logout(house: Crowded, client: Client) -> None:
    client.is_stopped = False
    client.give(bytes(1000))
    client.initiator.logout(immediate=True)
    house.run()


def stop_listening(house: Crowded, client: Client) -> None:
    client.house.target.happened(client.connection, client.connection.received(0, house.now))


def reinstated(house: Crowded, client: Client) -> None:
    login_again(house).lose()


def named_anew(house: Crowded, client: Client) -> None:
    other = house.client()
    other.initiator.login(IQN, tsih=client.connection.session.tsih)  # type: ignore[union-attr]
    house.run()


def garbage(house: Crowded, client: Client) -> None:
    client.give(bytes(1000))
    client.give(b"\x01\x80" + b"\0\0\0\xff\xff\xff" + bytes(40))
    house.run()


def login_in_full_feature(house: Crowded, client: Client) -> None:
    client.give(bytes(1000))
    client.give(pdu.LoginRequest(flags=0x87).pack())
    house.run()


def dropped(house: Crowded, client: Client) -> None:
    house.target.core.drop(client.connection, "a test")


def removed(house: Crowded, client: Client) -> None:
    house.service.on_event(control.VolumeRemoved(1, "demo", info_of().uuid))


def released(house: Crowded, client: Client) -> None:
    house.service.on_event(control.ReleaseRequested(1, "demo", info_of().uuid))


def reset_by_another(function: int) -> End:
    def end(house: Crowded, client: Client) -> None:
        other = login_again(house, isid=OTHER_PORT)
        other.initiator.tmf(function)
        house.run()
        client.lose()
        house.run()
        other.lose()

    return end


def server_lost(house: Crowded, client: Client) -> None:
    house.service.lose()
    house.run()
    client.lose()
    house.restart()


def server_back(house: Crowded, client: Client) -> None:
    house.service.lose()
    house.restart()
    house.run()
    client.lose()


def lost_then_server_lost(house: Crowded, client: Client) -> None:
    client.lose()
    house.service.lose()
    house.run()
    house.restart()


def reset_by_itself(house: Crowded, client: Client) -> None:
    client.give(bytes(1000))
    client.initiator.tmf(pdu.I_T_NEXUS_RESET)
    client.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    client.initiator.tmf(pdu.TARGET_COLD_RESET)
    client.give(client.initiator.to_send())
    house.run()
    client.lose()


def silent(house: Crowded, client: Client) -> None:
    for _ in range(70):
        house.pass_time(1.0)
        house.run()
    client.lose()


def shut_down(house: Crowded, client: Client) -> None:
    house.target.shutdown.begin()
    for _ in range(100):
        house.pass_time(0.1)
        house.run()


def broken_completion(house: Crowded, client: Client) -> None:
    """A mistake of ours behind one of its completions."""
    (handle,) = house.service.handles
    request = handle.held[0]
    request.done = lambda _: house.target.volume_server._mistaken(request, RuntimeError("a test"))
    handle.complete(request)
    house.run()


def lost_while_it_logs_in_again(house: Crowded, client: Client) -> None:
    other = login_again(house)
    other.lose()
    client.lose()


def lost_twice(house: Crowded, client: Client) -> None:
    client.lose()
    client.lose()
    dropped(house, client)


ENDS: dict[str, End] = {
    "logout": logout,
    "the connection is lost": lambda house, client: client.lose(),
    "it closes its connection": stop_listening,
    "it is lost twice": lost_twice,
    "reinstated": reinstated,
    "lost while its successor waits": lost_while_it_logs_in_again,
    "its connection is named anew": named_anew,
    "a data segment that is too long": garbage,
    "a login in the full feature phase": login_in_full_feature,
    "dropped": dropped,
    "its volume is removed": removed,
    "its volume is to be let go": released,
    "a cold reset": reset_by_another(pdu.TARGET_COLD_RESET),
    "a warm reset, then lost": reset_by_another(pdu.TARGET_WARM_RESET),
    "a unit's reset, then lost": reset_by_another(pdu.LOGICAL_UNIT_RESET),
    "its task set cleared, then lost": reset_by_another(pdu.CLEAR_TASK_SET),
    "the volume server is lost, then it is": server_lost,
    "the volume server is back, then it is lost": server_back,
    "it is lost, then the volume server is": lost_then_server_lost,
    "it resets its unit, then the target": reset_by_itself,
    "it says nothing any more": silent,
    "the target stops": shut_down,
    "a mistake of ours": broken_completion,
}
assert len(ENDS) >= 20


@pytest.mark.parametrize("waits_for", ["slots", "its turn"])
@pytest.mark.parametrize("is_stuck", [False, True], ids=["the disk is quick", "the disk is stuck meanwhile"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_all_comes_back(house: Crowded, end: End, is_stuck: bool, waits_for: str) -> None:
    """At once, or when the volume server has given back what it had."""
    client = busy(house, waits_for)
    if not is_stuck:
        house.service.holds_records = False
        for handle in house.service.handles:
            handle.let_go()
    end(house, client)
    whole(house)
