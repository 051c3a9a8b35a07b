"""Corpus 1, its digests: missing, wrong, flipped in mid-session, and in the login phase, where there are none.

RFC 7143 section 7.8: a wrong header digest costs the connection at ErrorRecoveryLevel 0, a wrong data digest its PDU
(Reject, reason "data digest error") and the task that the data were for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.testing.initiator import encode
from tests.corpus.scene import BLOCK, Peer, Scene, scene
from tests.corpus.test_first_pdu import FULL, OPERATIONAL, flags, identity, login

BOTH = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


def write(peer: Peer, data: bytes, tag: int = 0x70) -> bytes:
    """A WRITE(10) of these bytes at block 64, all of them immediate."""
    cdb = b"\x2a\0" + (64).to_bytes(4, "big") + b"\0" + (len(data) // BLOCK).to_bytes(2, "big")
    header = pdu.ScsiCommand(
        flags=pdu.FINAL | pdu.WRITE, initiator_task_tag=tag, cmd_sn=peer.cmd_sn, cdb=cdb.ljust(16, b"\0"),
        expected_data_transfer_length=len(data),
    )  # fmt: skip
    peer.cmd_sn += 1
    return peer.stream.encode(header, data)


def ping(peer: Peer, data: bytes = b"ping", tag: int = 0x71) -> bytes:
    header = pdu.NopOut(opcode=pdu.NopOut.OPCODE | pdu.IMMEDIATE, initiator_task_tag=tag, cmd_sn=peer.cmd_sn)
    return peer.stream.encode(header, data)


def untouched(it: Scene) -> None:
    """Nothing came to the disk."""
    assert bytes(it.good.do(it.good.read(64, 1)).data) == bytes(BLOCK)


def alive(it: Scene) -> None:
    it.send(ping(it.peer, b"on we go", 0x72))
    assert [each.data for each in it.says() if each.header.initiator_task_tag == 0x72] == [b"on we go"]


@pytest.mark.parametrize("make", [write, ping])
@pytest.mark.parametrize("at", [0, 16, 47, 48, 51])
def test_a_header_flipped(make: Callable[..., bytes], at: int) -> None:
    """Any byte of header or digest: the connection is over, and nothing was done."""
    with scene() as it:
        peer = it.login(**BOTH)
        wire = bytearray(make(peer, b"x" * BLOCK))
        wire[at] ^= 0x04
        it.send(bytes(wire))
        it.closed()
        untouched(it)


@pytest.mark.parametrize("at", [52, 100, -5, -4, -1])
def test_data_flipped(at: int) -> None:
    """Any byte of immediate data or its digest: Reject, then CHECK CONDITION 0B/47/05; the session goes on."""
    with scene() as it:
        peer = it.login(**BOTH)
        wire = bytearray(write(peer, b"x" * BLOCK))
        wire[at] ^= 0x04
        it.send(bytes(wire))
        said = it.says()
        assert [type(each.header) for each in said] == [pdu.Reject, pdu.ScsiResponse]
        assert said[0].header.reason == pdu.REJECT_DATA_DIGEST_ERROR
        assert said[1].header.status == scsi.CHECK_CONDITION
        assert (said[1].data[4] & 0x0F, said[1].data[14], said[1].data[15]) == (0x0B, 0x47, 0x05)
        alive(it)
        untouched(it)


def test_ping_data_flipped() -> None:
    """A PDU that is no task's: the Reject is all."""
    with scene() as it:
        peer = it.login(**BOTH)
        wire = bytearray(ping(peer, b"odd"))
        wire[-1] ^= 0x80
        it.send(bytes(wire))
        said = it.says()
        assert [type(each.header) for each in said] == [pdu.Reject]
        assert said[0].header.reason == pdu.REJECT_DATA_DIGEST_ERROR
        assert said[0].data[: pdu.BHS_BYTES] == bytes(wire[: pdu.BHS_BYTES])
        alive(it)


def test_digests_left_out() -> None:
    """What follows a header is taken for its digest, and is none."""
    with scene() as it:
        peer = it.login(**BOTH)
        it.send(encode(pdu.NopOut(opcode=0x40, initiator_task_tag=1, cmd_sn=peer.cmd_sn), b"no digests"))
        it.closed()


def test_digests_in_the_login_phase() -> None:
    """There are none, whatever is being agreed on: four more bytes are the beginning of the next PDU."""
    with scene() as it:
        it.peer.is_wild = True
        digested = Peer()
        digested.stream.header_digest = True
        request = login(flags(OPERATIONAL, FULL), identity(HeaderDigest="CRC32C"))
        header: Any = pdu.LoginRequest.unpack_from(request)
        it.send(digested.stream.encode(header, request[pdu.BHS_BYTES : pdu.BHS_BYTES + header.data_segment_length]))
        # What is read as text begins with the digest: no key, or no text at all.
        it.refused(0x02, 0x00)


@pytest.mark.parametrize("kind", [{"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}])
def test_one_of_the_two(kind: dict[str, str]) -> None:
    """Only what was agreed on is looked for."""
    with scene() as it:
        peer = it.login(**kind)
        it.send(write(peer, b"y" * BLOCK))
        said = it.says()
        assert [type(each.header) for each in said] == [pdu.ScsiResponse]
        assert said[0].header.status == scsi.GOOD
        alive(it)
