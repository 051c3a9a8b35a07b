"""PDUs and their digests as the testing initiator sends and judges them."""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.testing.results import ViolationError
from iscsi_ovs.testing.stream import Stream, digest, encode

READ_10 = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)
DIGESTS = [(header, data) for header in (False, True) for data in (False, True)]


def stream(header_digest: bool, data_digest: bool) -> Stream:
    made = Stream()
    made.header_digest, made.data_digest = header_digest, data_digest
    return made


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(32), "aa36918a"),
        (b"\xff" * 32, "43aba862"),
        (bytes(range(32)), "4e79dd46"),
        (bytes(range(31, -1, -1)), "5cdb3f11"),
        (READ_10, "563a96d9"),
    ],
)
def test_known_answers(data: bytes, expected: str) -> None:
    """The examples of RFC 7143's appendix, byte for byte as they go over the wire; cut anywhere, they are the same."""
    assert digest(data).hex() == expected
    for cut in range(len(data)):
        assert digest(data[:cut], data[cut:]).hex() == expected


@pytest.mark.parametrize(("header_digest", "data_digest"), DIGESTS)
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("ahs", [b"", bytes(3), bytes(4)])
def test_what_is_sent_can_be_read(header_digest: bool, data_digest: bool, length: int, ahs: bytes) -> None:
    """Any lengths, any digests, a byte at a time; digests cover the padding."""
    sender, receiver = stream(header_digest, data_digest), stream(header_digest, data_digest)
    data = bytes(range(1, 1 + length))
    wire = sender.encode(pdu.NopIn(initiator_task_tag=5), data, ahs)
    plain = encode(pdu.NopIn(initiator_task_tag=5), data, ahs)
    assert len(wire) == len(plain) + 4 * header_digest + 4 * (data_digest and length > 0)
    got = [received for byte in wire for received in receiver.feed(bytes((byte,)))]
    assert len(got) == 1
    assert got[0].data == data
    assert got[0].header.initiator_task_tag == 5


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("which", ["header", "data"])
def test_a_wrong_digest_is_a_violation(which: str, at: int) -> None:
    wire = bytearray(stream(True, True).encode(pdu.NopIn(), b"ping"))
    wire[(48 if which == "header" else len(wire) - 4) + at] ^= 1
    with pytest.raises(ViolationError, match=f"wrong {which} digest"):
        list(stream(True, True).feed(wire))


@pytest.mark.parametrize("which", ["header", "data"])
def test_digests_are_spoilt_on_demand(which: str) -> None:
    """Of the PDUs that are asked for, and no others."""
    sender = stream(True, True)
    sender.spoil = lambda header: which if header.initiator_task_tag == 2 else None  # type: ignore[return-value]
    receiver = stream(True, True)
    assert len(list(receiver.feed(sender.encode(pdu.NopIn(initiator_task_tag=1), b"ping")))) == 1
    with pytest.raises(ViolationError, match=f"wrong {which} digest"):
        list(receiver.feed(sender.encode(pdu.NopIn(initiator_task_tag=2), b"ping")))
