"""Header and data digests: CRC32C behind the header and behind the data segment (RFC 7143 sections 7.8, 11.1, 13.1).

``DigestFraming`` and ``DigestOutbox`` take the place of a connection's framing and outbox when its login has agreed on
digests; a connection without them knows nothing of this file. Both read payload where it lies, in the slots of the
shared segment: nothing is copied. A wrong header digest ends the connection: at ErrorRecoveryLevel 0 nobody can say
where the next PDU begins. A wrong data digest is told to the owner, once the PDU is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crc32c import crc32c

from iscsi_ovs import pdu
from iscsi_ovs.errors import ConnectionAbortError
from iscsi_ovs.session.framing import LARGE_SEGMENT_BYTES, Framing, is_sink
from iscsi_ovs.session.outbox import Outbox

DIGEST_BYTES = 4


def digest(value: int) -> bytes:
    """A CRC32C as it goes over the wire (RFC 7143's examples: 32 zero bytes have aa 36 91 8a)."""
    return value.to_bytes(DIGEST_BYTES, "little")


class DigestFraming(Framing):
    """Framing of a connection with digests. It goes on where ``plain`` stands, between two PDUs."""

    def __init__(self, plain: Framing, has_header_digest: bool, has_data_digest: bool) -> None:
        vars(self).update(vars(plain))
        self._header_digest_bytes = DIGEST_BYTES if has_header_digest else 0
        self._data_digest_bytes = DIGEST_BYTES if has_data_digest else 0
        self._views: Sequence[memoryview] | None = None  # of the data segment that is being received
        self._trailer_bytes = 0  # its padding and its digest

    def buffers(self) -> list[memoryview]:
        assert not self.is_paused
        trailer_bytes = self._padding if self._views is None else self._trailer_bytes
        scratch = self._scratch[self._end : self._exposure + self._header_digest_bytes + trailer_bytes]
        if not scratch:  # a header with additional segments
            scratch = self._scratch[self._end :]
        return [*self._pending, scratch]

    @property
    def is_between_pdus(self) -> bool:
        return self._views is None and super().is_between_pdus

    def received(self, count: int) -> None:
        if self._pending:
            if count < self._pending_bytes:
                self._advance(count)
                return
            count -= self._pending_bytes
            self._pending = []
            self._pending_bytes = 0
        self._end += count
        self.parse()

    def _take_commands(self) -> None:
        """The short way for plain commands knows no digests."""

    def _parse_one(self) -> bool:
        if self._views is not None:
            return self._end_segment()
        if self._padding:  # of the Login Request that was the last PDU without digests
            skip = min(self._padding, self._end - self._start)
            self._padding -= skip
            self._start += skip
        scratch, start = self._scratch, self._start
        if self._end - start < pdu.BHS_BYTES:
            return False
        header = pdu.PDUS.get(scratch[start] & pdu.OPCODE_MASK, pdu.Header).unpack_from(scratch, start)
        header_end = start + pdu.BHS_BYTES + header.total_ahs_length * 4
        begin = header_end + self._header_digest_bytes
        if self._end < begin:
            return False
        # Nothing of a header is believed before its digest is right.
        if begin != header_end and digest(crc32c(scratch[start:header_end])) != scratch[header_end:begin]:
            raise ConnectionAbortError(f"header digest error (opcode {scratch[start] & pdu.OPCODE_MASK:#04x}, perhaps)")
        length: int = header.data_segment_length
        if length > self._owner.max_data_segment_bytes:
            raise self._too_long(header)
        views = self._owner.begin(header, bytes(scratch[start + pdu.BHS_BYTES : header_end]))
        self._exposure = pdu.BHS_BYTES if length >= LARGE_SEGMENT_BYTES else LARGE_SEGMENT_BYTES
        if not length:
            self._start = begin
            self._owner.finish()
            return True
        self._trailer_bytes = (-length & 3) + self._data_digest_bytes
        self._views = views
        self._start = self._place(views, begin, length)
        return not self._pending and self._end_segment()

    def _end_segment(self) -> bool:
        """The data segment is here: its padding and digest, too?"""
        start = self._start
        end = start + self._trailer_bytes
        if self._end < end:
            return False
        views, self._views = self._views, None
        assert views is not None
        self._start = end
        if not self._data_digest_bytes or is_sink(views):  # what nobody wants needs no digest
            self._owner.finish()
            return True
        value = 0
        for view in views:
            value = crc32c(view, value)
        digest_start = end - DIGEST_BYTES
        if digest_start != start:
            value = crc32c(self._scratch[start:digest_start], value)
        if digest(value) == self._scratch[digest_start:end]:
            self._owner.finish()
        else:
            self._owner.data_digest_failed()
        return True


class DigestOutbox(Outbox):
    """The outbox of a connection with digests. It goes on where ``plain`` stands.

    Whoever sends puts a PDU piece by piece: 48 bytes of header (we send no additional ones), then what its
    DataSegmentLength says, then padding. So each piece is known for what it is, and the digests stand where they must.
    """

    def __init__(self, plain: Outbox, has_header_digest: bool, has_data_digest: bool) -> None:
        vars(self).update(vars(plain))
        self._has_header_digest = has_header_digest
        self._has_data_digest = has_data_digest
        self._segment_bytes = 0  # still to come of the data segment and its padding
        self._value = 0  # its CRC32C so far

    def put(self, piece: bytes | memoryview) -> None:
        if not self._segment_bytes:
            assert len(piece) == pdu.BHS_BYTES, "the header of a PDU, whole"
            super().put(bytes(piece) + digest(crc32c(piece)) if self._has_header_digest else piece)
            length = int.from_bytes(piece[5:8], "big")
            self._segment_bytes = length + (-length & 3)
            self._value = 0
            return
        super().put(piece)
        self._segment_bytes -= len(piece)
        assert self._segment_bytes >= 0, "more data than the header says"
        if self._has_data_digest:
            self._value = crc32c(piece, self._value)
            if not self._segment_bytes:
                super().put(digest(self._value))

    def put_payload(
        self, header: bytes, views: list[memoryview], length: int, padding: bytes, release: Callable[[], None]
    ) -> None:
        self.put(header)
        for view in views:
            self.put(view)
        if padding:
            self.put(padding)
        self.mark(release)
