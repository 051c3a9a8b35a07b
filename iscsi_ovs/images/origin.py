"""What an image is of, told in the image: a header extension of ours, which other programs skip.

It names the moment (a snapshot) that the image shows, and for a difference the moment that it stands on. A moment's
identity follows what it is, not where it is: a volume that was imported from an image has its moment too, so a
difference that was exported here fits there. JSON in the extension, so that it can grow; a newer format is refused.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from iscsi_ovs.images.image import ImageError

EXTENSION = 0x4F565331  # "OVS1"
FORMAT = 1

_Name = Annotated[str, msgspec.Meta(max_length=127)]
_Identity = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]


class Moment(msgspec.Struct, frozen=True):
    """A snapshot, by the names that it had where the image was made."""

    volume: _Name
    snapshot: _Name
    identity: _Identity
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}"


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    of: Moment
    since: Moment | None = None  # a difference
    format: Annotated[int, msgspec.Meta(ge=1)] = FORMAT


class _Format(msgspec.Struct, frozen=True):
    format: int = FORMAT


def encode(origin: Origin) -> tuple[int, bytes]:
    return EXTENSION, msgspec.json.encode(origin)


def decode(extensions: dict[int, bytes]) -> Origin | None:
    """None: the image was made by somebody else. ImageError: it says what can't be."""
    data = extensions.get(EXTENSION)
    if data is None:
        return None
    try:
        said = msgspec.json.decode(data, type=_Format).format
        if said > FORMAT:
            raise ImageError(f"what it says of its origin has format {said}, and up to {FORMAT} is known here")
        return msgspec.json.decode(data, type=Origin)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ImageError(f"what it says of its origin can't be read: {error}") from None
