"""The target assembled, without processes: a volume server of ordinary memory, sockets that are function calls.

Who is admitted and when, what a second login of the same port waits for, what happens when the volume server or a
volume comes, grows or goes: held against initiators of testing.initiator, with a clock that only moves when told.
"""

from __future__ import annotations

import errno
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.target import Settings
from shm_server.abi import control
from tests.targets.house import BLOCK, IQN, OTHER_PORT, Client, House, info_of, kept


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


# Admission and reinstatement ------------------------------------------------------------------------------------


def test_a_session_reads_what_it_wrote(house: House) -> None:
    """The fakes and the target are one whole."""
    client = house.login()
    assert client.do(client.write(4, b"x" * 4096)).status == scsi.GOOD
    assert bytes(client.do(client.read(4, 8)).data) == b"x" * 4096


def test_a_new_login_of_the_same_port_waits_for_the_late_write_of_the_old_session(house: House) -> None:
    """Reinstatement: not before the zombie is back and the old handle is closed; the late write never shows."""
    old = house.login()
    (handle,) = house.service.handles
    handle.hold()
    old.write(0, b"o" * 4096)
    house.run()
    assert handle.held
    new = house.client()
    new.initiator.login(IQN)
    house.run()
    assert old.connection.is_closed
    assert not new.initiator.is_logged_in
    assert house.service.opens == 1
    handle.let_go()
    house.run()
    assert new.initiator.is_logged_in
    assert handle.is_closed
    new.attentions()
    assert new.do(new.write(0, b"n" * 4096)).status == scsi.GOOD
    assert bytes(new.do(new.read(0, 8)).data) == b"n" * 4096


def test_a_login_that_waits_too_long_is_refused_and_the_next_one_comes_in(house: House) -> None:
    """Held up for ADMISSION_LIMIT_S: service unavailable, and nothing of it stays."""
    house.login()
    (handle,) = house.service.handles
    handle.hold()
    house.clients[0].write(0, b"o" * 512)
    house.run()
    new = house.client()
    new.initiator.login(IQN)
    house.run()
    house.pass_time(13.0)
    house.run()
    assert new.initiator.login_status == (3, 1)
    connection = weakref.ref(new.connection)
    house.clients.remove(new)
    del new
    gc.collect()
    assert connection() is None, "a disk may be stuck for hours, and initiators try again"
    handle.let_go()
    house.run()
    house.login()


def test_a_reinstatement_storm_leaves_the_last_one(house: House) -> None:
    """Each login ends the one before it, waiting or not; handles do not add up."""
    for _ in range(10):
        house.client().initiator.login(IQN)
        for client in house.clients:
            client.move()
    house.run()
    house.run()
    alive = [client for client in house.clients if not client.connection.is_closed]
    assert len(alive) == 1
    assert alive[0].initiator.is_logged_in
    assert [handle.is_closed for handle in house.service.handles] == [False]


def test_another_port_of_the_same_initiator_is_another_session(house: House) -> None:
    """Only name and ISID together are reinstated."""
    first = house.login()
    second = house.login(isid=OTHER_PORT)
    assert not first.connection.is_closed
    assert first.initiator.tsih != second.initiator.tsih


def test_a_volume_that_is_held_by_somebody_else_refuses_the_login(house: House) -> None:
    """EBUSY is service unavailable, with the holder's words in the log."""
    house.service.open_error = OSError(errno.EBUSY, "held by qemu pid 7")
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    assert client.initiator.login_status == (3, 1)
    assert client.connection.is_closed
    house.service.open_error = None
    house.login()


def test_a_connection_lost_while_its_volume_is_opened_leaves_no_handle(house: House) -> None:
    """The handle that comes is closed again."""
    house.service.holds_opens = True
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    assert house.service.openings
    client.lose()
    house.service.holds_opens = False
    house.run()
    assert house.service.handles == []


def test_logout_while_a_login_of_the_same_port_waits(house: House) -> None:
    """The old session's logout is answered when its write is back; then the new one is let in."""
    old = house.login()
    (handle,) = house.service.handles
    handle.hold()
    old.write(0, b"o" * 512)
    house.run()
    logout = old.initiator.logout()
    house.run()
    new = house.client()
    new.initiator.login(IQN)
    house.run()
    assert not new.initiator.is_logged_in
    assert not old.initiator.results[logout].is_complete
    handle.let_go()
    house.run()
    assert old.initiator.is_logged_out
    assert new.initiator.is_logged_in


# The volume server dies ------------------------------------------------------------------------------------------


def test_commands_in_flight_when_the_server_dies_are_busy_and_the_session_lives(house: House) -> None:
    """BUSY for what was in flight and what comes; NOPs answered; then GOOD again, and never NOT READY."""
    client = house.login()
    (handle,) = house.service.handles
    handle.hold()
    flying = [client.write(0, b"f" * 4096), client.read(0, 8)]
    house.run()
    house.service.lose()
    house.run()
    assert [client.initiator.results[tag].status for tag in flying] == [scsi.BUSY] * 2
    assert client.do(client.read(0, 8)).status == scsi.BUSY
    assert client.do(client.write(0, b"w" * 512)).status == scsi.BUSY
    assert bytes(client.do(client.initiator.nop_out(b"there?")).data) == b"there?"
    house.service.holds_opens = True
    house.restart()
    assert client.do(client.read(0, 8)).status == scsi.BUSY, "attached, but its volume is not open yet"
    house.service.holds_opens = False
    house.run()
    assert client.do(client.write(0, b"w" * 512)).status == scsi.GOOD
    assert not client.connection.is_closed


def test_windows_are_paid_again_from_the_next_segment(house: House) -> None:
    """Full bursts go on with the reservation that they had."""
    client = house.login()
    granted = house.target.space.granted_slots
    assert granted
    for _ in range(3):
        house.service.lose()
        house.run()
        assert house.target.space.granted_slots == 0
        house.restart()
        house.run()
        assert house.target.space.granted_slots == house.service.pool.reserved_slots == granted
    assert client.do(client.write(0, b"w" * 262144)).status == scsi.GOOD


def test_the_last_session_that_leaves_before_its_volume_is_open_again_leaves_no_busy_unit(house: House) -> None:
    """The next login finds a unit that works."""
    client = house.login()
    house.service.lose()
    house.service.holds_opens = True
    house.restart()
    client.lose()
    house.service.holds_opens = False
    house.run()
    again = house.login()
    assert again.do(again.read(0, 8)).status == scsi.GOOD


def test_a_session_that_leaves_before_its_volume_is_open_again_keeps_nobody_else_busy(house: House) -> None:
    """Two sessions, one reopened, the other one gone meanwhile."""
    first, second = house.login(), house.login(isid=OTHER_PORT)
    house.service.lose()
    house.service.holds_opens = True
    house.restart()
    late = house.service.openings.pop()
    house.service.holds_opens = False
    house.run()
    assert first.do(first.read(0, 8)).status == scsi.BUSY
    second.lose()
    assert first.do(first.read(0, 8)).status == scsi.GOOD
    house.service.openings.append(late)
    house.run()


def test_a_server_that_dies_while_volumes_are_reopened_leaves_one_handle_a_session(house: House) -> None:
    """The retry of an open that the death ended must not come beside the one of the next attachment."""
    client = house.login()
    house.service.lose()
    house.service.holds_opens = True
    house.restart()
    house.service.lose()
    house.restart()
    house.service.holds_opens = False
    house.run()
    house.pass_time(2.0)
    house.run()
    assert len(house.service.handles) == 1
    assert client.do(client.read(0, 8)).status == scsi.GOOD


def test_a_volume_that_can_not_be_opened_again_is_tried_again(house: House) -> None:
    """Once a second, BUSY meanwhile."""
    client = house.login()
    house.service.lose()
    house.service.open_error = OSError(errno.EBUSY, "held")
    house.restart()
    house.run()
    house.pass_time(1.5)
    assert client.do(client.read(0, 8)).status == scsi.BUSY
    house.service.open_error = None
    house.pass_time(1.5)
    house.run()
    assert client.do(client.read(0, 8)).status == scsi.GOOD


def test_a_volume_that_is_another_one_after_the_return_is_withdrawn(house: House) -> None:
    """The UUID decides, not the name: sessions end, and the new volume is served to new logins."""
    client = house.login()
    house.service.lose()
    house.service.infos["demo"] = info_of(uuid="b" * 32)
    house.restart()
    house.run()
    assert client.connection.is_closed
    again = house.login()
    assert again.do(again.read(0, 8)).status == scsi.GOOD


def test_a_session_that_is_ending_when_the_server_dies_is_gone(house: House) -> None:
    """Its zombies are back, its handle is nobody's: the next login is not kept waiting."""
    client = house.login()
    (handle,) = house.service.handles
    handle.hold()
    client.write(0, b"z" * 512)
    house.run()
    client.lose()
    house.run()
    assert house.node.members
    house.service.lose()
    house.run()
    assert not house.node.members
    house.restart()
    house.login()


def test_a_login_that_is_under_way_when_the_server_dies_is_refused(house: House) -> None:
    """Service unavailable: initiators try again."""
    house.service.holds_opens = True
    client = house.client()
    client.initiator.login(IQN)
    house.run()
    house.service.lose()
    house.run()
    assert client.initiator.login_status == (3, 1)
    house.service.holds_opens = False
    house.restart()
    house.login()


# Volumes come, grow and go ---------------------------------------------------------------------------------------


def test_a_resize_is_heard_by_every_session_once(house: House) -> None:
    """CAPACITY DATA HAS CHANGED on every nexus, READ CAPACITY new at once; then the server hears that we know."""
    first, second = house.login(), house.login(isid=OTHER_PORT)
    event = control.VolumeResized(1, info_of(size=2 << 20, generation=1))
    house.service.on_event(event)
    assert house.service.acks == [event]
    for client in (first, second):
        result = client.do(client.read(0, 1))
        assert result.additional_sense == (0x2A, 0x09)
        assert client.do(client.read(0, 1)).status == scsi.GOOD
        capacity = client.do(client.initiator.command(b"\x25" + bytes(9), read=8)).data
        assert int.from_bytes(capacity[:4], "big") == (2 << 20) // BLOCK - 1


def test_a_removed_volume_ends_its_sessions_and_is_not_found_any_more(house: House) -> None:
    """Withdrawn at once."""
    client = house.login()
    del house.service.infos["demo"]
    house.service.on_event(control.VolumeRemoved(1, "demo", "a" * 32))
    house.run()
    assert client.connection.is_closed
    late = house.client()
    late.initiator.login(IQN)
    house.run()
    assert late.initiator.login_status == (2, 3)


def test_a_removal_by_force_is_acknowledged_when_all_have_let_go(house: House) -> None:
    """Sessions, zombies, and a login whose open is still under way."""
    client = house.login()
    (handle,) = house.service.handles
    handle.hold()
    client.write(0, b"z" * 512)
    house.run()
    house.service.holds_opens = True
    coming = house.client(isid=OTHER_PORT)
    coming.initiator.login(IQN)
    house.run()
    event = control.ReleaseRequested(5, "demo", "a" * 32)
    house.service.on_event(event)
    house.run()
    assert client.connection.is_closed
    assert coming.connection.is_closed
    assert house.service.acks == []
    handle.let_go()
    house.run()
    assert house.service.acks == [], "the server has an Open of ours that it has not answered"
    house.service.holds_opens = False
    house.run()
    assert house.service.acks == [event]
    assert house.service.handles == []


def test_a_created_volume_is_served_at_once(house: House) -> None:
    house.service.infos["more"] = info_of("more", "c" * 32)
    house.service.on_event(control.VolumeCreated(1, house.service.infos["more"]))
    client = house.client()
    client.initiator.login(Settings().iqn("more"))
    house.run()
    assert client.initiator.is_logged_in


# LOGICAL UNIT RESET ----------------------------------------------------------------------------------------------


def test_a_reset_aborts_the_tasks_of_all_sessions_and_waits_for_what_the_server_has(house: House) -> None:
    """Complete only when nothing of the old can happen; every nexus hears of it; nobody is stuck."""
    first, second = house.login(), house.login(isid=OTHER_PORT)
    for handle in house.service.handles:
        handle.hold()
    flying = [first.write(0, b"1" * 512), second.write(8, b"2" * 512)]
    house.run()
    reset = first.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    house.run()
    assert not first.initiator.results[reset].is_complete
    for handle in house.service.handles:
        handle.let_go()
    assert first.do(reset).response == pdu.FUNCTION_COMPLETE
    assert not first.initiator.results[flying[0]].is_complete
    assert not second.initiator.results[flying[1]].is_complete
    for client in (first, second):
        assert client.do(client.read(0, 1)).additional_sense == (0x29, 0x03)
        assert client.do(client.read(0, 1)).status == scsi.GOOD


def test_a_reset_knows_a_unit_by_each_of_its_luns(house: House) -> None:
    """A task sent to LUN 0 in flat addressing is a task of the unit that is reset by peripheral addressing."""
    client = house.login()
    client.initiator.answer_r2t = False
    client.initiator.command(b"\x2a" + bytes(6) + b"\x08\x00\x00", write=bytes(1 << 20), lun=0x4000 << 48)
    house.run()
    (session,) = house.target.members.sessions()
    assert len(session.tasks) == 1
    reset = client.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    house.run()
    house.pass_time(3.0)  # R2Ts of the initiator that asks are waited for, a while
    assert client.do(reset).response == pdu.FUNCTION_COMPLETE
    assert len(session.tasks) == 0


def test_a_reset_of_a_lun_that_is_not_there(house: House) -> None:
    client = house.login()
    assert client.do(client.initiator.tmf(pdu.LOGICAL_UNIT_RESET, lun=3)).response == pdu.LUN_DOES_NOT_EXIST


@pytest.mark.parametrize("function", [pdu.LOGICAL_UNIT_RESET, pdu.ABORT_TASK])
def test_a_stuck_disk_rejects_the_function_and_keeps_the_unit_busy(house: House, function: int) -> None:
    """CONTRACTS 2: after the deadline *rejected*, never *complete*; BUSY until the zombie returns."""
    client = house.login()
    other = house.login(isid=OTHER_PORT)
    handle = house.service.handles[0]
    handle.hold()
    tag = client.write(0, b"s" * 512)
    house.run()
    tmf = client.initiator.tmf(function, referenced_task_tag=tag)
    house.run()
    house.pass_time(11.0)
    assert client.do(tmf).response == pdu.FUNCTION_REJECTED
    other.attentions()
    assert other.do(other.write(0, b"n" * 512)).status == scsi.BUSY
    handle.let_go()
    house.run()
    other.attentions()
    assert other.do(other.write(0, b"n" * 512)).status == scsi.GOOD
    assert bytes(other.do(other.read(0, 1)).data) == b"n" * 512


def test_a_command_that_is_aborted_in_the_batch_that_brought_it_never_reaches_the_disk(house: House) -> None:
    """WRITE and ABORT TASK in one receive."""
    client = house.login()
    (handle,) = house.service.handles
    tag = client.write(0, b"a" * 512)
    abort = client.initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=tag)
    assert client.do(abort).response == pdu.FUNCTION_COMPLETE
    assert not [request for request in handle.log if request.operation is block.Operation.WRITE]


# A login that names a session ------------------------------------------------------------------------------------


def named(house: House, client: Client, **fields: Any) -> Client:
    """A login with the TSIH of a session that lives."""
    again = house.client(**{"isid": client.initiator.isid, "cid": client.initiator.cid, **fields})
    again.initiator.login(IQN, tsih=client.initiator.tsih)
    house.run()
    return again


def test_a_connection_that_is_named_anew_ends_its_session(house: House) -> None:
    """Section 6.3.4: it is logged out; nothing is retained here, so its session is over and does not exist any more."""
    client = house.login()
    again = named(house, client)
    assert again.initiator.login_status == (2, 0x0A)
    assert client.connection.is_closed
    third = house.client(isid=client.initiator.isid)
    third.initiator.login(IQN)
    house.run()
    assert third.initiator.is_logged_in, "the initiator begins anew, as it was told"


def test_a_second_connection_is_one_too_many(house: House) -> None:
    """MaxConnections=1: another CID is refused (0206), and the session goes on."""
    client = house.login()
    again = named(house, client, cid=7)
    assert again.initiator.login_status == (2, 6)
    assert client.do(client.read(0, 1)).status == scsi.GOOD


@pytest.mark.parametrize("fields", [{"name": "iqn.2001-04.com.example:other"}, {"isid": OTHER_PORT}])
def test_somebody_elses_session_is_not_ended(house: House, fields: dict[str, Any]) -> None:
    """Another name or ISID with a TSIH that lives: there is no such session (020A)."""
    client = house.login()
    again = named(house, client, **fields)
    assert again.initiator.login_status == (2, 0x0A)
    assert client.do(client.read(0, 1)).status == scsi.GOOD
