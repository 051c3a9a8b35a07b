"""The vhost-user protocol on the wire, as QEMU's "Vhost-user Protocol" gives it: headers, payloads, one row a request.

A message is a header of three 32-bit words (request, flags, size of the payload) and the payload, all in the byte order
of the machine; descriptors come with it by SCM_RIGHTS. This file knows layouts and which of them a request must have;
what a request does is front_end.py's.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

HEADER = struct.Struct("<III")
VERSION = 0x1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8
MAX_PAYLOAD_BYTES = 4096
MAX_DESCRIPTORS = 8

U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # index, num
VRING_ADDRESS = struct.Struct("<IIQQQQ")  # index, flags, descriptor table, used ring, available ring, log
MEMORY_HEAD = struct.Struct("<II")  # regions, padding
REGION = struct.Struct("<QQQQ")  # guest address, size, user address, offset in the file
SINGLE_REGION = struct.Struct("<QQQQQ")  # padding, then a region
CONFIG_HEAD = struct.Struct("<III")  # offset, size, flags

# "Bits (0-7) of the payload contain the vring index. Bit 8 is the invalid FD flag."
VRING_INDEX_MASK = 0xFF
VRING_NO_DESCRIPTOR = 0x100


class Request(enum.IntEnum):
    """What the front end asks."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


CONFIG_CHANGED = 2  # what the back end says: VHOST_USER_BACKEND_CONFIG_CHANGE_MSG

PROTOCOL_FEATURES_BIT = 30  # VHOST_USER_F_PROTOCOL_FEATURES, among the device's features


class ProtocolFeature(enum.IntEnum):
    """Bits of GET_PROTOCOL_FEATURES that we offer."""

    MQ = 0
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    CONFIGURE_MEM_SLOTS = 15


PROTOCOL_FEATURES = sum(1 << feature for feature in ProtocolFeature)


class Kind(enum.Enum):
    """Of a descriptor."""

    MEMORY = "memory"
    KICK = "an eventfd"
    CALL = "an eventfd, or a pipe or socket of our own user's"  # User Mode Linux has a socket
    CHANNEL = "a socket"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request must look like. ``payload_bytes`` None: it says so itself; ``descriptors``: at most so many."""

    payload_bytes: int | None = 0
    descriptors: int = 0
    kind: Kind | None = None


# fmt: off
SHAPES: dict[int, Shape] = {
    Request.GET_FEATURES:          Shape(),
    Request.SET_FEATURES:          Shape(U64.size),
    Request.SET_OWNER:             Shape(),
    Request.RESET_OWNER:           Shape(),
    Request.SET_MEM_TABLE:         Shape(None, MAX_DESCRIPTORS, Kind.MEMORY),
    Request.SET_VRING_NUM:         Shape(VRING_STATE.size),
    Request.SET_VRING_ADDR:        Shape(VRING_ADDRESS.size),
    Request.SET_VRING_BASE:        Shape(VRING_STATE.size),
    Request.GET_VRING_BASE:        Shape(VRING_STATE.size),
    Request.SET_VRING_KICK:        Shape(U64.size, 1, Kind.KICK),
    Request.SET_VRING_CALL:        Shape(U64.size, 1, Kind.CALL),
    Request.SET_VRING_ERR:         Shape(U64.size, 1, Kind.CALL),
    Request.GET_PROTOCOL_FEATURES: Shape(),
    Request.SET_PROTOCOL_FEATURES: Shape(U64.size),
    Request.GET_QUEUE_NUM:         Shape(),
    Request.SET_VRING_ENABLE:      Shape(VRING_STATE.size),
    Request.SET_BACKEND_REQ_FD:    Shape(0, 1, Kind.CHANNEL),
    Request.GET_CONFIG:            Shape(None),
    Request.SET_CONFIG:            Shape(None),
    Request.GET_INFLIGHT_FD:       Shape(20),
    Request.SET_INFLIGHT_FD:       Shape(20, 1, Kind.MEMORY),
    Request.RESET_DEVICE:          Shape(),
    Request.GET_MAX_MEM_SLOTS:     Shape(),
    Request.ADD_MEM_REG:           Shape(SINGLE_REGION.size, 1, Kind.MEMORY),
    Request.REM_MEM_REG:           Shape(SINGLE_REGION.size, 1, Kind.MEMORY),
}
# fmt: on

assert list(SHAPES) == sorted(Request), "one row a request, in order"


class ProtocolError(Exception):
    """The front end, or the guest behind it, said what can't be: it loses its device."""


@dataclass(frozen=True, slots=True)
class Message:
    """One whole request. Its descriptors are the receiver's to close."""

    request: Request
    flags: int
    payload: bytes
    descriptors: list[int]

    @property
    def needs_reply(self) -> bool:
        return bool(self.flags & FLAG_NEED_REPLY)

    def u64(self) -> int:
        return int(U64.unpack_from(self.payload)[0])

    def vring_state(self) -> tuple[int, int]:
        """Index of the ring, and a number."""
        index, number = VRING_STATE.unpack_from(self.payload)
        return index, number


def encode(request: int, payload: bytes, flags: int = 0) -> bytes:
    return HEADER.pack(request, VERSION | flags, len(payload)) + payload


def reply(message: Message, payload: bytes) -> bytes:
    return encode(message.request, payload, FLAG_REPLY)


def decode_header(header: bytes) -> tuple[Request, int, int]:
    """Request, flags and size of the payload, checked as far as the header goes."""
    number, flags, size = HEADER.unpack(header)
    shape = SHAPES.get(number)
    if shape is None:
        raise ProtocolError(f"request {number}, which is not known or was not offered")
    name = Request(number).name
    if flags & VERSION_MASK != VERSION or flags & FLAG_REPLY:
        raise ProtocolError(f"{name} with flags {flags:#x}")
    if size > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"{name} with {size} bytes, at most {MAX_PAYLOAD_BYTES}")
    # Front ends differ in what they send with requests that need nothing: QEMU and Linux send eight bytes with some.
    if shape.payload_bytes is not None and size < shape.payload_bytes:
        raise ProtocolError(f"{name} with {size} bytes, it has {shape.payload_bytes}")
    return Request(number), flags, size


@dataclass(frozen=True, slots=True)
class RegionPlace:
    """Where a region of guest memory lies: for the guest, in the front end's address space, in its file."""

    guest_address: int
    size_bytes: int
    user_address: int
    file_offset: int


def decode_memory(payload: bytes) -> list[RegionPlace]:
    """The regions of SET_MEM_TABLE."""
    if len(payload) < MEMORY_HEAD.size:
        raise ProtocolError(f"SET_MEM_TABLE of {len(payload)} bytes")
    count, _ = MEMORY_HEAD.unpack_from(payload)
    if not 0 < count <= MAX_DESCRIPTORS or len(payload) < MEMORY_HEAD.size + count * REGION.size:
        raise ProtocolError(f"SET_MEM_TABLE of {count} regions in {len(payload)} bytes")
    return [RegionPlace(*REGION.unpack_from(payload, MEMORY_HEAD.size + n * REGION.size)) for n in range(count)]


def decode_region(payload: bytes) -> RegionPlace:
    """The region of ADD_MEM_REG or REM_MEM_REG."""
    return RegionPlace(*SINGLE_REGION.unpack_from(payload)[1:])


def decode_config(payload: bytes) -> tuple[int, int, bytes]:
    """Offset, size and bytes of GET_CONFIG or SET_CONFIG."""
    if len(payload) < CONFIG_HEAD.size:
        raise ProtocolError(f"a configuration message of {len(payload)} bytes")
    offset, size, _ = CONFIG_HEAD.unpack_from(payload)
    return offset, size, payload[CONFIG_HEAD.size :]
