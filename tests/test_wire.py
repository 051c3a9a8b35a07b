"""A flat declaration becomes a codec that does what construct does, and nothing but flat declarations are taken."""

from __future__ import annotations

import struct
from typing import Any, ClassVar

import construct
import pytest
from construct import Byte, Bytes, Int8sb, Int8ub, Int16ub, Int16ul, Int24ub, Int32ub, Int64ub, Struct
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.wire import DeclarationError, Derived


class Sample(Derived):
    declaration = Struct(
        "kind" / Int8ub,
        "total" / Int8ub,
        "length" / Int24ub,
        "small" / Int16ub,
        "name" / Bytes(5),
        "large" / Int64ub,
        "word" / Int32ub,
    )
    defaults: ClassVar[dict[str, int]] = {"kind": 7}


SAMPLE_BYTES = 1 + 4 + 2 + 5 + 8 + 4


def derive(*fields: Any, **more: Any) -> Any:
    return type(Derived)("Made", (Derived,), {"declaration": Struct(*fields), **more})


def test_size_and_fields() -> None:
    """The declaration's own size and order."""
    assert SAMPLE_BYTES == Sample.SIZE == Sample.declaration.sizeof()
    assert Sample.FIELDS == ("kind", "total", "length", "small", "name", "large", "word")


def test_defaults() -> None:
    """Fields start at zero, or at the class's defaults."""
    sample = Sample()
    assert sample.kind == 7
    assert sample.name == bytes(5)
    assert sample.as_dict()["length"] == 0


@given(st.binary(min_size=SAMPLE_BYTES, max_size=SAMPLE_BYTES))
def test_interpreted_is_derived(data: bytes) -> None:
    """construct and the derived codec read the same values from any bytes, and write the same bytes."""
    interpreted = Sample.declaration.parse(data)
    sample = Sample.unpack_from(data)
    assert sample.as_dict() == {name: interpreted[name] for name in Sample.FIELDS}
    assert sample.pack() == data == Sample.declaration.build(sample.as_dict())


@given(st.binary(max_size=SAMPLE_BYTES - 1))
def test_a_truncated_buffer_raises(data: bytes) -> None:
    with pytest.raises(struct.error):
        Sample.unpack_from(data)


def test_bytes_behind_are_left_alone() -> None:
    """Unpacking takes SIZE bytes from the offset; packing into a buffer touches no others."""
    data = bytes(range(SAMPLE_BYTES))
    assert Sample.unpack_from(b"??" + data + b"!!!", 2) == Sample.unpack_from(data)
    room = bytearray(b"x" * (SAMPLE_BYTES + 4))
    Sample.unpack_from(data).pack_into(room, 2)
    assert room == b"xx" + data + b"xx"


def test_packing_into_too_little_room_raises() -> None:
    with pytest.raises(struct.error):
        Sample().pack_into(bytearray(SAMPLE_BYTES - 1))


@pytest.mark.parametrize(
    ("field", "value"), [("kind", 256), ("kind", -1), ("length", 1 << 24), ("length", -1), ("large", 1 << 64)]
)
def test_a_value_that_does_not_fit_raises(field: str, value: int) -> None:
    """Never truncated into the neighbour's bits."""
    sample = Sample()
    setattr(sample, field, value)
    with pytest.raises(struct.error):
        sample.pack()


@pytest.mark.parametrize(
    "field",
    [
        "x" / Int16ul,
        "x" / Int8sb,
        "x" / construct.Float32b,
        "x" / construct.VarInt,
        "x" / construct.GreedyBytes,
        "x" / Bytes(lambda this: 3),
        "x" / construct.BytesInteger(3, signed=True),
        "x" / construct.BytesInteger(3, swapped=True),
        "x" / construct.BytesInteger(5),
        "x" / construct.BytesInteger(lambda this: 4),
        "x" / construct.Array(2, Byte),
        "x" / construct.Enum(Byte, one=1),
        "x" / construct.BitStruct("a" / construct.BitsInteger(8)),
        "x" / Struct("inner" / Byte),
        "x" / construct.Const(b"ab"),
        "x" / construct.Padded(4, Byte),
        "x" / construct.Computed(1),
        "x" / construct.Rebuild(Byte, 1),
        construct.Padding(3),
        Int8ub,
    ],
    ids=lambda field: type(getattr(field, "subcon", field)).__name__,
)
def test_what_is_not_flat_is_refused_at_import(field: Any) -> None:
    """Only named big-endian unsigned integers and Bytes(n)."""
    with pytest.raises(DeclarationError):
        derive("head" / Int8ub, field)


@pytest.mark.parametrize("before", [[], ["a" / Int16ub], ["a" / Bytes(1)], ["a" / Int8ub, "b" / Int24ub]])
def test_24_bits_follow_a_single_byte(before: list[Any]) -> None:
    """They share a word with it; elsewhere they can't be derived."""
    with pytest.raises(DeclarationError):
        derive(*before, "length" / Int24ub)


def test_a_default_for_no_field_is_refused() -> None:
    with pytest.raises(DeclarationError):
        derive("a" / Int8ub, defaults={"b": 1})


@pytest.mark.parametrize("name", ["a", "two words", "class", "1st", "x=0): pass #"])
def test_a_name_that_is_taken_or_none_is_refused(name: str) -> None:
    """Names become source text, and two fields of one name would silently be one."""
    with pytest.raises(DeclarationError):
        derive("a" / Int8ub, name / Int8ub)


def test_values_not_identity() -> None:
    """Equal by type and fields; not hashable; shows its fields but not the reserved ones."""
    assert Sample(small=3) == Sample(small=3) != Sample(small=4)
    assert Sample() != object()
    with pytest.raises(TypeError):
        hash(Sample())
    shown = repr(derive("reserved_0" / Int8ub, "b" / Bytes(2))(b=b"\x01\x02"))
    assert shown == "Made(b=0102)"


def test_fields_are_slots() -> None:
    """A misspelt field is an error, not a new attribute."""
    sample = Sample()
    with pytest.raises(AttributeError):
        sample.smal = 1
    with pytest.raises(TypeError):
        Sample(smal=1)
