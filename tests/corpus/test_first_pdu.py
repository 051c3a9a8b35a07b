"""Corpus 2, the first PDU: anything but a Login Request, and Login Requests that contradict themselves.

RFC 7143 section 6.3 (what comes before and during the login phase), 11.12 (Login Request), 11.13.5 (statuses).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.login import text
from iscsi_ovs.login.text import TextLimits
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import OTHER_NAME, Peer, Scene, scene
from tests.targets.house import IQN, OTHER_PORT

SECURITY, OPERATIONAL, RESERVED, FULL = 0, 1, 2, 3


def flags(current: int, following: int = 0, *, transit: bool = True, more: bool = False) -> int:
    return (
        (pdu.TRANSIT if transit else 0) | (pdu.CONTINUE if more else 0) | current << pdu.CSG_SHIFT | following
    )  # fmt: skip


def identity(**others: str) -> bytes:
    pairs = {"InitiatorName": Peer().name, "SessionType": "Normal", "TargetName": IQN, **others}
    return text.join(pairs.items())


def login(flag_byte: int, data: bytes = b"", **fields: Any) -> bytes:
    """A Login Request."""
    header = pdu.LoginRequest(flags=flag_byte, isid=Peer().isid, initiator_task_tag=1, cmd_sn=1)
    for name, value in fields.items():
        setattr(header, name, value)
    return encode(header, data)


@pytest.mark.parametrize("opcode", [code for code in range(64) if code != pdu.LoginRequest.OPCODE])
def test_any_other_opcode_first(opcode: int) -> None:
    """Section 6.3: "If the target receives any PDU except a Login Request before the Login Phase is started, the target
    MUST immediately terminate the connection on which the PDU was received"."""
    with scene() as it:
        it.send(bytes((opcode,)) + bytes(47))
        it.closed()


@pytest.mark.parametrize("kind", [each for each in pdu.PDUS.values() if each is not pdu.LoginRequest])
def test_any_other_opcode_during_the_login(kind: type[pdu.Pdu]) -> None:
    """Section 6.3: "Once the Login Phase has started, if the target receives any PDU except a Login Request, it MUST
    send a Login reject (with Status "invalid during login") and then disconnect." """
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, OPERATIONAL), identity()))
        (answer,) = it.says()
        assert answer.header.status_class == 0
        it.send(encode(kind(initiator_task_tag=1)))
        it.refused(0x02, 0x0B)


# A first request, and the status that refuses it (None: it is let pass).
FIRST: dict[str, tuple[bytes, tuple[int, int] | None]] = {
    "version 1 at least": (login(flags(OPERATIONAL, FULL), identity(), version_max=1, version_min=1), (2, 0x05)),
    "version 0 to 255": (login(flags(OPERATIONAL, FULL), identity(), version_max=255), None),
    "a TSIH that no session has": (login(flags(OPERATIONAL, FULL), identity(), tsih=0xBEEF), (2, 0x0A)),
    "CSG 2": (login(flags(RESERVED, FULL), identity()), (2, 0x00)),
    "CSG 3": (login(flags(FULL, FULL), identity()), (2, 0x00)),
    "NSG 2": (login(flags(OPERATIONAL, RESERVED), identity()), (2, 0x00)),
    "T from a stage to itself": (login(flags(OPERATIONAL, OPERATIONAL), identity()), (2, 0x00)),
    "T backwards": (login(flags(OPERATIONAL, SECURITY), identity()), (2, 0x00)),
    "T and C together": (login(flags(OPERATIONAL, FULL, more=True), identity()), (2, 0x00)),
    "no text at all": (login(flags(OPERATIONAL, FULL)), (2, 0x07)),
    "no InitiatorName": (login(flags(OPERATIONAL, FULL), text.join([("TargetName", IQN)])), (2, 0x07)),
    "no TargetName": (login(flags(OPERATIONAL, FULL), text.join([("InitiatorName", Peer().name)])), (2, 0x07)),
    "an empty InitiatorName": (login(flags(OPERATIONAL, FULL), identity(InitiatorName="")), (2, 0x00)),
    "a target that is not there": (login(flags(OPERATIONAL, FULL), identity(TargetName=IQN + "x")), (2, 0x03)),
    "a session type that is none": (login(flags(OPERATIONAL, FULL), identity(SessionType="Other")), (2, 0x09)),
    "no method that we have": (login(flags(SECURITY, OPERATIONAL), identity(AuthMethod="KRB5")), (2, 0x01)),
}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_request(name: str) -> None:
    """Each with the Status-Class and Status-Detail of section 11.13.5, or let in."""
    request, status = FIRST[name]
    with scene() as it:
        it.peer.is_wild = True
        it.send(request)
        if status is None:
            assert it.answer().status_class == 0
        else:
            it.refused(*status)


def test_the_tsih_of_a_session_with_another_isid() -> None:
    """Section 6.3.1: name, ISID and TSIH name a session together; one that does not fit "does not exist" (020A)."""
    with scene() as it:
        it.peer.is_wild = True
        tsih = it.good.initiator.tsih
        request = login(flags(OPERATIONAL, FULL), identity(InitiatorName=OTHER_NAME), tsih=tsih)
        it.send(request)
        it.refused(0x02, 0x0A)


def test_a_second_connection_for_a_session() -> None:
    """MaxConnections is 1: name, ISID and TSIH of a living session with another CID: "too many connections", 0206."""
    with scene() as it:
        it.peer.is_wild = True
        fields = {"tsih": it.good.initiator.tsih, "isid": OTHER_PORT, "cid": 9}
        it.send(login(flags(OPERATIONAL, FULL), identity(InitiatorName=OTHER_NAME), **fields))
        it.refused(0x02, 0x06)


SECOND: dict[str, Callable[[], bytes]] = {
    "another task tag": lambda: login(flags(OPERATIONAL, FULL), initiator_task_tag=2),
    "another ISID": lambda: login(flags(OPERATIONAL, FULL), isid=bytes(6)),
    "another TSIH": lambda: login(flags(OPERATIONAL, FULL), tsih=5),
    "another CID": lambda: login(flags(OPERATIONAL, FULL), cid=5),
    "another version": lambda: login(flags(OPERATIONAL, FULL), version_max=3),
    "the stage that is over": lambda: login(flags(SECURITY, OPERATIONAL)),
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_request_that_is_of_another_login(name: str) -> None:
    """What names a login stays the same from its first request to its last, and stages go forward only: 0200."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, OPERATIONAL), identity()))
        assert it.answer().status_class == 0
        it.send(SECOND[name]())
        it.refused(0x02, 0x00)


def until_closed(it: Scene, make: Callable[[int], bytes], most: int) -> int:
    """Sends what ``make`` makes until the connection ends; how many it took."""
    for number in range(most):
        if it.bad.connection.is_closed:
            return number
        it.send(make(number))
    assert it.bad.connection.is_closed, f"still open after {most}"
    return most


def test_c_for_ever() -> None:
    """Text before authentication is bounded: 64 KiB, however it is cut. Then 0200, and nothing of it is kept."""
    with scene() as it:
        it.peer.is_wild = True
        piece = b"X-" + b"a" * 8000
        count = until_closed(it, lambda _: login(flags(SECURITY, transit=False, more=True), piece), 40)
        assert count <= TextLimits().text_bytes // len(piece) + 2
        it.refused(0x02, 0x00)


def test_c_for_ever_with_nothing() -> None:
    """Empty pieces cost no memory, but they are counted: a login has a last request."""
    with scene() as it:
        it.peer.is_wild = True
        count = until_closed(it, lambda _: login(flags(SECURITY, transit=False, more=True)), 1000)
        assert count <= TextLimits().requests + 1
        it.refused(0x02, 0x00)


def test_t_that_never_comes() -> None:
    """An initiator that never asks for the next stage is answered, until its requests or its time are used up."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, transit=False), identity()))
        count = until_closed(it, lambda _: login(flags(SECURITY, transit=False)), 1000)
        assert count <= TextLimits().requests + 1
        it.refused(0x02, 0x00)


def test_f_is_no_flag_of_a_login() -> None:
    """A transit without text, one request a stage, and the time that a login has: silence ends it."""
    with scene() as it:
        it.peer.is_wild = True
        it.send(login(flags(SECURITY, transit=False), identity()))
        it.says()
        it.house.pass_time(Timing().login_s - 1)
        assert not it.bad.connection.is_closed
        it.house.pass_time(2)
        assert it.bad.connection.is_closed
