"""The control and management plane: typed messages on one Unix stream socket; the door of the messages' own rooms.

A message is a 4-byte little-endian length and so many bytes of msgpack, one tagged msgspec struct: at most 1 MiB from a
client, and 8 MiB from the server, which may have a long list to tell.
A request carries an ``id`` that its one reply repeats; events carry a ``sequence`` and are answered by ``Ack`` where
somebody waits for them. The reply to Attach brings four descriptors by SCM_RIGHTS, in this order: slot segment, ring
mapping, submission doorbell, completion doorbell. The end of the stream is the death of the peer.
"""

# ruff: noqa: F403  (a message is named where it is declared, and in its union; not here once more)

from __future__ import annotations

import errno
import struct

import msgspec

from shm_server.abi.answers import *
from shm_server.abi.answers import Event, Reply
from shm_server.abi.message import *
from shm_server.abi.message import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, Message
from shm_server.abi.requests import *
from shm_server.abi.requests import Request

LENGTH = struct.Struct("<I")

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Reply | Event] = msgspec.msgpack.Decoder(Reply | Event)


class ControlError(OSError):
    """A message that can't be: too long, not msgpack, unknown, or with a field of the wrong type (EPROTO)."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)


def encode(message: Message) -> bytes:
    """A message with its length in front."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload


class _Reader:
    """Cuts a byte stream into messages; fed as it comes."""

    limit_bytes: int  # of one message

    def __init__(self) -> None:
        self._buffer = bytearray()

    def _payloads(self, data: bytes) -> list[bytes]:
        buffer = self._buffer
        buffer += data
        payloads = []
        start = 0
        while len(buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, start)
            if length > self.limit_bytes:
                raise ControlError(f"a control message of {length} bytes (at most {self.limit_bytes})")
            if len(buffer) - start - LENGTH.size < length:
                break
            start += LENGTH.size
            payloads.append(bytes(buffer[start : start + length]))
            start += length
        del buffer[:start]
        return payloads


class RequestReader(_Reader):
    """The server's side: bytes in, requests out."""

    limit_bytes = MAX_REQUEST_BYTES

    def feed(self, data: bytes) -> list[Request]:
        """The requests that are now whole. Raises ControlError."""
        try:
            return [_request_decoder.decode(payload) for payload in self._payloads(data)]
        except msgspec.DecodeError as error:
            raise ControlError(f"a control message that can't be read: {error}") from None


class AnswerReader(_Reader):
    """The client's side: bytes in, replies and events out."""

    limit_bytes = MAX_ANSWER_BYTES

    def feed(self, data: bytes) -> list[Reply | Event]:
        """The replies and events that are now whole. Raises ControlError."""
        try:
            return [_answer_decoder.decode(payload) for payload in self._payloads(data)]
        except msgspec.DecodeError as error:
            raise ControlError(f"a control message that can't be read: {error}") from None
