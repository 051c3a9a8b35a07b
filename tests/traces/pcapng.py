"""Recorded TCP connections as a .pcapng file, written and read by hand: no capture rights, no third party.

A proxy sees bytes, not segments. Writing makes up the segments around them: IPv4 and TCP headers with right lengths,
checksums and sequence numbers, between two documentation addresses, each connection with its handshake and its end.
Reading undoes exactly that, and refuses a file in which a checksum or a sequence number is wrong.
Formats: pcapng (draft-ietf-opsawg-pcapng), LINKTYPE_RAW (101), RFC 791, RFC 9293.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

LINKTYPE_RAW = 101
INITIATOR, TARGET = IPv4Address("192.0.2.2"), IPv4Address("192.0.2.1")
TARGET_PORT = 3260
FIRST_INITIATOR_PORT = 50000
SEGMENT_BYTES = 32 * 1024  # of payload; an IPv4 packet holds 64 KiB

SECTION_HEADER, INTERFACE, ENHANCED_PACKET = 0x0A0D0D0A, 1, 6
BYTE_ORDER = 0x1A2B3C4D
OPTION_END, OPTION_COMMENT = 0, 1
FIN, SYN, PUSH, ACK = 0x01, 0x02, 0x08, 0x10


class TraceError(ValueError):
    """The file is not one that this module wrote."""


def _pad4(data: bytes) -> bytes:
    return data + bytes(-len(data) & 3)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of whole 16-bit words, an odd byte padded with zero."""
    data = data + bytes(len(data) & 1)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo_header(source: bytes, destination: bytes, length: int) -> bytes:
    return source + destination + struct.pack(">BBH", 0, 6, length)


@dataclass(slots=True)
class _Direction:
    sequence: int
    has_ended: bool = False


@dataclass(slots=True)
class _Flow:
    """One connection while it is recorded."""

    port: int
    initiator: _Direction = field(default_factory=lambda: _Direction(1000))
    target: _Direction = field(default_factory=lambda: _Direction(2000))


class Writer:
    """Writes connections into one file. Calls may come from several threads; their order is the order in the file."""

    def __init__(self, path: Path, comment: str) -> None:
        self._file = path.open("wb")
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._flows = 0
        text = comment.encode()
        options = struct.pack("<HH", OPTION_COMMENT, len(text)) + _pad4(text) + struct.pack("<HH", OPTION_END, 0)
        self._block(SECTION_HEADER, struct.pack("<IHHq", BYTE_ORDER, 1, 0, -1) + options)
        self._block(INTERFACE, struct.pack("<HHI", LINKTYPE_RAW, 0, 0))

    def _block(self, kind: int, body: bytes) -> None:
        length = struct.pack("<I", 12 + len(body))
        self._file.write(struct.pack("<I", kind) + length + body + length)

    def connect(self) -> _Flow:
        """A connection of its own, with its handshake."""
        with self._lock:
            flow = _Flow(FIRST_INITIATOR_PORT + self._flows)
            self._flows += 1
            self._segment(flow, True, SYN)
            self._segment(flow, False, SYN | ACK)
            self._segment(flow, True, ACK)
            return flow

    def data(self, flow: _Flow, from_initiator: bool, payload: bytes) -> None:
        """Bytes that went one way. To be called before they are passed on: no answer stands before its request."""
        with self._lock:
            for start in range(0, len(payload), SEGMENT_BYTES):
                self._segment(flow, from_initiator, PUSH | ACK, payload[start : start + SEGMENT_BYTES])

    def end(self, flow: _Flow, from_initiator: bool) -> None:
        """One side has no more to say."""
        with self._lock:
            direction = flow.initiator if from_initiator else flow.target
            if not direction.has_ended:
                direction.has_ended = True
                self._segment(flow, from_initiator, FIN | ACK)
                self._file.flush()

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _segment(self, flow: _Flow, from_initiator: bool, flags: int, payload: bytes = b"") -> None:
        ours, theirs = (flow.initiator, flow.target) if from_initiator else (flow.target, flow.initiator)
        addresses = (INITIATOR.packed, TARGET.packed)
        source, destination = addresses if from_initiator else addresses[::-1]
        ports = (flow.port, TARGET_PORT) if from_initiator else (TARGET_PORT, flow.port)
        acknowledged = theirs.sequence if flags & ACK else 0
        tcp = struct.pack(">HHIIBBHHH", *ports, ours.sequence, acknowledged, 5 << 4, flags, 0xFFFF, 0, 0)
        summed = checksum(_pseudo_header(source, destination, len(tcp) + len(payload)) + tcp + payload)
        tcp = tcp[:16] + struct.pack(">H", summed) + tcp[18:]
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp) + len(payload), 0, 0x4000, 64, 6, 0) + source + destination
        ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
        self._packet(ip + tcp + payload)
        ours.sequence = (ours.sequence + len(payload) + bool(flags & (SYN | FIN))) & 0xFFFFFFFF

    def _packet(self, packet: bytes) -> None:
        microseconds = int((time.monotonic() - self._started) * 1e6)
        head = struct.pack("<IIIII", 0, microseconds >> 32, microseconds & 0xFFFFFFFF, len(packet), len(packet))
        self._block(ENHANCED_PACKET, head + _pad4(packet))


@dataclass(slots=True)
class Connection:
    """One recorded connection: what each side said, in the order of the recording."""

    port: int
    chunks: list[tuple[bool, bytes]] = field(default_factory=list)  # (from the initiator?, bytes)

    def bytes_of(self, from_initiator: bool) -> bytes:
        return b"".join(data for sender, data in self.chunks if sender is from_initiator)


@dataclass(slots=True)
class Trace:
    """One file."""

    comment: str
    connections: list[Connection]


def _blocks(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(content):
        kind, length = struct.unpack_from("<II", content, at)
        if length < 12 or content[at + length - 4 : at + length] != struct.pack("<I", length):
            raise TraceError(f"the block at {at} is cut or its lengths differ")
        yield kind, content[at + 8 : at + length - 4]
        at += length


def read(path: Path) -> Trace:
    """A file that Writer wrote."""
    comment = ""
    connections: dict[int, Connection] = {}
    expected: dict[tuple[int, bool], int] = {}
    for kind, body in _blocks(path.read_bytes()):
        if kind == SECTION_HEADER:
            code, length = struct.unpack_from("<HH", body, 16)
            comment = body[20 : 20 + length].decode() if code == OPTION_COMMENT else ""
        elif kind == INTERFACE:
            if struct.unpack_from("<H", body)[0] != LINKTYPE_RAW:
                raise TraceError("not LINKTYPE_RAW")
        elif kind == ENHANCED_PACKET:
            length = struct.unpack_from("<I", body, 12)[0]
            _take(body[20 : 20 + length], connections, expected)
        else:
            raise TraceError(f"a block of kind {kind}")
    return Trace(comment, list(connections.values()))


def _take(packet: bytes, connections: dict[int, Connection], expected: dict[tuple[int, bool], int]) -> None:
    ip, tcp, payload = packet[:20], packet[20:40], packet[40:]
    if checksum(ip) or checksum(_pseudo_header(ip[12:16], ip[16:20], len(packet) - 20) + tcp + payload):
        raise TraceError("a checksum is wrong")
    from_initiator = ip[12:16] == INITIATOR.packed
    source_port, destination_port, sequence, _, _, flags = struct.unpack_from(">HHIIBB", tcp)
    port = source_port if from_initiator else destination_port
    side = (port, from_initiator)
    if flags & SYN:
        connections.setdefault(port, Connection(port))
    elif sequence != expected[side]:
        raise TraceError(f"a segment of port {port} is missing")
    expected[side] = (sequence + len(payload) + bool(flags & (SYN | FIN))) & 0xFFFFFFFF
    if payload:
        connections[port].chunks.append((from_initiator, payload))
