"""Corpus 13, discovery: SendTargets with more targets than fit one answer, and what else a discovery session may not.

RFC 7143 section 4.3 (discovery sessions), 11.11.2 (the C bit of Text Responses), Appendix C (SendTargets).
"""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.target import Settings
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import NEITHER, TAG, TEST_UNIT_READY, Peer, Scene, command, numbered, scene
from tests.targets.house import IQN

TARGETS = 1000


def discover(it: Scene, **keys: Any) -> Peer:
    it.peer.login(None, **keys)
    it.house.run()
    assert it.peer.is_logged_in
    it.says()
    return it.peer


def many(it: Scene) -> set[str]:
    """A thousand targets beside the one there is."""
    volumes = [f"v{number}" for number in range(TARGETS)]
    it.serve(*volumes)
    return {IQN, *map(Settings().iqn, volumes)}


@pytest.mark.parametrize("room", [512, 8192, 262144])
def test_send_targets_all_is_cut_by_the_c_bit(room: int) -> None:
    """Every piece fits the initiator's MaxRecvDataSegmentLength; the next one is asked for, or never made."""
    with scene() as it:
        names = many(it)
        peer = discover(it, MaxRecvDataSegmentLength=str(room))
        tag = peer.send_targets("All")
        it.house.run()
        pieces = [each for each in it.says() if isinstance(each.header, pdu.TextResponse)]
        assert all(len(each.data) <= room for each in pieces)
        assert all(bool(each.header.flags & pdu.CONTINUE) for each in pieces[:-1])
        assert {value for key, value in peer.results[tag].pairs if key == "TargetName"} == names


def test_one_request_brings_one_piece() -> None:
    """No amplifier: an answer is at most one data segment, and what is not fetched is not sent."""
    with scene() as it:
        many(it)
        peer = discover(it, MaxRecvDataSegmentLength="512")
        peer.is_wild = True
        it.send(numbered(peer, pdu.TextRequest(initiator_task_tag=TAG), b"SendTargets=All\0"))
        (first,) = it.says()
        assert len(first.data) == 512
        # asked anew instead of on: the first answer is forgotten
        it.send(numbered(peer, pdu.TextRequest(initiator_task_tag=TAG + 1), b"SendTargets=" + IQN.encode() + b"\0"))
        (second,) = it.says()
        assert second.header.flags & pdu.FINAL
        it.send(
            numbered(
                peer,
                pdu.TextRequest(initiator_task_tag=TAG, target_transfer_tag=first.header.target_transfer_tag),
            )
        )
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD)


def test_a_discovery_session_takes_no_scsi() -> None:
    """Section 4.3: all but SendTargets and logout "MUST be rejected"."""
    with scene() as it:
        peer = discover(it)
        peer.is_wild = True
        it.send(command(peer, TEST_UNIT_READY, NEITHER, 0))
        it.rejected(pdu.REJECT_COMMAND_NOT_SUPPORTED)
        header = pdu.TaskManagementRequest(flags=pdu.FINAL | pdu.LOGICAL_UNIT_RESET, initiator_task_tag=TAG)
        it.send(numbered(peer, header))
        it.rejected(pdu.REJECT_COMMAND_NOT_SUPPORTED)
        it.send(encode(pdu.SnackRequest(initiator_task_tag=TAG)))
        it.rejected(pdu.REJECT_SNACK)


@pytest.mark.parametrize("value", ["", "All,", "iqn.2016-01.com.openvstorage:nobody", "x" * 8000])
def test_send_targets_of_nothing(value: str) -> None:
    """No target is named that is not there; an empty value means nothing in a discovery session (Appendix C)."""
    with scene() as it:
        peer = discover(it)
        tag = peer.send_targets(value)
        it.house.run()
        assert [key for key, _ in peer.results[tag].pairs if key.startswith("Target")] == []
