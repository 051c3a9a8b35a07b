"""FFP groups 15 and 16: NOP-In, SCSI Response (RFC 7143 sections 11.4, 11.18, 11.19)."""

from __future__ import annotations

import pytest

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.session.liveness import Timing
from tests.corpus.scene import (
    NEITHER,
    TAG,
    TEST_UNIT_READY,
    WRITE,
    command,
    numbered,
    scene,
    sense,
    status,
    write_cdb,
)
from tests.flows.unh.exchange import came, login, read_cdb
from tests.flows.unh.exchange import write_cdb as cdb_of_write
from tests.targets.house import Client, House


def pinged(client: Client, data: bytes, *, immediate: bool = True) -> pdu.NopIn:
    client.initiator.received.clear()
    result = client.do(client.initiator.nop_out(data, immediate=immediate))
    (header,) = came(client, pdu.NopIn)
    assert header.initiator_task_tag == result.initiator_task_tag
    return header


def test_ping_is_echoed(client: Client) -> None:
    """FFP 15.1.1, section 11.18: the ping data comes back, byte for byte."""
    result = client.do(client.initiator.nop_out(b"any bytes\0\xff"))
    assert bytes(result.data) == b"any bytes\0\xff"


def test_ping_response_tags(client: Client) -> None:
    """FFP 15.1.2, section 11.19.1: the task tag of the ping, and the reserved transfer tag: no answer is wanted."""
    assert pinged(client, b"x").target_transfer_tag == pdu.RESERVED_TAG


def test_ping_without_data(client: Client) -> None:
    """FFP 15.1.3, section 11.19: DataSegmentLength 0 in, 0 out; F is set."""
    header = pinged(client, b"")
    assert (header.data_segment_length, header.flags & pdu.FINAL) == (0, pdu.FINAL)


def test_ping_response_numbers(client: Client) -> None:
    """FFP 15.1.4, section 11.19.2: a ping response is a status: it uses up a StatSN."""
    expected = client.initiator.exp_stat_sn
    assert pinged(client, b"x").stat_sn == expected
    assert client.initiator.exp_stat_sn == expected + 1


def test_ping_that_is_not_immediate(client: Client) -> None:
    """FFP 15.1.5, section 11.18: then it has its CmdSN, and its turn."""
    before = client.initiator.exp_cmd_sn
    assert pinged(client, b"x", immediate=False).exp_cmd_sn == before + 1


def test_ping_longer_than_we_may_send(house: House) -> None:
    """FFP 15.1.6, section 11.18: the echo is cut at the initiator's MaxRecvDataSegmentLength."""
    client = login(house, MaxRecvDataSegmentLength="512")
    data = bytes(range(256)) * 8
    assert bytes(client.do(client.initiator.nop_out(data)).data) == data[:512]


def test_ping_of_the_target(client: Client, house: House) -> None:
    """FFP 15.2, section 11.19: in silence the target pings: reserved task tag, a transfer tag, no data; the answer
    keeps the session, silence ends it."""
    client.initiator.received.clear()
    house.pass_time(Timing().nop_interval_s + 1)
    house.run()
    (ping,) = came(client, pdu.NopIn)
    assert (ping.initiator_task_tag, ping.data_segment_length) == (pdu.RESERVED_TAG, 0)
    assert ping.target_transfer_tag != pdu.RESERVED_TAG
    house.pass_time(Timing().nop_timeout_s - 1)
    assert not client.connection.is_closed
    client.initiator.answer_pings = False
    house.pass_time(Timing().nop_interval_s + 1)
    house.run()
    house.pass_time(Timing().nop_timeout_s + 1)
    assert client.connection.is_closed


def test_nop_out_that_asks_for_nothing() -> None:
    """FFP 15.3, section 11.18: with the reserved task tag it only brings ExpStatSN: no response."""
    with scene() as it:
        peer = it.login()
        it.send(numbered(peer, pdu.NopOut(opcode=pdu.IMMEDIATE, initiator_task_tag=pdu.RESERVED_TAG)))
        it.silent()


def test_residual_underflow(client: Client) -> None:
    """FFP 16 (1 of 12), section 11.4.5.1: U, and by how much the transfer was less than expected."""
    result = client.do(client.initiator.command(cdb_of_write(0, 1), write=bytes(1536)))
    assert (result.status, result.underflow, result.overflow, result.residual_count) == (scsi.GOOD, True, False, 1024)


def test_residual_overflow(client: Client) -> None:
    """FFP 16 (2 of 12), section 11.4.5.1: O, and how much more there would have been."""
    result = client.do(client.initiator.command(read_cdb(0, 3), read=512))
    assert (result.status, result.overflow, result.underflow, result.residual_count) == (scsi.GOOD, True, False, 1024)


UNSOLICITED = {
    "3 of 12: immediate data alone": ({"InitialR2T": "Yes"}, 1024, 0),
    "4 of 12: unsolicited Data-Out alone": ({"ImmediateData": "No", "FirstBurstLength": "4096"}, 4096, 0),
    "5 of 12: both": ({"FirstBurstLength": "4096"}, 4096, 0),
    "6 of 12: both, and the rest by R2T": ({"FirstBurstLength": "1024"}, 4096, 1),
    "7 of 12: R2T alone": ({"InitialR2T": "Yes", "ImmediateData": "No"}, 4096, 1),
}


@pytest.mark.parametrize("name", UNSOLICITED)
def test_data_in_each_way(house: House, name: str) -> None:
    """FFP 16 (3 to 7 of 12), section 4.2.4.2: however a WRITE's data may come, GOOD says that they are all there."""
    keys, length, r2ts = UNSOLICITED[name]
    client = login(house, **keys)
    data = bytes(range(256)) * (length // 256)
    split = 512 if name.startswith(("5", "6")) else None
    result = client.do(client.initiator.command(cdb_of_write(0, length // 512), write=data, immediate_data=split))
    assert (result.status, result.r2ts) == (scsi.GOOD, r2ts)
    assert bytes(client.do(client.read(0, length // 512)).data) == data


def test_unexpected_data() -> None:
    """FFP 16 (8 of 12), section 11.4.7.2: unsolicited data that may not come: 0B/0C/0C."""
    with scene() as it:
        peer = it.login(ImmediateData="No")
        it.send(command(peer, write_cdb(0, 1), WRITE, 512, bytes(512)))
        sense(0x0B, 0x0C, 0x0C)(it)


def test_bad_opcode(client: Client) -> None:
    """FFP 16 (9 of 12), section 11.4.7: CHECK CONDITION with its sense in the same PDU, behind SenseLength; response
    "completed at target"."""
    result = client.do(client.initiator.command(b"\xff" + bytes(15)))
    assert (result.response, result.status) == (pdu.COMPLETED_AT_TARGET, scsi.CHECK_CONDITION)
    assert (result.sense_key, result.additional_sense) == (0x05, (0x20, 0x00))


def test_retry_with_the_same_number() -> None:
    """FFP 16 (10 of 12), section 7.2.1: a retry below ExpCmdSN is not answered again."""
    with scene() as it:
        peer = it.login()
        number = peer.cmd_sn
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0))
        status()(it)
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, cmd_sn=number))
        it.silent()


def test_the_same_tag_again() -> None:
    """FFP 16 (11 of 12), section 11.2.1.8: a tag is free once its task was answered: a new command may have it."""
    with scene() as it:
        peer = it.login()
        for _ in range(3):
            it.send(command(peer, TEST_UNIT_READY, NEITHER, 0, initiator_task_tag=TAG))
            status()(it)


def test_errors_are_detected(client: Client, house: House) -> None:
    """FFP 16 (12 of 12), section 11.4.7: a medium error is told as sense, and nothing of the data is taken for good."""
    house.service.handles[-1].fail_next(block.Error.MEDIUM_WRITE)
    result = client.do(client.write(0, b"x" * 512))
    assert (result.status, result.sense_key) == (scsi.CHECK_CONDITION, 0x03)
    assert bytes(client.do(client.read(0, 1)).data) == bytes(512)
