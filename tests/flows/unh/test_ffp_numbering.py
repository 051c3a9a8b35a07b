"""FFP groups 1 to 6: CmdSN, StatSN, DataSN, R2TSN, command retry, connection allegiance (RFC 7143 section 4.2.2)."""

from __future__ import annotations

from iscsi_ovs import pdu, scsi
from tests.corpus.scene import NEITHER, TAG, TEST_UNIT_READY, WRITE, command, scene, status, write_cdb
from tests.flows.unh.exchange import came, login
from tests.targets.house import OTHER_PORT, Client, House


def test_commands_inside_the_window(client: Client, house: House) -> None:
    """FFP 1 (1 of 3), section 4.2.2.1: as many commands as the window says are taken; ExpCmdSN counts each, and
    MaxCmdSN − ExpCmdSN + 1 is the window."""
    initiator = client.initiator
    places = initiator.max_cmd_sn - initiator.exp_cmd_sn + 1
    assert places >= 1
    house.service.handles[-1].hold()
    tags = [client.read(0, 1) for _ in range(places + 5)]
    house.run()
    held = house.service.handles[-1].held
    assert len(held) >= places
    assert initiator.exp_cmd_sn <= initiator.max_cmd_sn + 1
    house.service.handles[-1].let_go()
    assert [client.do(tag).status for tag in tags] == [scsi.GOOD] * len(tags)
    assert initiator.exp_cmd_sn == initiator.cmd_sn


def test_commands_outside_the_window() -> None:
    """FFP 1 (2 of 3), section 4.2.2.1: below ExpCmdSN or above MaxCmdSN they are silently ignored; the next one in
    order is executed."""
    with scene() as it:
        peer = it.login()
        for wrong in (peer.exp_cmd_sn - 1, peer.max_cmd_sn + 1):
            it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, cmd_sn=wrong & 0xFFFFFFFF))
            it.silent()
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0))
        status()(it)


def test_immediate_commands_use_up_no_number(client: Client) -> None:
    """FFP 1 (3 of 3), section 4.2.2.1: an immediate command carries the current CmdSN; ExpCmdSN does not move."""
    initiator = client.initiator
    before = initiator.exp_cmd_sn
    for _ in range(3):
        assert client.do(initiator.command(bytes(6), immediate=True)).status == scsi.GOOD
    assert initiator.exp_cmd_sn == before == initiator.cmd_sn
    assert client.do(initiator.command(bytes(6))).status == scsi.GOOD
    assert initiator.exp_cmd_sn == before + 1


def test_stat_sn(client: Client, house: House) -> None:
    """FFP 2 (1 of 1), section 4.2.2.2: each status, of whatever kind of response, bears the next StatSN; R2Ts and
    NOP-Ins that need no answer bear the next one without using it up."""
    initiator = client.initiator
    initiator.received.clear()
    client.do(client.write(0, bytes(300 * 512)))
    client.do(client.read(0, 8))
    client.do(initiator.nop_out(b"x"))
    client.do(initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=0x7777))
    client.do(initiator.text([("SendTargets", "")]))
    client.do(initiator.command(b"\xff" * 6))
    numbers = [
        header.stat_sn
        for header in (each.header for each in initiator.received)
        if not isinstance(header, pdu.ReadyToTransfer)
        and not (isinstance(header, pdu.DataIn) and not header.flags & pdu.STATUS)
    ]
    assert len(numbers) == 6
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_data_sn(house: House) -> None:
    """FFP 3 (1 of 1), section 4.2.2.3: Data-In PDUs of each command are numbered from 0; a response behind data that
    bore no status says how many there were."""
    client = login(house, MaxRecvDataSegmentLength="512", MaxBurstLength="1024")
    for _ in range(2):
        client.initiator.received.clear()
        client.do(client.read(0, 8))
        assert [header.data_sn for header in came(client, pdu.DataIn)] == list(range(8))


def test_r2t_sn(house: House) -> None:
    """FFP 4 (1 of 1), section 4.2.2.3: R2Ts of each command are numbered from 0."""
    client = login(house, InitialR2T="Yes", ImmediateData="No", MaxBurstLength="1024", MaxOutstandingR2T="1")
    for _ in range(2):
        client.initiator.received.clear()
        client.do(client.write(0, bytes(4096)))
        assert [header.r2t_sn for header in came(client, pdu.ReadyToTransfer)] == [0, 1, 2, 3]


def test_command_retry() -> None:
    """FFP 5 (1 of 1), section 7.2.1: a command sent again with its CmdSN and tag, because its answer was thought lost,
    is outside the window: it is not executed a second time."""
    with scene() as it:
        peer = it.login()
        number = peer.cmd_sn
        it.send(command(peer, write_cdb(0, 1), WRITE, 512, b"a" * 512))
        status()(it)
        it.good.do(it.good.write(0, b"b" * 512))
        it.send(command(peer, write_cdb(0, 1), WRITE, 512, b"a" * 512, cmd_sn=number, initiator_task_tag=TAG))
        it.silent()
        assert bytes(it.good.do(it.good.read(0, 1)).data) == b"b" * 512


def test_connection_allegiance(client: Client, house: House) -> None:
    """FFP 6 (1 of 1), section 4.2.4: data, R2T and status of a command go over the connection that it came on, and
    nothing of it over another one."""
    other = house.login(isid=OTHER_PORT)
    other.initiator.received.clear()
    assert client.do(client.write(0, bytes(300 * 512))).status == scsi.GOOD
    assert client.do(client.read(0, 300)).status == scsi.GOOD
    assert other.initiator.received == []
