"""Task management over logical units: whose tasks end, who hears of it, when it is answered, what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.target import Settings
from iscsi_ovs.testing.initiator import Result
from tests.targets.house import IQN, OTHER_PORT, Client, House, info_of, kept

LEVEL_2: dict[str, Any] = {"iSCSIProtocolLevel": "2"}
ALL_TASKS = {
    pdu.CLEAR_TASK_SET: scsi.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
    pdu.LOGICAL_UNIT_RESET: scsi.Reset.LOGICAL_UNIT.value,
    pdu.TARGET_WARM_RESET: scsi.Reset.HARD.value,
}


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House())


def login(house: House, isid: bytes | None = None, iqn: str = IQN, **keys: Any) -> Client:
    client = house.client(**({} if isid is None else {"isid": isid}))
    client.initiator.login(iqn, **{**LEVEL_2, **keys})
    house.run()
    client.attentions()
    return client


def two(house: House) -> tuple[Client, Client]:
    return login(house), login(house, OTHER_PORT)


def hold(house: House) -> None:
    for handle in house.service.handles:
        handle.hold()


def let_go(house: House) -> None:
    for handle in house.service.handles:
        handle.let_go()
    house.run()


def ask(house: House, client: Client, function: int, **fields: Any) -> Result:
    tag = client.initiator.tmf(function, **fields)
    house.run()
    return client.initiator.results[tag]


def attention(client: Client) -> tuple[int, int] | None:
    result = client.do(client.initiator.command(bytes(6)))
    return result.additional_sense if result.status == scsi.CHECK_CONDITION else None


def test_abort_task_set_ends_the_tasks_of_this_nexus_only(house: House) -> None:
    """The other nexus' task goes on, and nobody hears anything."""
    first, second = two(house)
    hold(house)
    own = first.write(0, b"a" * 4096)
    others = second.write(8, b"b" * 4096)
    house.run()
    result = ask(house, first, pdu.ABORT_TASK_SET)
    assert not result.is_complete, "the volume server has it still"
    let_go(house)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert not first.initiator.results[own].is_complete
    assert second.initiator.results[others].status == scsi.GOOD
    assert (attention(first), attention(second)) == (None, None)


@pytest.mark.parametrize("function", ALL_TASKS)
def test_functions_over_all_tasks(house: House, function: int) -> None:
    """Complete when the volume server has nothing of anybody; who did not ask hears why there is no answer."""
    first, second = two(house)
    hold(house)
    tags = [(client, client.write(0, b"w" * 4096)) for client in (first, second)]
    house.run()
    result = ask(house, first, function)
    house.service.handles[0].let_go()
    house.run()
    assert not result.is_complete, "the other session's is not back"
    let_go(house)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert not any(client.initiator.results[tag].is_complete for client, tag in tags)
    assert attention(second) == ALL_TASKS[function]
    assert attention(first) == (None if function == pdu.CLEAR_TASK_SET else ALL_TASKS[function])
    assert first.do(first.write(0, b"n" * 4096)).status == scsi.GOOD


def test_who_had_no_task_hears_nothing_of_a_cleared_task_set(house: House) -> None:
    """COMMANDS CLEARED BY ANOTHER INITIATOR is for those whose commands were."""
    first, second = two(house)
    assert ask(house, first, pdu.CLEAR_TASK_SET).response == pdu.FUNCTION_COMPLETE
    assert attention(second) is None


def test_fast_abort_tells_the_others_at_once(house: House) -> None:
    """Section 4.2.3.4 d): an Asynchronous Message on each session that has a task of the set."""
    first = login(house)
    second = login(house, OTHER_PORT, TaskReporting="FastAbort")
    hold(house)
    second.write(0, b"w" * 4096)
    house.run()
    result = ask(house, first, pdu.CLEAR_TASK_SET)
    told = [each.header for each in second.initiator.received if isinstance(each.header, pdu.AsynchronousMessage)]
    assert [(header.async_event, header.lun) for header in told] == [(pdu.ASYNC_TASK_TERMINATION, 0)]
    assert not any(isinstance(each.header, pdu.AsynchronousMessage) for each in first.initiator.received)
    let_go(house)
    assert result.response == pdu.FUNCTION_COMPLETE


@pytest.mark.parametrize("function", [pdu.ABORT_TASK_SET, pdu.CLEAR_TASK_SET, pdu.LOGICAL_UNIT_RESET,
                                      pdu.QUERY_TASK_SET, pdu.QUERY_ASYNCHRONOUS_EVENT])  # fmt: skip
def test_a_lun_that_is_not_there(house: House, function: int) -> None:
    """Nothing outside the map is reached."""
    client = login(house)
    assert ask(house, client, function, lun=1).response == pdu.LUN_DOES_NOT_EXIST


@pytest.mark.parametrize("function", [pdu.TARGET_WARM_RESET, pdu.TARGET_COLD_RESET])
def test_a_target_reset_may_be_refused(house: House, function: int) -> None:
    """By whoever assembles the target: nothing is aborted."""
    client = login(house)
    asked: list[Any] = []

    def refuse(nexus: scsi.Nexus) -> bool:
        asked.append(nexus)
        return False

    house.target.resets.may_reset_target = refuse
    hold(house)
    tag = client.write(0, b"w" * 4096)
    house.run()
    assert ask(house, client, function).response == pdu.FUNCTION_AUTHORIZATION_FAILED
    let_go(house)
    assert client.initiator.results[tag].status == scsi.GOOD
    assert [nexus.initiator_name for nexus in asked] == [client.initiator.name]


def test_a_target_reset_reaches_only_units_of_the_requesters_map(house: House) -> None:
    """Another target's sessions, tasks and units know nothing of it."""
    house.service.infos["other"] = info_of("other", "b" * 32)
    house.target.disks.serve(house.service.infos["other"])
    client = login(house)
    stranger = login(house, OTHER_PORT, iqn=Settings().iqn("other"))
    hold(house)
    tag = stranger.write(0, b"w" * 4096)
    house.run()
    assert ask(house, client, pdu.TARGET_COLD_RESET).response == pdu.FUNCTION_COMPLETE
    assert client.connection.is_closed
    let_go(house)
    assert stranger.initiator.results[tag].status == scsi.GOOD
    assert attention(stranger) is None


def test_a_cold_reset_ends_every_session_behind_its_answer(house: House) -> None:
    """The answer is on its way before the connection ends; who logs in again hears of power on."""
    first, second = two(house)
    hold(house)
    second.write(0, b"w" * 4096)
    house.run()
    result = ask(house, first, pdu.TARGET_COLD_RESET)
    assert not result.is_complete
    assert not first.connection.is_closed
    let_go(house)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert first.connection.is_closed
    assert second.connection.is_closed
    again = house.client()
    again.initiator.login(IQN)
    house.run()
    assert attention(again) == scsi.Reset.POWER_ON.value


def test_i_t_nexus_reset_is_for_this_nexus_alone(house: House) -> None:
    """Its tasks end, it hears of the loss, its session lives on; the other's task is answered."""
    first, second = two(house)
    lost: list[scsi.Nexus] = []
    house.node.router.unit(0).on_nexus_lost.append(lost.append)
    hold(house)
    own = first.write(0, b"a" * 4096)
    others = second.write(8, b"b" * 4096)
    house.run()
    result = ask(house, first, pdu.I_T_NEXUS_RESET)
    assert not result.is_complete
    let_go(house)
    assert result.response == pdu.FUNCTION_COMPLETE
    assert not first.initiator.results[own].is_complete
    assert second.initiator.results[others].status == scsi.GOOD
    assert [nexus.isid for nexus in lost] == [first.initiator.isid]
    assert attention(first) == scsi.I_T_NEXUS_LOSS_OCCURRED
    assert attention(second) is None


def test_query_task_set(house: House) -> None:
    """Only what this nexus has counts, and only while it is not aborted."""
    first, second = two(house)
    hold(house)
    second.write(0, b"w" * 4096)
    house.run()
    assert ask(house, first, pdu.QUERY_TASK_SET).response == pdu.FUNCTION_COMPLETE
    assert ask(house, second, pdu.QUERY_TASK_SET).response == pdu.FUNCTION_SUCCEEDED
    aborted = ask(house, second, pdu.ABORT_TASK_SET)
    assert ask(house, second, pdu.QUERY_TASK_SET).response == pdu.FUNCTION_COMPLETE
    assert not aborted.is_complete


def test_query_asynchronous_event(house: House) -> None:
    """SAM-5 7.9: the unit attention that comes next, and whether there are more; asking clears none."""
    client = login(house)
    unit = house.node.router.unit(0)
    assert ask(house, client, pdu.QUERY_ASYNCHRONOUS_EVENT).response == pdu.FUNCTION_COMPLETE
    for codes, information in [
        ([scsi.CAPACITY_DATA_HAS_CHANGED], b"\x16\x2a\x09"),
        ([scsi.REPORTED_LUNS_DATA_HAS_CHANGED], b"\x26\x2a\x09"),
    ]:
        for code in codes:
            unit.raise_attention(code)
        result = ask(house, client, pdu.QUERY_ASYNCHRONOUS_EVENT)
        assert result.response == pdu.FUNCTION_SUCCEEDED
        assert isinstance(result.header, pdu.TaskManagementResponse)
        assert result.header.additional_response_information == information
    assert attention(client) == scsi.CAPACITY_DATA_HAS_CHANGED


@pytest.mark.parametrize("function", [*ALL_TASKS, pdu.ABORT_TASK_SET, pdu.TARGET_COLD_RESET, pdu.I_T_NEXUS_RESET])
def test_behind_a_stuck_disk_the_function_is_rejected_and_the_unit_busy(house: House, function: int) -> None:
    """CONTRACTS 2: never "complete"; BUSY until what was to end has ended."""
    first, second = two(house)
    hold(house)
    first.write(0, b"w" * 4096)
    house.run()
    result = ask(house, first, function)
    house.pass_time(11.0)
    house.run()
    assert result.response == pdu.FUNCTION_REJECTED
    assert second.do(second.read(0, 1)).status == scsi.BUSY
    let_go(house)
    if function == pdu.TARGET_COLD_RESET:
        assert first.connection.is_closed, "it is done, if late"
        return
    second.attentions()
    assert second.do(second.read(0, 1)).status == scsi.GOOD


@pytest.mark.parametrize("ends_by", ["the session", "the volume server"])
def test_a_reset_that_loses_who_asked_for_it_ends_all_the_same(house: House, ends_by: str) -> None:
    """Nothing waits for ever, and the unit is free again."""
    first, second = two(house)
    hold(house)
    first.write(0, b"w" * 4096)
    second.write(0, b"w" * 4096)
    house.run()
    ask(house, first, pdu.LOGICAL_UNIT_RESET)
    if ends_by == "the session":
        first.lose()
        let_go(house)
    else:
        house.service.lose()
        house.run()
        house.restart()
        house.run()
    second.attentions()
    assert second.do(second.read(0, 1)).status == scsi.GOOD


def test_a_reset_is_told_to_whoever_keeps_state_for_a_unit(house: House) -> None:
    """Reservations, prevention of removal and the like end with it: by kind."""
    client = login(house)
    kinds: list[scsi.Reset] = []
    house.node.router.unit(0).on_reset.append(kinds.append)
    for function in (pdu.LOGICAL_UNIT_RESET, pdu.TARGET_WARM_RESET, pdu.TARGET_COLD_RESET):
        assert ask(house, client, function).response == pdu.FUNCTION_COMPLETE
    assert kinds == [scsi.Reset.LOGICAL_UNIT, scsi.Reset.HARD, scsi.Reset.POWER_ON]


def test_a_command_that_has_others_tasks_aborted_is_spared_itself(house: House) -> None:
    """PREEMPT AND ABORT goes on when the tasks of the preempted nexuses are dead, its own nexus among them."""
    first, second = two(house)
    hold(house)
    mine = first.write(0, b"a" * 4096)
    others = second.write(8, b"b" * 4096)
    house.run()
    unit = house.node.router.unit(0)
    nexuses = tuple(unit._nexuses.values())
    done: list[bool] = []
    spared = house.target.members.sessions()[0].tasks.find(mine)
    house.target.resets.abort_tasks_of(unit, nexuses, lambda: done.append(True), spared=spared)
    assert not done
    let_go(house)
    assert done == [True]
    assert first.initiator.results[mine].status == scsi.GOOD
    assert not second.initiator.results[others].is_complete
