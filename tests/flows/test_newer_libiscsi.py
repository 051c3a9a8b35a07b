"""What newer versions of libiscsi's suite ask, which Debian's does not know yet, said with testing.initiator.

The families iSCSISendTargets, iSCSINop, iSCSITMF.LogoutDuringIOAsync and LUNResetSimpleAsync, and the tests
Inquiry.VPDPageCodesSorted and CompareAndWrite.MiscompareSense. (CHAP's are in tests/corpus/test_chap.py, REPORT LUNS'
and REPORT TARGET PORT GROUPS' in test_newer_families.py.)
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsi_ovs import pdu, scsi
from tests.flows.unh.exchange import write_cdb
from tests.targets.house import BLOCK, IQN, Client, House, kept

AT_ONCE = 128


@pytest.fixture
def house() -> Iterator[House]:
    yield from kept(House(slots=1024))


@pytest.fixture
def client(house: House) -> Client:
    return house.login()


def test_send_targets_in_a_normal_session(client: Client) -> None:
    """iSCSISendTargets.Simple: the session's own target, with an address."""
    pairs = client.do(client.initiator.send_targets("")).pairs
    assert [key for key, _ in pairs] == ["TargetName", "TargetAddress"]
    assert pairs[0][1] == IQN


def test_send_targets_misspelt(client: Client) -> None:
    """iSCSISendTargets.Invalid: a key that is nearly one gives no targets away."""
    pairs = client.do(client.initiator.text([("SendTargetsPlease", "All")])).pairs
    assert pairs == [("SendTargetsPlease", "NotUnderstood")]


def test_pings(client: Client) -> None:
    """iSCSINop.Simple: one after the other, with data and without."""
    for data in (b"", b"libiscsi", bytes(4096)):
        assert bytes(client.do(client.initiator.nop_out(data)).data) == data


def writes(client: Client, house: House) -> list[int]:
    """As many as the suite has in flight, on a disk that holds the first of them."""
    house.service.handles[-1].hold()
    tags = [client.initiator.command(write_cdb(number, 1), write=bytes((number,)) * BLOCK) for number in range(AT_ONCE)]
    house.run()
    assert house.service.handles[-1].held
    return tags


def test_logout_during_io(client: Client, house: House) -> None:
    """iSCSITMF.LogoutDuringIOAsync: every write is completed or cancelled, none twice; then the logout is answered."""
    tags = writes(client, house)
    logout = client.initiator.logout()
    house.run()
    assert not client.initiator.results[logout].is_complete
    house.service.handles[-1].let_go()
    assert client.do(logout).response == pdu.LOGOUT_SUCCESS
    done = [tag for tag in tags if client.initiator.results[tag].is_complete]
    assert {client.initiator.results[tag].status for tag in done} <= {scsi.GOOD}


def test_a_reset_during_io(client: Client, house: House) -> None:
    """iSCSITMF.LUNResetSimpleAsync: the reset ends what it finds without an answer, and what follows is executed."""
    tags = writes(client, house)
    reset = client.initiator.tmf(pdu.LOGICAL_UNIT_RESET)
    house.run()
    house.service.handles[-1].let_go()
    assert client.do(reset).response == pdu.FUNCTION_COMPLETE
    answered = [client.initiator.results[tag] for tag in tags if client.initiator.results[tag].is_complete]
    assert len(answered) < AT_ONCE
    client.attentions()
    assert client.do(client.write(0, b"z" * BLOCK)).status == scsi.GOOD
    assert bytes(client.do(client.read(0, 1)).data) == b"z" * BLOCK


def test_vpd_page_codes_are_sorted(client: Client) -> None:
    """Inquiry.VPDPageCodesSorted: SPC-4 7.8.14: "in ascending order"."""
    page = client.do(client.initiator.command(bytes.fromhex("12010000ff00"), read=255)).data
    codes = list(page[4 : 4 + page[3]])
    assert codes == sorted(set(codes))
    assert codes[0] == 0


@pytest.mark.parametrize("at", [0, 1, 100, BLOCK - 1])
def test_a_miscompare_says_where(client: Client, at: int) -> None:
    """CompareAndWrite.MiscompareSense: VALID, and INFORMATION is the offset of the first byte that differs."""
    client.do(client.write(0, bytes(BLOCK)))
    wrong = bytearray(BLOCK)
    wrong[at] = 0xFF
    cdb = b"\x89\0" + bytes(8) + bytes((0, 0, 0, 1, 0, 0))
    result = client.do(client.initiator.command(cdb, write=bytes(wrong) + b"n" * BLOCK))
    assert (result.sense_key, result.additional_sense) == (0x0E, (0x1D, 0x00))
    assert result.sense[0] == 0xF0
    assert int.from_bytes(result.sense[3:7], "big") == at
    assert bytes(client.do(client.read(0, 1)).data) == bytes(BLOCK)
