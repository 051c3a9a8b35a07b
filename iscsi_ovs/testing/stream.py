"""PDUs to bytes and bytes to PDUs, for a testing initiator: lengths, padding, digests (RFC 7143 section 11.1, 13.1).

Digests are off until the login has agreed on them. ``spoil`` makes wrong ones on demand; a wrong one from the target
raises ViolationError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from crc32c import crc32c

from iscsi_ovs import pdu
from iscsi_ovs.testing.results import Received, ViolationError

Buffer = bytes | bytearray | memoryview

DIGEST_BYTES = 4


def digest(*pieces: Buffer) -> bytes:
    """The CRC32C of these bytes as it goes over the wire."""
    value = 0
    for piece in pieces:
        value = crc32c(piece, value)
    return value.to_bytes(DIGEST_BYTES, "little")


def encode(header: pdu.Pdu, data: Buffer = b"", ahs: bytes = b"") -> bytes:
    """A PDU as it goes over the wire: lengths filled in, segments padded, no digests."""
    header.data_segment_length = len(data)
    header.total_ahs_length = (len(ahs) + 3) // 4
    return b"".join(
        (header.pack(), ahs, bytes(pdu.pad_bytes(len(ahs))), data, bytes(pdu.pad_bytes(len(data))))
    )  # fmt: skip


class Stream:
    """Both directions of one connection."""

    def __init__(self) -> None:
        self.header_digest = False
        self.data_digest = False
        # Asked for each PDU that is sent: which of its digests shall be wrong?
        self.spoil: Callable[[pdu.Pdu], Literal["header", "data"] | None] | None = None
        self._out = bytearray()
        self._in = bytearray()

    def take(self) -> bytes:
        """What is to be sent."""
        data = bytes(self._out)
        self._out.clear()
        return data

    def put(self, data: Buffer) -> None:
        """Send these very bytes."""
        self._out += data

    def encode(self, header: pdu.Pdu, data: Buffer = b"", ahs: bytes = b"") -> bytes:
        """A PDU as it goes over the wire now."""
        whole = encode(header, data, ahs)
        if not self.header_digest and not self.data_digest:
            return whole
        spoilt = None if self.spoil is None else self.spoil(header)
        split = pdu.BHS_BYTES + header.total_ahs_length * 4
        pieces = [whole[:split]]
        if self.header_digest:
            pieces.append(_spoilt(digest(pieces[0]), spoilt == "header"))
        if len(data):
            pieces.append(whole[split:])
            if self.data_digest:
                pieces.append(_spoilt(digest(pieces[-1]), spoilt == "data"))
        return b"".join(pieces)

    def feed(self, data: Buffer) -> Iterator[Received]:
        """Take what came, in pieces of any size; yield each PDU that it completes."""
        self._in += data
        while (received := self._next()) is not None:
            yield received

    def _next(self) -> Received | None:
        got = self._in
        if len(got) < pdu.BHS_BYTES:
            return None
        try:
            header = pdu.decode(got)
        except KeyError:
            raise ViolationError(f"no such opcode: {got[0]:#04x}") from None
        header_end = pdu.BHS_BYTES + header.total_ahs_length * 4
        start = header_end + (DIGEST_BYTES if self.header_digest else 0)
        data_end = start + header.data_segment_length
        padded_end = data_end + pdu.pad_bytes(header.data_segment_length)
        has_data_digest = self.data_digest and header.data_segment_length > 0
        total = padded_end + (DIGEST_BYTES if has_data_digest else 0)
        if len(got) < total:
            return None
        if self.header_digest and got[header_end:start] != digest(got[:header_end]):
            raise ViolationError(f"a wrong header digest on {header!r}")
        if has_data_digest and got[padded_end:total] != digest(got[start:padded_end]):
            raise ViolationError(f"a wrong data digest on {header!r}")
        received = Received(header, bytes(got[start:data_end]), bytes(got[pdu.BHS_BYTES : header_end]))
        del got[:total]
        return received


def _spoilt(value: bytes, is_spoilt: bool) -> bytes:
    return bytes((value[0] ^ 0x10, *value[1:])) if is_spoilt else value
