"""What an image says of its origin: read as it was written, and refused where it can't be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.images import origin
from iscsi_ovs.images.image import ImageError

MONDAY = origin.Moment("data", "monday", "1" * 32, 1 << 30)
TUESDAY = origin.Moment("data", "tuesday", "2" * 32, 2 << 30)


@pytest.mark.parametrize("said", [origin.Origin(MONDAY), origin.Origin(TUESDAY, MONDAY)], ids=["whole", "difference"])
def test_round_trip(said: origin.Origin) -> None:
    """Of a whole image and of a difference."""
    assert origin.decode(dict([origin.encode(said)])) == said


def test_somebody_elses() -> None:
    """An image without it is no mistake."""
    assert origin.decode({0x6803F857: b"features"}) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "can't be read"),
        (b"{}", "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b'{"format": 2}', "format 2, and up to 1"),
        (origin.encode(origin.Origin(MONDAY))[1].replace(b'"size_bytes":1', b'"size_bytes":-1'), "can't be read"),
        (origin.encode(origin.Origin(MONDAY))[1].replace(b'"identity":"', b'"identity":"/'), "can't be read"),
    ],
)
def test_refused(data: bytes, words: str) -> None:
    """A newer format by number, anything else as unreadable."""
    with pytest.raises(ImageError, match=words):
        origin.decode({origin.EXTENSION: data})


@given(st.binary(max_size=200))
def test_hostile(data: bytes) -> None:
    """Nothing but an ImageError comes of any bytes."""
    try:
        origin.decode({origin.EXTENSION: data})
    except ImageError:
        pass
