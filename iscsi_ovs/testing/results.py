"""What a testing initiator learns: the PDUs it received, and what became of each request."""

from __future__ import annotations

from dataclasses import dataclass, field

from iscsi_ovs import pdu


class ViolationError(AssertionError):
    """The target did what RFC 7143 forbids."""


@dataclass(frozen=True, slots=True)
class Received:
    """One PDU from the target."""

    header: pdu.Pdu
    data: bytes = b""
    ahs: bytes = b""


@dataclass(slots=True)
class Result:
    """What became of one request. ``is_complete`` once the target has answered for good."""

    initiator_task_tag: int
    read_bytes: int = 0
    write_data: memoryview = field(default_factory=lambda: memoryview(b""))
    lun: int = 0
    cmd_sn: int = 0
    is_complete: bool = False
    status: int | None = None  # SCSI status
    response: int | None = None  # the response code of a SCSI, task management or logout response
    sense: bytes = b""
    data: bytearray = field(default_factory=bytearray)  # data-in, ping data or text
    data_in_pdus: int = 0
    r2ts: int = 0
    overflow: bool = False
    underflow: bool = False
    residual_count: int = 0
    header: pdu.Pdu | None = None  # of the final response
    reject_reason: int | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The answers of a text request, in order; keys may repeat."""
        return parse_pairs(bytes(self.data))

    @property
    def sense_key(self) -> int | None:
        """Of fixed (70h) or descriptor (72h) sense data."""
        if len(self.sense) < 4:
            return None
        return self.sense[2] & 0x0F if self.sense[0] & 0x7F < 0x72 else self.sense[1] & 0x0F

    @property
    def additional_sense(self) -> tuple[int, int] | None:
        """ASC and ASCQ."""
        if self.sense and self.sense[0] & 0x7F >= 0x72:
            return (self.sense[2], self.sense[3]) if len(self.sense) >= 4 else None
        return (self.sense[12], self.sense[13]) if len(self.sense) >= 14 else None


def parse_pairs(data: bytes) -> list[tuple[str, str]]:
    """Text to pairs, repeated keys and all."""
    pairs = []
    for piece in data.split(b"\0"):
        if piece:
            key, _, value = piece.decode().partition("=")
            pairs.append((key, value))
    return pairs
