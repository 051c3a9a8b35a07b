"""FFP groups 7 to 10 and 19: unsolicited data, transfer tags, Data-In, R2T, expected lengths (RFC 7143 11.7, 11.8)."""

from __future__ import annotations

from iscsi_ovs import block, pdu, scsi
from tests.corpus.scene import READ, WRITE, command, read_cdb, scene, sense, write_cdb
from tests.flows.unh.exchange import came, login
from tests.flows.unh.exchange import read_cdb as cdb_of_read
from tests.targets.house import Client, House


def test_more_unsolicited_data_than_first_burst_length() -> None:
    """FFP 7 (1 of 2), section 13.14: the command is ended, with the sense of section 11.4.7.2."""
    with scene() as it:
        peer = it.login(FirstBurstLength="512")
        it.send(command(peer, write_cdb(0, 4), WRITE, 2048, bytes(1024)))
        sense(0x0B, 0x0C, 0x0C)(it)


def test_unsolicited_data_against_initial_r2t() -> None:
    """FFP 7 (2 of 2), section 13.10: with InitialR2T=Yes nothing but immediate data comes before an R2T."""
    with scene() as it:
        peer = it.login(InitialR2T="Yes")
        it.send(command(peer, write_cdb(0, 4), WRITE, 2048, bytes(512), flags=pdu.WRITE))
        sense(0x0B, 0x0C, 0x0C)(it)


def test_target_transfer_tags_of_r2ts(house: House) -> None:
    """FFP 8 (1 of 2), section 11.8.5: an R2T has a tag that no other outstanding one has, and not the reserved one."""
    client = login(house, InitialR2T="Yes", ImmediateData="No", MaxBurstLength="512", MaxOutstandingR2T="4")
    client.initiator.answer_r2t = False
    client.write(0, bytes(2048))
    client.write(8, bytes(2048))
    house.run()
    tags = [header.target_transfer_tag for header in came(client, pdu.ReadyToTransfer)]
    assert len(tags) == 8
    assert len(set(tags)) == 8
    assert pdu.RESERVED_TAG not in tags


def test_target_transfer_tag_of_data_in(client: Client) -> None:
    """FFP 8 (2 of 2), section 11.7.4: Data-In that asks for no acknowledgement has the reserved tag."""
    client.do(client.read(0, 64))
    assert {header.target_transfer_tag for header in came(client, pdu.DataIn)} == {pdu.RESERVED_TAG}


def test_data_in_f_bit(house: House) -> None:
    """FFP 9 (1 of 7), section 11.7.1: F stands on the last PDU of each sequence, and a sequence is no longer than
    MaxBurstLength."""
    client = login(house, MaxRecvDataSegmentLength="512", MaxBurstLength="2048")
    client.do(client.read(0, 6))
    assert [bool(header.flags & pdu.FINAL) for header in came(client, pdu.DataIn)] == [
        False, False, False, True, False, True,
    ]  # fmt: skip


def test_data_in_s_bit(house: House) -> None:
    """FFP 9 (2 of 7), section 11.7.3: the status may come with the last Data-In, and only there, beside F."""
    client = login(house, MaxRecvDataSegmentLength="512")
    result = client.do(client.read(0, 4))
    flags = [header.flags & (pdu.STATUS | pdu.FINAL) for header in came(client, pdu.DataIn)]
    assert flags == [0, 0, 0, pdu.STATUS | pdu.FINAL]
    assert result.status == scsi.GOOD
    assert came(client, pdu.ScsiResponse) == []


def test_data_in_a_bit(client: Client) -> None:
    """FFP 9 (3 of 7), section 11.7.2: at ErrorRecoveryLevel 0 no acknowledgement is asked for."""
    client.do(client.read(0, 300))
    assert not any(header.flags & pdu.ACKNOWLEDGE for header in came(client, pdu.DataIn))


def test_data_in_segments(house: House) -> None:
    """FFP 9 (4 of 7), section 13.12: no data segment is longer than the initiator's MaxRecvDataSegmentLength."""
    client = login(house, MaxRecvDataSegmentLength="1000")
    client.do(client.read(0, 8))
    assert [header.data_segment_length for header in came(client, pdu.DataIn)] == [1000, 1000, 1000, 1000, 96]


def test_data_in_offsets(house: House) -> None:
    """FFP 9 (5 of 7), section 13.18: with DataPDUInOrder=Yes offsets run on without gap or overlay."""
    client = login(house, MaxRecvDataSegmentLength="1000", MaxBurstLength="1536")
    client.do(client.read(0, 8))
    position = 0
    for header in came(client, pdu.DataIn):
        assert header.buffer_offset == position
        position += header.data_segment_length
    assert position == 4096


def test_data_in_residual(client: Client) -> None:
    """FFP 9 (6 of 7), section 11.7.6: where the status comes with Data-In, so does the residual."""
    result = client.do(client.initiator.command(cdb_of_read(0, 1), read=2048))
    assert (result.underflow, result.residual_count, len(result.data)) == (True, 1536, 512)
    assert came(client, pdu.ScsiResponse) == []


def test_data_in_never_bears_a_bad_status(client: Client, house: House) -> None:
    """FFP 9 (7 of 7), section 11.7.3: a command that ends otherwise than GOOD without sense has a SCSI Response."""
    house.service.handles[-1].fail_next(block.Error.MEDIUM_READ)
    result = client.do(client.read(0, 8))
    assert (result.status, result.sense_key) == (scsi.CHECK_CONDITION, 0x03)
    assert len(came(client, pdu.ScsiResponse)) == 1
    assert not any(header.flags & pdu.STATUS for header in came(client, pdu.DataIn))


def test_r2ts_ask_for_everything_once(house: House) -> None:
    """FFP 10 (1 of 1), section 11.8: R2Ts follow in order of offset (DataSequenceInOrder=Yes), none asks for more than
    MaxBurstLength, together they ask for what was not sent unsolicited; each bears the next StatSN."""
    client = login(house, FirstBurstLength="1024", MaxBurstLength="1536", MaxOutstandingR2T="1")
    expected = client.initiator.exp_stat_sn
    client.do(client.write(0, bytes(8 * 512)))
    r2ts = came(client, pdu.ReadyToTransfer)
    assert [(each.buffer_offset, each.desired_data_transfer_length) for each in r2ts] == [(1024, 1536), (2560, 1536)]
    assert {each.stat_sn for each in r2ts} == {expected}


def test_expected_data_transfer_length() -> None:
    """FFP 19 (1 of 1), section 11.3.4: data-in never exceeds it, whatever the CDB asks for; the residual says so."""
    with scene() as it:
        it.send(command(it.login(), read_cdb(0, 8), READ, 700))
        said = it.says()
        assert sum(len(each.data) for each in said) == 700
        last = said[-1].header
        assert (last.status, bool(last.flags & pdu.OVERFLOW), last.residual_count) == (scsi.GOOD, True, 4096 - 700)
