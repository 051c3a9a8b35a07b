"""Bytes → headers and payload (RFC 7143 section 11.1), two-phase and without a copy.

The socket is read into ``buffers()``: a small scratch area for headers, or the very memory that payload belongs in
(slices of the shared segment), with the scratch behind it for the header that follows. How much scratch is offered
follows the traffic: behind large data segments just one header, so that the next payload can't fall into the scratch;
else 16 KiB, so that several small PDUs come with one system call, and 64 KiB once a run of small writes has shown that
they go on. Payload that did fall into the scratch is copied once: less than 16 KiB of it, but for the first large one
behind such a run.

The owner is asked where each PDU's payload goes (``begin``) and told when it is whole (``finish``). This module knows
lengths and padding, and nothing of what a PDU means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iscsi_ovs import pdu
from iscsi_ovs.errors import ConnectionAbortError
from iscsi_ovs.wire import Derived

LARGE_SEGMENT_BYTES = 16384  # from here on payload is never offered the scratch
_EXPOSURE_BYTES = LARGE_SEGMENT_BYTES  # scratch offered while PDUs are small
_RUN_EXPOSURE_BYTES = 65536  # … and while small data segments come one behind the other
_RUN = 8  # so many make a run
_AHS_BYTES_MAX = 255 * 4
_SCRATCH_BYTES = _RUN_EXPOSURE_BYTES + pdu.BHS_BYTES + _AHS_BYTES_MAX + 8

# Where payload goes that nobody wants. Shared by all connections: it is never read.
_SINK = memoryview(bytearray(65536))


def sink(length: int) -> list[memoryview]:
    """Views that swallow ``length`` bytes (Data-Out for a dead task, for one)."""
    whole, rest = divmod(length, len(_SINK))
    return [_SINK] * whole + ([_SINK[:rest]] if rest else [])


def is_sink(views: Sequence[memoryview]) -> bool:
    """Are these views of sink()? What went there can't be read."""
    return bool(views) and views[0].obj is _SINK.obj


class Owner(Protocol):
    """Whose PDUs these are."""

    max_data_segment_bytes: int  # what we declared as MaxRecvDataSegmentLength

    def begin(self, header: Derived, additional: bytes) -> Sequence[memoryview]:
        """A header is whole: where does its data segment go? Views of exactly DataSegmentLength bytes."""

    def finish(self) -> None:
        """The data segment of the last ``begin`` is whole (called at once where there is none)."""

    def data_digest_failed(self) -> None:
        """In place of ``finish``: the data segment is whole, and not what was sent (session.digest only)."""

    def take_commands(self, scratch: memoryview, start: int, end: int) -> tuple[int, int]:
        """Take what can be taken whole of ``scratch[start:end]``: where that ends, and its data segments."""


class Framing:
    """The receiving half of one connection."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = 0  # unparsed bytes of the scratch: [start, end)
        self._end = 0
        self._pending: list[memoryview] = []  # what is still to come of the current data segment
        self._pending_bytes = 0
        self._padding = 0  # bytes to skip before the next header
        self._exposure = _EXPOSURE_BYTES
        self._run = 0  # small data segments in a row
        self.is_paused = False  # nothing more is parsed or read until the owner says so

    def buffers(self) -> list[memoryview]:
        """Where the next bytes from the socket go, in order."""
        assert not self.is_paused
        scratch = self._scratch[self._end : self._exposure + self._padding]
        if not scratch:  # a header with additional segments
            scratch = self._scratch[self._end :]
        if self._pending:
            return [*self._pending, scratch]
        return [scratch]

    def let_go(self) -> None:
        """Nothing more will come: 64 KiB need not wait for a garbage collection, and there may be thousands of us."""
        self._scratch = memoryview(b"")
        self._pending = []
        self._start = self._end = 0

    @property
    def is_between_pdus(self) -> bool:
        """True where no PDU is half received."""
        return not self._pending and self._start == self._end

    def received(self, count: int) -> None:
        """``count`` bytes were put into ``buffers()``. Raises what the owner raises, or ConnectionAbortError."""
        if self._pending:
            if count < self._pending_bytes:
                self._advance(count)
                return
            count -= self._pending_bytes
            self._pending = []
            self._pending_bytes = 0
            self._end += count
            self._owner.finish()
        else:
            self._end += count
        self.parse()

    def _advance(self, count: int) -> None:
        """Part of the data segment is there."""
        self._pending_bytes -= count
        pending = self._pending
        at = 0
        while count >= len(pending[at]):
            count -= len(pending[at])
            at += 1
        self._pending = [pending[at][count:], *pending[at + 1 :]]

    def parse(self) -> None:
        """Every PDU that is whole, or whose header is."""
        while not self.is_paused:
            if self._end - self._start >= pdu.BHS_BYTES and not self._padding:
                self._take_commands()
            if not self._parse_one():
                break
        start = self._start
        if start and not self.is_paused:
            rest = self._end - start
            if rest:
                self._scratch[:rest] = bytes(self._scratch[start : self._end])
            self._start, self._end = 0, rest

    def _take_commands(self) -> None:
        """SCSI Commands as they mostly are go through in a run."""
        start, segments = self._owner.take_commands(self._scratch, self._start, self._end)
        if start != self._start:
            self._start = start
            self._run += segments
            self._exposure = _RUN_EXPOSURE_BYTES if segments and self._run >= _RUN else _EXPOSURE_BYTES

    def _parse_one(self) -> bool:
        start = self._start
        have = self._end - start
        if self._padding:
            skip = self._padding if self._padding < have else have
            self._padding -= skip
            self._start = start = start + skip
            have -= skip
        if have < pdu.BHS_BYTES:
            return False
        scratch = self._scratch
        declared = pdu.PDUS.get(scratch[start] & pdu.OPCODE_MASK, pdu.Header)
        header = declared.unpack_from(scratch, start)
        length: int = header.data_segment_length
        if length > self._owner.max_data_segment_bytes:
            raise self._too_long(header)
        additional = b""
        begin = start + pdu.BHS_BYTES
        if header.total_ahs_length:
            ahs = header.total_ahs_length * 4
            if have < pdu.BHS_BYTES + ahs:
                return False
            additional = bytes(scratch[begin : begin + ahs])
            begin += ahs
        views = self._owner.begin(header, additional)
        if length:
            if length >= LARGE_SEGMENT_BYTES:
                self._run = 0
                self._exposure = pdu.BHS_BYTES
            else:
                self._run += 1
                self._exposure = _EXPOSURE_BYTES if self._run < _RUN else _RUN_EXPOSURE_BYTES
            self._padding = -length & 3
            self._start = self._place(views, begin, length)
            if self._pending:
                return False
        else:
            self._exposure = _EXPOSURE_BYTES
            self._start = begin
        self._owner.finish()
        return True

    def _too_long(self, header: Derived) -> ConnectionAbortError:
        return ConnectionAbortError(
            f"DataSegmentLength {header.data_segment_length} is more than our MaxRecvDataSegmentLength "
            f"{self._owner.max_data_segment_bytes} (opcode {header.opcode & pdu.OPCODE_MASK:#04x})"
        )

    def _place(self, views: Sequence[memoryview], begin: int, length: int) -> int:
        """Copy what the scratch holds of a data segment, the rest is pending. Returns where the scratch goes on."""
        end = min(self._end, begin + length)
        if end - begin == length and len(views) == 1:
            views[0][:] = self._scratch[begin:end]
            return end
        at = begin
        rest: list[memoryview] = []
        for view in views:
            piece = min(len(view), end - at)
            if piece:
                view[:piece] = self._scratch[at : at + piece]
                at += piece
            if piece < len(view):
                rest.append(view[piece:])
        self._pending = rest
        self._pending_bytes = length - (end - begin)
        assert sum(map(len, rest)) == self._pending_bytes, "the owner's views have another length than the segment"
        if rest:
            self._end = end  # all of the scratch was this PDU's
        return end
