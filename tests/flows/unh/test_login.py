"""UNH-IOL's login groups 1 to 23 (RFC 7143 sections 6, 11.12, 11.13, 13): what each key and flag of a login may be."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.testing.initiator import encode, parse_pairs
from tests.corpus.scene import OTHER_NAME, Scene, scene
from tests.corpus.test_first_pdu import FULL, OPERATIONAL, SECURITY, flags, identity, login
from tests.targets.house import IQN, OTHER_PORT, Client, House


def answers(house: House, **keys: Any) -> tuple[Client, dict[str, str]]:
    """A whole login with these operational keys, and what the target said to them."""
    client = house.client()
    client.initiator.login(IQN, **keys)
    house.run()
    assert client.initiator.is_logged_in
    return client, client.initiator.answers


def say(it: Scene, pairs: list[tuple[str, str]], *, transit: bool = True) -> dict[str, str]:
    """Keys in the operational stage of a login that began with its names; the target's answers."""
    it.peer.is_wild = True
    it.send(login(flags(SECURITY, OPERATIONAL), identity()))
    it.says()
    it.send(login(flags(OPERATIONAL, FULL, transit=transit), text.join(pairs)))
    return dict(parse_pairs(it.says()[-1].data))


def test_standard_login(house: House) -> None:
    """Login 1.1, section 6.3: security, operational, full feature phase; each response repeats task tag, ISID and
    stages (testing.initiator judges that), and the last one has a TSIH."""
    client, _ = answers(house)
    assert client.initiator.tsih
    assert client.initiator.login_status == (0, 0)


def test_tsih_is_new(house: House) -> None:
    """Login 2.1, section 11.13.3: 0 while the session is not there, then not 0, and of no other session."""
    first, second = answers(house)[0], house.client(isid=OTHER_PORT)
    second.initiator.login(IQN)
    house.run()
    assert first.initiator.tsih != second.initiator.tsih
    responses = [each.header for each in first.initiator.received if isinstance(each.header, pdu.LoginResponse)]
    assert [each.tsih for each in responses[:-1]] == [0] * (len(responses) - 1)


def test_tsih_that_is_none() -> None:
    """Login 2.2, section 11.13.5: 020A, "session does not exist"."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(OPERATIONAL, FULL), identity(), tsih=0x7777))
        it.refused(0x02, 0x0A)


def test_second_connection() -> None:
    """Login 2.3, section 13.2: MaxConnections=1: no second connection joins a session (0206, too many connections),
    and the session does not notice."""
    with scene() as it:
        it.peer.is_wild = True
        fields = {"tsih": it.good.initiator.tsih, "isid": it.good.initiator.isid, "cid": 9}
        it.send(login(flags(OPERATIONAL, FULL), identity(InitiatorName=OTHER_NAME), **fields))
        it.refused(0x02, 0x06)


def test_t_bit() -> None:
    """Login 3.1, section 11.13.1: no T in the response where the request has none; a transit comes back whole."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, transit=False), identity()))
        assert it.answer().flags == 0
        it.send(login(flags(SECURITY, OPERATIONAL)))
        assert it.answer().flags == flags(SECURITY, OPERATIONAL)


def test_stat_sn(house: House) -> None:
    """Login 4.1, section 11.13.4: each Login Response bears the next StatSN, and full feature phase goes on."""
    client, _ = answers(house)
    numbers = [each.header.stat_sn for each in client.initiator.received]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    client.attentions()
    assert client.initiator.exp_stat_sn > numbers[-1]


@pytest.mark.parametrize("exp_stat_sn", [0, 1, 0xFFFFFFFF])
def test_exp_stat_sn(exp_stat_sn: int) -> None:
    """Login 5.1, section 11.12.7: on the first connection of a session ExpStatSN means nothing."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(OPERATIONAL, FULL), identity(), exp_stat_sn=exp_stat_sn))
        assert it.answer().status_class == 0


@pytest.mark.parametrize("same_pdu", [True, False])
def test_negotiate_once(same_pdu: bool) -> None:
    """Login 6.1 to 6.3, section 6.3: a key twice, in one request or in two: initiator error, 0200."""
    with scene() as it:
        pairs = [("ImmediateData", "Yes")]
        if same_pdu:
            say(it, pairs * 2)
        else:
            say(it, pairs, transit=False)
            it.send(login(flags(OPERATIONAL, FULL), text.join(pairs)))
            it.says()
        assert it.bad.connection.is_closed


def test_list_negotiation() -> None:
    """Login 7.2, section 6.2.1: the first value of the initiator's list that the target has."""
    with scene() as it:
        assert say(it, [("HeaderDigest", "X-none,None,CRC32C")])["HeaderDigest"] == "None"


def test_auth_method_that_is_none() -> None:
    """Login 7.3, section 11.13.5: nothing in common: authentication failure, 0201."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, OPERATIONAL), identity(AuthMethod="SRP,KRB5")))
        it.refused(0x02, 0x01)


def test_value_too_high() -> None:
    """Login 7.4, section 6.2: a number out of range is answered Reject; the default stays."""
    with scene() as it:
        assert say(it, [("FirstBurstLength", "16777216")])["FirstBurstLength"] == "Reject"


def test_boolean_that_is_none() -> None:
    """Login 7.5, section 6.2: as is a boolean that is neither Yes nor No."""
    with scene() as it:
        assert say(it, [("ImmediateData", "Maybe")])["ImmediateData"] == "Reject"


def test_unknown_key() -> None:
    """Login 7.6, section 6.2: NotUnderstood."""
    with scene() as it:
        assert say(it, [("X-org.example.key", "1")])["X-org.example.key"] == "NotUnderstood"


def test_another_pdu_in_a_login() -> None:
    """Login 8.1, section 6.3: "invalid during login", 020B, and the end of the connection."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, OPERATIONAL), identity()))
        it.says()
        it.send(encode(pdu.NopOut(initiator_task_tag=1)))
        it.refused(0x02, 0x0B)


@pytest.mark.parametrize("wanted", ["None", "CRC32C", "CRC32C,None", "None,CRC32C"])
def test_digests(house: House, wanted: str) -> None:
    """Login 9.1 to 9.3, section 13.1: the initiator's order decides; what was agreed on holds for all that follows."""
    client, said = answers(house, HeaderDigest=wanted, DataDigest=wanted)
    first = wanted.split(",")[0]
    assert (said["HeaderDigest"], said["DataDigest"]) == (first, first)
    client.attentions()


@pytest.mark.parametrize("wanted", ["1", "2", "65535"])
def test_max_connections(house: House, wanted: str) -> None:
    """Login 10.1, section 13.2: the smaller number, and ours is 1."""
    assert answers(house, MaxConnections=wanted)[1]["MaxConnections"] == "1"


@pytest.mark.parametrize("missing", ["InitiatorName", "TargetName"])
def test_names(missing: str) -> None:
    """Login 11.1, section 6.3: a leading request without a name: missing parameter, 0207."""
    with scene() as it:
        it.peer.is_wild = True
        pairs = [pair for pair in parse_pairs(identity()) if pair[0] != missing]
        it.send(login(flags(OPERATIONAL, FULL), text.join(pairs)))
        it.refused(0x02, 0x07)


@pytest.mark.parametrize("key", ["IFMarker", "OFMarker", "IFMarkInt", "OFMarkInt"])
def test_markers(key: str) -> None:
    """Login 12.1, section 13.25: obsolete: "MUST be answered … Reject" (or No), never NotUnderstood."""
    with scene() as it:
        assert say(it, [(key, "No" if key.endswith("Marker") else "2048")])[key] in ("Reject", "No")


@pytest.mark.parametrize("ours", ["Yes", "No"])
def test_booleans(house: House, ours: str) -> None:
    """Login 13.1 and 13.2, sections 13.10, 13.11, 13.18, 13.19: OR and AND of both sides."""
    _, said = answers(house, InitialR2T=ours, ImmediateData=ours, DataPDUInOrder=ours, DataSequenceInOrder=ours)
    assert (said["InitialR2T"], said["ImmediateData"]) == (ours, ours)
    assert (said["DataPDUInOrder"], said["DataSequenceInOrder"]) == ("Yes", "Yes")


def test_boolean_in_small_letters() -> None:
    """Login 13.3, section 6.1: values are case-sensitive."""
    with scene() as it:
        assert say(it, [("InitialR2T", "no")])["InitialR2T"] == "Reject"


@pytest.mark.parametrize("wanted", ["512", "8192", "16777215"])
def test_max_recv_data_segment_length(house: House, wanted: str) -> None:
    """Login 14.1, section 13.12: declared by each side for itself; ours may come in any response of the stage."""
    client, said = answers(house, MaxRecvDataSegmentLength=wanted)
    assert 512 <= int(said["MaxRecvDataSegmentLength"]) < 1 << 24
    client.attentions()


@pytest.mark.parametrize(("wanted", "answer"), [("512", "512"), ("262144", "262144"), ("16777215", "16776192")])
def test_max_burst_length(house: House, wanted: str, answer: str) -> None:
    """Login 15.1, section 13.13: the smaller number."""
    assert answers(house, MaxBurstLength=wanted, FirstBurstLength="512")[1]["MaxBurstLength"] == answer


@pytest.mark.parametrize(("first", "longest"), [("4096", "8192"), ("8192", "8192"), ("65536", "4096")])
def test_first_burst_length(house: House, first: str, longest: str) -> None:
    """Login 16.1 to 16.3, section 13.14: less than, as much as, more than MaxBurstLength: it never exceeds that."""
    _, said = answers(house, FirstBurstLength=first, MaxBurstLength=longest)
    assert int(said["FirstBurstLength"]) == min(int(first), int(longest))


@pytest.mark.parametrize("wanted", ["0", "20", "3600"])
def test_default_time2retain(house: House, wanted: str) -> None:
    """Login 17.1, section 13.16: the smaller number; a session that lost its connection is not kept here."""
    assert answers(house, DefaultTime2Retain=wanted)[1]["DefaultTime2Retain"] == "0"


@pytest.mark.parametrize(("wanted", "answer"), [("0", "2"), ("2", "2"), ("3600", "3600")])
def test_default_time2wait(house: House, wanted: str, answer: str) -> None:
    """Login 18.1, section 13.15: the larger number."""
    assert answers(house, DefaultTime2Wait=wanted)[1]["DefaultTime2Wait"] == answer


@pytest.mark.parametrize("wanted", ["1", "4", "65535"])
def test_max_outstanding_r2t(house: House, wanted: str) -> None:
    """Login 19.1, section 13.17: the smaller number."""
    assert int(answers(house, MaxOutstandingR2T=wanted)[1]["MaxOutstandingR2T"]) == min(int(wanted), 4)


@pytest.mark.parametrize("wanted", ["0", "1", "2"])
def test_error_recovery_level(house: House, wanted: str) -> None:
    """Login 20.1, section 13.20: the smaller number, and ours is 0."""
    assert answers(house, ErrorRecoveryLevel=wanted)[1]["ErrorRecoveryLevel"] == "0"


def test_session_type(house: House) -> None:
    """Login 21.1, section 13.21: Normal where nothing is said; Discovery needs no target; anything else is 0209."""
    assert not answers(house)[0].initiator.parameters.is_discovery
    client = house.client(isid=OTHER_PORT)
    client.initiator.login(None)
    house.run()
    assert client.initiator.is_logged_in
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(OPERATIONAL, FULL), identity(SessionType="Neither")))
        it.refused(0x02, 0x09)


def test_auth_method(house: House) -> None:
    """Login 22.1, section 12.1: answered in the security stage, with the first of the list that both have."""
    client = house.client()
    client.initiator.login(IQN, identity={"AuthMethod": "X-none,None"})
    house.run()
    assert client.initiator.answers["AuthMethod"] == "None"


def test_portal_group_tag(house: House) -> None:
    """Login 23.1, section 13.9: TargetPortalGroupTag in the first response of a normal session, and nowhere else."""
    client, said = answers(house)
    assert 0 < int(said["TargetPortalGroupTag"]) < 65536
    first = client.initiator.received[0]
    assert b"TargetPortalGroupTag=" in first.data
