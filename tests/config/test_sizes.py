"""Sizes and --volume, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import config
from iscsi_ovs.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("512B", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1KB", 1024),
        ("512M", 512 << 20),
        ("512 MiB", 512 << 20),
        (" 10G ", 10 << 30),
        ("1.5G", 3 << 29),
        ("0.5K", 512),
        ("2T", 2 << 40),
        ("1P", 1 << 50),
        ("8191P", 8191 << 50),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    """Bytes, or a number with a unit that is a power of 1024; parts of a unit are allowed."""
    assert config.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "+1", "1e3", "1_000", "0x10", "1,5G", "10 G B", "10iB", "1E", "٣G", "1G1M"]
)
def test_parse_size_refuses(text: str) -> None:
    """What is no size is repeated, and how one is written stands beside it."""
    with pytest.raises(
        ConfigurationError, match="write a number of bytes, or one with K, M, G or T behind it"
    ) as refused:
        config.parse_size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0", "at least one byte"),
        ("0.0001K", "at least one byte"),
        ("1.5", "no parts of a byte"),
        ("1.0B", "no parts of a byte"),
        ("8192P", "more than any volume"),
        ("9" * 30 + "P", "more than any volume"),
    ],
)
def test_parse_size_out_of_range(text: str, words: str) -> None:
    """Nothing, parts of a byte, and more than a file can have are refused by name."""
    with pytest.raises(ConfigurationError, match=words):
        config.parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1K"),
        (1536, "1.5K"),
        (10 << 30, "10G"),
        ((10 << 30) + 1, "10.0G"),
        (1 << 40, "1T"),
        (1 << 50, "1P"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    """The largest unit that leaves 1 or more; whole numbers where they are exact, one decimal where not."""
    assert config.format_size(size) == text


@given(st.integers(1, 1 << 20), st.sampled_from(["", "K", "M", "G", "T"]))
def test_sizes_that_are_whole_come_back(number: int, unit: str) -> None:
    """What is written without a decimal point means the same when it is read."""
    size = config.parse_size(f"{number}{unit}")
    text = config.format_size(size)
    if "." not in text:
        assert config.parse_size(text) == size
    else:
        assert config.parse_size(text) == pytest.approx(size, rel=0.06)


def test_parse_volume_option() -> None:
    """NAME=SIZE; the first = divides."""
    assert config.parse_volume_option("demo=10G") == ("demo", 10 << 30)


@pytest.mark.parametrize("text", ["demo", "=1G", "", "="])
def test_parse_volume_option_refuses(text: str) -> None:
    """Without a name or without = it is refused with an example."""
    with pytest.raises(ConfigurationError, match="write NAME=SIZE, for instance demo=10G"):
        config.parse_volume_option(text)
