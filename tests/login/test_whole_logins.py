"""Whole logins, key for key as initiators in the field send them, and what each must find in the answers.

open-iscsi stops at any key in the security stage but TargetAlias, TargetAddress, TargetPortalGroupTag and those of
authentication, and insists on MaxOutstandingR2T=1, MaxConnections=1 and ErrorRecoveryLevel=0. libiscsi says who it is
once more in the operational stage.
"""

from __future__ import annotations

from iscsi_ovs import login
from iscsi_ovs.login import text
from tests.login.tools import INITIATOR, OPERATIONAL_TO_FULL_FEATURE, SECURITY_TO_OPERATIONAL, TARGET, answers, send

OPEN_ISCSI_OPERATIONAL = [
    ("HeaderDigest", "None"),
    ("DataDigest", "None"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "0"),
    ("IFMarker", "No"),
    ("OFMarker", "No"),
    ("ErrorRecoveryLevel", "0"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
    ("MaxBurstLength", "16776192"),
    ("FirstBurstLength", "262144"),
    ("MaxOutstandingR2T", "1"),
    ("MaxConnections", "1"),
    ("DataPDUInOrder", "Yes"),
    ("DataSequenceInOrder", "Yes"),
    ("MaxRecvDataSegmentLength", "262144"),
]
LIBISCSI_WHO = [
    ("InitiatorName", "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls"),
    ("InitiatorAlias", "iscsi-ls"),
    ("TargetName", TARGET),
    ("SessionType", "Normal"),
]
LIBISCSI_OPERATIONAL = [
    ("HeaderDigest", "None,CRC32C"),
    ("DataDigest", "None"),
    ("InitialR2T", "No"),
    ("ImmediateData", "Yes"),
    ("MaxBurstLength", "262144"),
    ("FirstBurstLength", "262144"),
    ("MaxRecvDataSegmentLength", "262144"),
    ("DataPDUInOrder", "Yes"),
    ("DefaultTime2Wait", "2"),
    ("DefaultTime2Retain", "0"),
    ("IFMarker", "No"),
    ("OFMarker", "No"),
    ("MaxConnections", "1"),
    ("MaxOutstandingR2T", "1"),
    ("ErrorRecoveryLevel", "0"),
    ("DataSequenceInOrder", "Yes"),
]


def test_open_iscsi() -> None:
    """A normal session of the Linux initiator with the defaults of iscsid.conf."""
    side = login.Login(1, login.Offer(target_alias="demo"))
    step = send(
        side,
        SECURITY_TO_OPERATIONAL,
        [
            ("InitiatorName", INITIATOR),
            ("InitiatorAlias", "host"),
            ("TargetName", TARGET),
            ("SessionType", "Normal"),
            ("AuthMethod", "None"),
        ],
    )
    assert step.flags == SECURITY_TO_OPERATIONAL
    assert answers(step) == {"AuthMethod": "None", "TargetPortalGroupTag": "1", "TargetAlias": "demo"}
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, OPEN_ISCSI_OPERATIONAL)
    assert step.flags == OPERATIONAL_TO_FULL_FEATURE
    assert answers(step) == {
        **dict(OPEN_ISCSI_OPERATIONAL),
        "IFMarker": "Reject",
        "OFMarker": "Reject",
    }
    finished = step.finished
    assert finished is not None
    assert (finished.max_recv_data_segment_length, finished.target_max_recv_data_segment_length) == (262144, 262144)
    assert (finished.max_burst_length, finished.first_burst_length) == (16776192, 262144)
    assert (finished.initial_r2t, finished.immediate_data, finished.max_outstanding_r2t) == (False, True, 1)
    assert (finished.default_time2wait, finished.default_time2retain) == (2, 0)
    assert finished.initiator_alias == "host"


def test_open_iscsi_with_little_memory() -> None:
    """A smaller first burst, or none, is an answer that it takes."""
    for offer in (login.Offer(first_burst_length=4096), login.Offer(initial_r2t=True, immediate_data=False)):
        side = login.Login(1, offer)
        send(side, SECURITY_TO_OPERATIONAL, [("InitiatorName", INITIATOR), ("TargetName", TARGET)])
        step = send(side, OPERATIONAL_TO_FULL_FEATURE, OPEN_ISCSI_OPERATIONAL)
        assert step.finished is not None
        asked = {name for name, _ in OPEN_ISCSI_OPERATIONAL}
        assert set(answers(step)) <= asked


def test_open_iscsi_discovery() -> None:
    """iscsiadm -m discovery: 32 KiB segments, no target, keys of normal sessions are irrelevant."""
    side = login.Login(1)
    step = send(
        side,
        SECURITY_TO_OPERATIONAL,
        [
            ("InitiatorName", INITIATOR),
            ("InitiatorAlias", "host"),
            ("SessionType", "Discovery"),
            ("AuthMethod", "None"),
        ],
    )
    assert answers(step) == {"AuthMethod": "None"}
    step = send(
        side,
        OPERATIONAL_TO_FULL_FEATURE,
        [
            ("HeaderDigest", "None"),
            ("DataDigest", "None"),
            ("MaxRecvDataSegmentLength", "32768"),
            ("DefaultTime2Wait", "0"),
            ("DefaultTime2Retain", "0"),
            ("ErrorRecoveryLevel", "0"),
            ("IFMarker", "No"),
            ("OFMarker", "No"),
            ("InitialR2T", "No"),
            ("MaxBurstLength", "16776192"),
        ],
    )
    said = answers(step)
    assert (said["DefaultTime2Wait"], said["ErrorRecoveryLevel"], said["HeaderDigest"]) == ("2", "0", "None")
    assert (said["InitialR2T"], said["MaxBurstLength"]) == ("Irrelevant", "Irrelevant")
    assert step.finished
    assert step.finished.is_discovery
    assert step.finished.max_recv_data_segment_length == 32768


def test_libiscsi() -> None:
    """iscsi-ls, iscsi-test-cu, qemu: AuthMethod=CHAP,None, then all of it with the identity once more."""
    side = login.Login(1)
    step = send(side, SECURITY_TO_OPERATIONAL, [*LIBISCSI_WHO, ("AuthMethod", "CHAP,None")])
    assert step.flags == SECURITY_TO_OPERATIONAL
    assert answers(step)["AuthMethod"] == "None"
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, LIBISCSI_WHO + LIBISCSI_OPERATIONAL)
    said = answers(step)
    assert not {name for name, _ in LIBISCSI_WHO} & set(said)
    assert said["HeaderDigest"] == said["DataDigest"] == "None"
    assert said["MaxRecvDataSegmentLength"] == "262144"
    finished = step.finished
    assert finished is not None
    assert (finished.max_burst_length, finished.first_burst_length) == (262144, 262144)
    assert finished.initiator_alias == "iscsi-ls"


def test_libiscsi_without_security() -> None:
    """Straight into the operational stage, as older versions begin."""
    step = send(login.Login(1), OPERATIONAL_TO_FULL_FEATURE, LIBISCSI_WHO + LIBISCSI_OPERATIONAL)
    assert step.finished is not None
    assert answers(step)["TargetPortalGroupTag"] == "1"


def test_a_boot_firmware_that_asks_step_by_step() -> None:
    """UEFI's initiator transits in requests of their own, and sends nothing with them."""
    side = login.Login(1)
    assert send(side, 0, [("InitiatorName", INITIATOR), ("TargetName", TARGET), ("AuthMethod", "None")]).flags == 0
    assert send(side, SECURITY_TO_OPERATIONAL).flags == SECURITY_TO_OPERATIONAL
    step = send(side, 4, OPEN_ISCSI_OPERATIONAL[:6])
    assert step.flags == 4
    step = send(side, OPERATIONAL_TO_FULL_FEATURE)
    assert step.finished
    assert step.text == b""


def test_answers_are_text_that_we_would_take_ourselves() -> None:
    """Our own answers pass our own parser."""
    side = login.Login(1, login.Offer(target_alias="a b c"))
    step = send(side, SECURITY_TO_OPERATIONAL, LIBISCSI_WHO)
    assert text.join(text.split(step.text)) == step.text
