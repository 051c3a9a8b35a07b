"""FFP group 17: Text Requests and Responses (RFC 7143 sections 6, 11.10, 11.11, Appendix C)."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from tests.corpus.scene import TAG, Peer, numbered, scene
from tests.flows.unh.exchange import came, discover, login
from tests.targets.house import IQN, Client, House, info_of


def ask(peer: Peer, data: bytes, **fields: int) -> bytes:
    return numbered(peer, pdu.TextRequest(**{"initiator_task_tag": TAG, **fields}), data)


def test_response_fields(client: Client) -> None:
    """FFP 17.1, section 11.11: task tag and LUN of the request; F with the reserved transfer tag; a StatSN."""
    client.initiator.received.clear()
    tag = client.initiator.send_targets("")
    client.do(tag)
    (header,) = came(client, pdu.TextResponse)
    assert (header.initiator_task_tag, header.target_transfer_tag) == (tag, pdu.RESERVED_TAG)
    assert header.flags == pdu.FINAL


def test_request_with_f() -> None:
    """FFP 17.2 (F=1), section 11.11.1: what is asked whole is answered whole, with F."""
    with scene() as it:
        it.send(ask(it.login(), b"SendTargets=\0"))
        assert it.answer().flags == pdu.FINAL


def test_request_without_f() -> None:
    """FFP 17.2 (F=0), section 11.11.1: the initiator has more to say: the response has F=0 and a transfer tag; the
    exchange ends with a request that has F."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, b"SendTargets=\0", flags=0))
        first = it.answer()
        assert not first.flags & pdu.FINAL
        assert first.target_transfer_tag != pdu.RESERVED_TAG
        it.send(ask(peer, b"", target_transfer_tag=first.target_transfer_tag))
        last = it.answer()
        assert (last.flags, last.target_transfer_tag) == (pdu.FINAL, pdu.RESERVED_TAG)


def targets(client: Client, value: str) -> list[str]:
    return [found for key, found in client.do(client.initiator.send_targets(value)).pairs if key == "TargetName"]


def test_send_targets_all(house: House) -> None:
    """FFP 17.3 (1 of 5), Appendix C: All, in a discovery session: every target with an address and its portal group."""
    house.service.infos["more"] = info_of("more", "b" * 32)
    client = discover(house)
    result = client.do(client.initiator.send_targets("All"))
    assert result.pairs[0] == ("TargetName", IQN)
    key, address = result.pairs[1]
    assert key == "TargetAddress"
    assert address.rsplit(",", 1)[1].isdigit()


def test_send_targets_of_one(house: House) -> None:
    """FFP 17.3 (2 of 5), Appendix C: a name, in a discovery session: that target alone, or nothing."""
    client = discover(house)
    assert targets(client, IQN) == [IQN]
    assert targets(client, IQN + "x") == []


def test_send_targets_of_nothing(client: Client) -> None:
    """FFP 17.3 (3 of 5), Appendix C: without a value, in a normal session: the target that one is logged in to."""
    assert targets(client, "") == [IQN]


def test_send_targets_all_in_a_normal_session(client: Client) -> None:
    """FFP 17.3 (4 of 5), Appendix C: All "MUST … not be" answered outside a discovery session: Reject."""
    assert client.do(client.initiator.send_targets("All")).pairs == [("SendTargets", "Reject")]


def test_send_targets_of_nothing_in_a_discovery_session(house: House) -> None:
    """FFP 17.3 (5 of 5), Appendix C: an empty value means the session's own target, and there is none."""
    client = discover(house)
    assert client.do(client.initiator.send_targets("")).pairs == [("SendTargets", "Reject")]


def test_other_keys(client: Client) -> None:
    """FFP 17.4 (1 of 2), section 13: keys of the login phase can't be negotiated in full feature phase: Reject."""
    result = client.do(client.initiator.text([("MaxBurstLength", "512"), ("HeaderDigest", "CRC32C")]))
    assert result.pairs == [("MaxBurstLength", "Reject"), ("HeaderDigest", "Reject")]


def test_unknown_keys(client: Client) -> None:
    """FFP 17.4 (2 of 2), section 6.2: a key that is not known is answered NotUnderstood."""
    assert client.do(client.initiator.text([("X-com.example.a", "b")])).pairs == [("X-com.example.a", "NotUnderstood")]


def test_declared_segment_length(house: House) -> None:
    """FFP 17.5 (1 of 3), section 13.12: MaxRecvDataSegmentLength may be declared anew, and holds from then on."""
    client = login(house)
    client.do(client.initiator.text([("MaxRecvDataSegmentLength", "512")]))
    client.initiator.set(max_recv_data_segment_length=512)
    client.initiator.received.clear()
    client.do(client.read(0, 4))
    assert [header.data_segment_length for header in came(client, pdu.DataIn)] == [512] * 4


def test_initiator_task_tag() -> None:
    """FFP 17.5 (2 of 3), section 11.10.3: the tag stays the same through one negotiation: another one is refused."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, b"", flags=0))
        transfer_tag = it.answer().target_transfer_tag
        it.send(ask(peer, b"", initiator_task_tag=TAG + 1, target_transfer_tag=transfer_tag))
        it.rejected(pdu.REJECT_INVALID_PDU_FIELD)


def test_another_lun() -> None:
    """FFP 17.5 (3 of 3), section 11.10.4: a Text Request without a transfer tag of ours has no LUN; one is not looked
    at, and comes back as it was."""
    with scene() as it:
        it.send(ask(it.login(), b"SendTargets=\0", lun=7 << 48))
        assert it.answer().lun == 7 << 48


def test_negotiate_once() -> None:
    """FFP 17.6 (1 of 2), section 6.2: a key twice in one negotiation is a protocol error."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, text.join([("MaxRecvDataSegmentLength", "512")]), flags=0))
        tag = it.answer().target_transfer_tag
        it.send(ask(peer, text.join([("MaxRecvDataSegmentLength", "1024")]), target_transfer_tag=tag))
        it.rejected(pdu.REJECT_PROTOCOL_ERROR)


def test_negotiate_again(client: Client) -> None:
    """FFP 17.6 (2 of 2), section 6.2: in another negotiation the same key is a new one."""
    for length in ("8192", "4096"):
        assert client.do(client.initiator.text([("MaxRecvDataSegmentLength", length)])).is_complete


def test_reset_of_a_negotiation() -> None:
    """FFP 17.7, section 11.10.4: the reserved transfer tag begins anew; what was said before is forgotten."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, b"SendTargets=All\0", flags=pdu.CONTINUE))
        it.says()
        it.send(ask(peer, b"SendTargets=\0"))
        (said,) = it.says()
        assert said.data.startswith(b"TargetName=")


def test_failed_negotiation() -> None:
    """FFP 17.8.1, section 6.2: what is no text at all is rejected; the negotiation is over, the session is not."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, b"no pair"))
        it.rejected(pdu.REJECT_PROTOCOL_ERROR)
        it.send(ask(peer, b"SendTargets=\0"))
        assert it.answer().flags == pdu.FINAL


def test_c_bit_of_a_request() -> None:
    """FFP 17.8.2, section 11.10.2: a pair may be cut by the C bit; the target says nothing until it is whole."""
    with scene() as it:
        peer = it.login()
        it.send(ask(peer, b"SendTar", flags=pdu.CONTINUE))
        (said,) = it.says()
        assert (said.data, said.header.flags) == (b"", 0)
        it.send(ask(peer, b"gets=\0", target_transfer_tag=said.header.target_transfer_tag))
        (said,) = it.says()
        assert said.data.startswith(b"TargetName=")


@pytest.mark.parametrize("room", ["512"])
def test_c_bit_of_a_response(house: House, room: str) -> None:
    """FFP 17.8.3, section 11.11.2: what does not fit the initiator's segment comes in pieces, C on all but the last."""
    for number in range(20):
        house.service.infos[f"v{number}"] = info_of(f"v{number}", f"{number:032x}")
    house.service.lose()
    house.restart()
    client = discover(house, MaxRecvDataSegmentLength=room)
    names = targets(client, "All")
    flags = [header.flags for header in came(client, pdu.TextResponse)]
    assert len(names) == 21
    assert len(flags) > 1
    assert flags == [pdu.CONTINUE] * (len(flags) - 1) + [pdu.FINAL]
