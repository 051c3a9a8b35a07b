"""Corpus 1, framing: headers cut anywhere, segments longer than allowed, additional headers that lie, padding.

RFC 7143 sections 11.2.1.5 to 11.2.3 (lengths and padding), 13.12 (MaxRecvDataSegmentLength), 7.8 (a length that can't
be believed ends the connection: there is no next header to be found).
"""

from __future__ import annotations

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import (
    READ,
    TAG,
    WRITE,
    Case,
    Peer,
    cases,
    command,
    judge,
    numbered,
    read_cdb,
    reject,
    scene,
    status,
    write_cdb,
)


@pytest.mark.parametrize("cut", range(48))
def test_a_header_cut_at_every_byte(cut: int) -> None:
    """Nothing happens until the rest comes, and then what it says; the end in its middle is only an end."""
    with scene() as it:
        whole = command(it.login(), read_cdb(0, 1), READ, 512)
        it.send(whole[:cut])
        assert it.says() == []
        it.send(whole[cut:])
        (last,) = it.says()
        assert last.header.status == 0
        it.send(whole[:cut])
        it.bad.lose()


def with_ahs(peer: Peer, ahs: bytes, words: int | None = None) -> bytes:
    """A READ(10) with additional header segments; ``words``: what TotalAHSLength says."""
    whole = bytearray(command(peer, read_cdb(0, 1), READ, 512))
    whole[4] = len(ahs) // 4 if words is None else words
    return bytes(whole) + ahs


INVALID = reject(pdu.REJECT_INVALID_PDU_FIELD)

AHS = cases(
    Case("of an unknown type", lambda peer: with_ahs(peer, b"\0\5\7\0" + bytes(4)), INVALID),
    Case("of length 0", lambda peer: with_ahs(peer, bytes(4)), INVALID),
    Case("longer than its room", lambda peer: with_ahs(peer, b"\xff\xff\1\0" + bytes(4)), INVALID),
    Case("255 words of nothing", lambda peer: with_ahs(peer, bytes(1020)), INVALID),
    Case(
        "on a NOP-Out, which has none",
        lambda peer: numbered(peer, pdu.NopOut(initiator_task_tag=1), b"", b"\0\5\1\0" + bytes(4)),
        INVALID,
    ),
    Case(
        # Section 11.2.2.4: this length is for bidirectional commands, which are refused at all.
        "a bidirectional read length",
        lambda peer: with_ahs(peer, b"\0\5\2\0" + (512).to_bytes(4, "big")),
        INVALID,
    ),
    Case(
        # Section 11.2.2.3: an Extended CDB holds what follows byte 15: the first 16 bytes still say READ(10).
        "an extended CDB behind a short one",
        lambda peer: with_ahs(peer, b"\0\5\1\0" + bytes(4)),
        status(),
    ),
)


@AHS
def test_an_additional_header(case: Case) -> None:
    """What an AHS says about itself is not believed; a wrong one costs its PDU, not the connection."""
    judge(case)


def test_an_additional_header_that_never_comes() -> None:
    """TotalAHSLength 255 with nothing behind it: the target waits, like for any PDU that is under way."""
    with scene() as it:
        it.send(with_ahs(it.login(), b"", words=255))
        assert it.says() == []
        it.bad.lose()


@pytest.mark.parametrize("length", [262145, 0xFFFFFF])
@pytest.mark.parametrize("kind", [pdu.NopOut, pdu.ScsiCommand, pdu.TextRequest, pdu.DataOut])
def test_a_data_segment_longer_than_declared(kind: type[pdu.Pdu], length: int) -> None:
    """Beyond our MaxRecvDataSegmentLength: the connection ends before a byte of it is taken."""
    with scene() as it:
        header = kind(initiator_task_tag=TAG, data_segment_length=length)
        if kind is not pdu.DataOut:
            header.cmd_sn = it.login().cmd_sn
        else:
            it.login()
        it.send(header.pack())
        it.closed()


@pytest.mark.parametrize("length", [8193, 0xFFFFFF])
def test_a_login_longer_than_the_default_segment(length: int) -> None:
    """Section 13.12: 8192 bytes hold until the login is through; nobody has declared more yet."""
    with scene() as it:
        it.send(pdu.LoginRequest(data_segment_length=length).pack())
        assert it.bad.connection.is_closed


def test_padding_that_is_not_zero() -> None:
    """Section 11.2.3: padding "SHOULD be sent as 0"; a receiver skips it."""
    with scene() as it:
        peer = it.login()
        header = pdu.NopOut(initiator_task_tag=TAG, cmd_sn=peer.cmd_sn, data_segment_length=5)
        peer.cmd_sn += 1
        it.send(header.pack() + b"hello" + b"\xff\xff\xff")
        (echo,) = it.says()
        assert echo.data == b"hello"
        it.lives()


def test_padding_that_is_missing() -> None:
    """Then the next header begins three bytes early: it is read as it stands, three bytes late, and makes no sense."""
    with scene() as it:
        peer = it.login()
        header = pdu.NopOut(initiator_task_tag=TAG, cmd_sn=peer.cmd_sn, data_segment_length=5)
        it.send(header.pack() + b"hello" + encode(header, bytes(64)))
        echo, *rest = it.says()
        assert echo.data == b"hello"
        assert all(isinstance(each.header, pdu.Reject) for each in rest)


def test_one_byte_a_segment() -> None:
    """A write with its data, a byte at a time, is what it is in one piece."""
    with scene() as it:
        peer = it.login()
        whole = command(peer, write_cdb(3, 1), WRITE, 512, bytes(range(256)) * 2)
        for at in range(len(whole)):
            it.send(whole[at : at + 1])
        assert it.answer().status == 0
        assert bytes(it.good.do(it.good.read(3, 1)).data) == bytes(range(256)) * 2
