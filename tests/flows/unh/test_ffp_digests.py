"""FFP group 18: header and data digests (RFC 7143 sections 7.8, 13.1), as ErrorRecoveryLevel 0 answers their errors."""

from __future__ import annotations

from typing import Any, Literal

from iscsi_ovs import pdu, scsi
from tests.flows.unh.exchange import came, login
from tests.targets.house import Client, House

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


def spoil(client: Client, kind: type[pdu.Pdu], digest: Literal["header", "data"]) -> None:
    """The next PDU of this kind has a wrong digest."""
    left = [digest]

    def once(header: pdu.Pdu) -> Any:
        return left.pop() if left and isinstance(header, kind) else None

    client.initiator.stream.spoil = once


def test_header_digest_error(house: House) -> None:
    """FFP 18.1.1, section 7.8: at ErrorRecoveryLevel 0 a header that can't be believed ends the connection: nobody can
    say where the next one is."""
    client = login(house, **DIGESTS)
    spoil(client, pdu.NopOut, "header")
    client.initiator.nop_out(b"x")
    house.run()
    assert client.connection.is_closed
    assert came(client, pdu.NopIn) == []


def test_data_digest_error_of_immediate_data(house: House) -> None:
    """FFP 18.2.1, section 7.8: Reject, reason "data digest error"; the command ends with 0B/47/05, "protocol service
    CRC error"; nothing is written."""
    client = login(house, **DIGESTS)
    spoil(client, pdu.ScsiCommand, "data")
    result = client.do(client.write(0, b"x" * 512))
    assert [each.reason for each in came(client, pdu.Reject)] == [pdu.REJECT_DATA_DIGEST_ERROR]
    assert (result.status, result.sense_key, result.additional_sense) == (scsi.CHECK_CONDITION, 0x0B, (0x47, 0x05))
    assert bytes(client.do(client.read(0, 1)).data) == bytes(512)


def test_data_digest_error_of_data_out(house: House) -> None:
    """FFP 18.2.2, section 7.8: the same in the middle of a sequence: the task ends, the rest of its data is drained,
    and the session goes on."""
    client = login(house, **DIGESTS, ImmediateData="No")
    spoil(client, pdu.DataOut, "data")
    result = client.do(client.write(0, b"x" * 8192))
    assert [each.reason for each in came(client, pdu.Reject)] == [pdu.REJECT_DATA_DIGEST_ERROR]
    assert (result.sense_key, result.additional_sense) == (0x0B, (0x47, 0x05))
    assert client.do(client.write(0, b"y" * 8192)).status == scsi.GOOD
    assert bytes(client.do(client.read(0, 16)).data) == b"y" * 8192
