"""Recorded sessions as PDUs: each connection's bytes cut into basic header, additional headers, data and padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from iscsi_ovs import pdu
from tests.traces import pcapng

HERE = Path(__file__).parent
TRACES = sorted(path.stem for path in HERE.glob("*.pcapng"))


@dataclass(frozen=True, slots=True)
class RecordedPdu:
    """One PDU as it was on the wire; no recorded session negotiated digests."""

    from_initiator: bool
    header: bytes
    additional: bytes
    data: bytes
    padding: bytes

    @property
    def opcode(self) -> int:
        return self.header[0] & pdu.OPCODE_MASK

    @property
    def wire(self) -> bytes:
        return self.header + self.additional + self.data + self.padding

    def decode(self) -> pdu.Pdu:
        return pdu.decode(self.header)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A trace, its connections as lists of PDUs in the order in which they were complete."""

    name: str
    facts: dict[str, str]  # size, uuid, region, portal
    connections: list[list[RecordedPdu]]

    def pdus(self, from_initiator: bool) -> Iterator[RecordedPdu]:
        for connection in self.connections:
            yield from (each for each in connection if each.from_initiator is from_initiator)


def path_of(name: str) -> Path:
    return HERE / f"{name}.pcapng"


def load(name: str) -> Recorded:
    trace = pcapng.read(path_of(name))
    facts = dict(pair.split("=", 1) for pair in trace.comment.splitlines()[-1].split())
    return Recorded(name, facts, [list(cut(connection)) for connection in trace.connections])


def cut(connection: pcapng.Connection) -> Iterator[RecordedPdu]:
    """The PDUs of both directions; what is left over at the end would be a PDU that nobody finished."""
    pending = {True: bytearray(), False: bytearray()}
    for from_initiator, chunk in connection.chunks:
        buffer = pending[from_initiator]
        buffer += chunk
        while len(buffer) >= pdu.BHS_BYTES:
            additional = 4 * buffer[4]
            length = int.from_bytes(buffer[5:8], "big")
            start = pdu.BHS_BYTES + additional
            end = start + length + pdu.pad_bytes(length)
            if len(buffer) < end:
                break
            whole = bytes(buffer[:end])
            del buffer[:end]
            header, rest = whole[: pdu.BHS_BYTES], whole[pdu.BHS_BYTES : start]
            yield RecordedPdu(from_initiator, header, rest, whole[start : start + length], whole[start + length :])
    assert not pending[True], "the initiator's last PDU is cut"
    assert not pending[False], "the target's last PDU is cut"
