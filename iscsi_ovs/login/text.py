"""Texts: the key=value pairs of Login and Text PDUs (RFC 7143 sections 6.1, 6.2 and the C bit of 11.10.2).

``split`` and ``join`` are the two directions of one text. ``Accumulator`` puts together what a peer sent in pieces,
``Pager`` cuts what doesn't fit the peer's MaxRecvDataSegmentLength. Everything a peer can make grow has a limit here,
in force before it is authenticated. What a key means is not known in this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from iscsi_ovs import errors

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class TextLimits:
    """What one peer may make us hold. Section 6.1 asks for at least 8192 bytes of text, 64 KiB with long secrets."""

    text_bytes: int = 65536  # one text, put together from its pieces; all texts of one login
    keys: int = 128  # pairs in one text; in all texts of one login
    value_bytes: int = 8192
    data_segment_bytes: int = 8192  # of one Login Request: MaxRecvDataSegmentLength is at its default during login
    requests: int = 256  # Login Requests of one login; pieces of one text in full feature phase


class TextError(errors.ProtocolError):
    """A text that breaks section 6.1. Login answers with a status, full feature phase with a Reject."""


# "standard-label" of section 6.1, except that iSCSIProtocolLevel (RFC 7144) starts with a small letter, and
# that public extension keys were once written X#Key.
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # names go into logs, and logs to terminals


def _pair(piece: bytes, limits: TextLimits) -> Pair:
    key_bytes, equals, value_bytes = piece.partition(b"=")
    if not equals:
        raise TextError(f"no '=' in {piece[:63]!r}")
    if len(value_bytes) > limits.value_bytes:
        raise TextError(f"a value of {len(value_bytes)} bytes for {key_bytes[:63]!r}")
    try:
        key, value = key_bytes.decode("ascii"), value_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"not UTF-8: {piece[:63]!r}") from error
    if _KEY.fullmatch(key) is None:
        raise TextError(f"not a key: {key_bytes[:64]!r}")
    if _CONTROL.search(value) is not None:
        raise TextError(f"a control character in the value of {key}")
    return key, value


def split(data: bytes | bytearray | memoryview, limits: TextLimits | None = None) -> list[Pair]:
    """The pairs of a text, in order. Raises TextError for anything that section 6.1 does not allow.

    Section 6.1: "every key=value pair, including the last or only pair in a LTDS, MUST be followed by one null (0x00)
    delimiter". Up to three further NULs at the end are taken for padding that the sender counted.
    """
    limits = limits or TextLimits()
    text = bytes(data)
    if not text:
        return []
    if len(text) > limits.text_bytes:
        raise TextError(f"a text of {len(text)} bytes; {limits.text_bytes} are allowed")
    if text[-1]:
        raise TextError("the text does not end with NUL")
    if text.count(0) > limits.keys + 3:
        raise TextError(f"more than {limits.keys} keys in one text")
    stripped = text.rstrip(b"\0")
    if len(text) - len(stripped) > 4:
        raise TextError("NULs without a key")
    pairs = [_pair(piece, limits) for piece in stripped.split(b"\0")] if stripped else []
    if len(pairs) > limits.keys:
        raise TextError(f"more than {limits.keys} keys in one text")
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise TextError(f"{key} twice in one text")
        seen.add(key)
    return pairs


def join(pairs: Iterable[Pair]) -> bytes:
    """The text of these pairs. Repeated keys are our own affair (SendTargets answers repeat TargetName)."""
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


class Accumulator:
    """One text from the pieces of several PDUs (C bit set in all but the last), bounded by ``limits.text_bytes``."""

    __slots__ = ("_limits", "_pieces", "_text")

    def __init__(self, limits: TextLimits) -> None:
        self._limits = limits
        self._text = bytearray()
        self._pieces = 0

    def add(self, piece: bytes | memoryview) -> None:
        self._pieces += 1
        if self._pieces > self._limits.requests:
            raise TextError(f"a text in more than {self._limits.requests} pieces")
        if len(self._text) + len(piece) > self._limits.text_bytes:
            raise TextError(f"a text of more than {self._limits.text_bytes} bytes")
        self._text += piece

    def take(self) -> bytes:
        """The whole text; empty again afterwards."""
        text = bytes(self._text)
        self.clear()
        return text

    def clear(self) -> None:
        self._text.clear()
        self._pieces = 0

    def __bool__(self) -> bool:
        return self._pieces > 0


class Pager:
    """A text cut for a peer that takes ``page_bytes`` a PDU. A pair may span two pages: the C bit says so."""

    __slots__ = ("_offset", "_text")

    def __init__(self, text: bytes = b"") -> None:
        self._text = text
        self._offset = 0

    def page(self, page_bytes: int) -> bytes:
        """The next page; the last one frees the text."""
        page = self._text[self._offset : self._offset + page_bytes]
        self._offset += len(page)
        if self._offset >= len(self._text):
            self._text, self._offset = b"", 0
        return page

    def __bool__(self) -> bool:
        """Is there more to send?"""
        return bool(self._text)
