"""What a connection does with requests that are wrong, early, late or not its business."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.session.states import State
from iscsi_ovs.testing.initiator import Initiator, Result, encode
from tests.session.conversation import BLOCK, Conversation, read_cdb


def rejects(initiator: Initiator) -> list[tuple[int, int]]:
    """Reason and ITT of what was rejected, in order."""
    return [
        (seen.header.reason, pdu.Header.unpack_from(seen.data).initiator_task_tag)
        for seen in initiator.received
        if isinstance(seen.header, pdu.Reject)
    ]


def text_request(tag: int, cmd_sn: int, text: bytes = b"no equals sign\0") -> bytes:
    return encode(pdu.TextRequest(initiator_task_tag=tag, cmd_sn=cmd_sn), text)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_refused_request_is_the_one_rejected_and_holds_up_nobody(order: tuple[int, ...], wrong: int) -> None:
    """Three requests in any order of arrival, one of them a text that can't be: its header is what the Reject bears."""
    talk = Conversation(slots=1024)  # a window of eight
    initiator = talk.login()
    first = initiator.cmd_sn
    for step in order:
        tag, cmd_sn = 0x700 + step, first + step
        if step == wrong:
            initiator.raw(text_request(tag, cmd_sn))
        else:
            initiator.results[tag] = Result(tag)
            initiator.raw(encode(pdu.NopOut(initiator_task_tag=tag, cmd_sn=cmd_sn), b"ping"))
        talk.run()
    assert rejects(initiator) == [(pdu.REJECT_PROTOCOL_ERROR, 0x700 + wrong)]
    for step in {0, 1, 2} - {wrong}:
        assert bytes(initiator.results[0x700 + step].data) == b"ping"
    initiator.cmd_sn += 3
    tag = initiator.command(read_cdb(0, 1), read=BLOCK)
    talk.run()
    assert initiator.results[tag].status == scsi.GOOD
    assert talk.connection.state is State.FULL_FEATURE
    assert any("no '='" in line for line in talk.log)
