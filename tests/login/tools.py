"""What the login tests share: requests as initiators send them."""

from __future__ import annotations

from typing import Any

import pytest

from iscsi_ovs import errors, login, pdu
from iscsi_ovs.login import text

INITIATOR = "iqn.1993-08.org.debian:01:a1b2c3"
TARGET = "iqn.2016-01.com.openvstorage:demo"
ISID = bytes.fromhex("00023d000000")

IDENTITY = [("InitiatorName", INITIATOR), ("SessionType", "Normal"), ("TargetName", TARGET)]
DISCOVERY = [("InitiatorName", INITIATOR), ("SessionType", "Discovery")]

CONTINUE = pdu.CONTINUE
SECURITY_TO_OPERATIONAL = pdu.TRANSIT | 1
OPERATIONAL = 1 << pdu.CSG_SHIFT
OPERATIONAL_TO_FULL_FEATURE = pdu.TRANSIT | OPERATIONAL | 3


def request(flags: int, **fields: Any) -> pdu.LoginRequest:
    return pdu.LoginRequest(**{"flags": flags, "isid": ISID, "initiator_task_tag": 5, "cid": 1, **fields})


def send(side: login.Login, flags: int, pairs: list[tuple[str, str]] | bytes = b"", **fields: Any) -> login.Step:
    data = pairs if isinstance(pairs, bytes) else text.join(pairs)
    return side.receive(request(flags, **fields), data)


def answers(step: login.Step) -> dict[str, str]:
    pairs = text.split(step.text)
    assert len(dict(pairs)) == len(pairs), "a key answered twice"
    return dict(pairs)


def operational_login(
    pairs: list[tuple[str, str]], offer: login.Offer | None = None, *, discovery: bool = False
) -> tuple[dict[str, str], login.Parameters]:
    """A login that starts and ends in the operational stage, in one request unless the target brings something up;
    the answers and the outcome."""
    side = login.Login(1, offer)
    step = send(side, OPERATIONAL_TO_FULL_FEATURE, (DISCOVERY if discovery else IDENTITY) + pairs)
    said = answers(step)
    asked = {name for name, _ in pairs}
    if step.finished is None:
        proposals = [(key, said[key]) for key in ("ImmediateData", "FirstBurstLength") if key in {*said} - asked]
        assert proposals
        step = send(side, OPERATIONAL_TO_FULL_FEATURE, proposals)
        assert not step.text
    assert step.finished is not None
    return said, step.finished


def refused(status: tuple[int, int], *arguments: Any, **fields: Any) -> str:
    """Sending this is refused with this status; the message for the log."""
    with pytest.raises(errors.LoginError) as caught:
        send(*arguments, **fields)
    assert (caught.value.status_class, caught.value.status_detail) == status, caught.value
    assert str(caught.value)
    return str(caught.value)
