"""A flat construct declaration becomes a fast codec.

A format is declared once, in construct, as whole big-endian bytes: fixed-width unsigned integers and ``Bytes(n)``,
nothing else (flags are named masks on a whole byte). From that declaration ``Derived`` makes, at import, a slotted
class with one ``struct.Struct`` behind it: about 0.5 µs a header where construct itself takes 14. The declaration stays
the single source of truth; tests prove interpreted ≡ derived, on round trips and on random bytes.

Never ``construct.compile()`` on a peer's bytes: it drops length checks. ``unpack_from`` here raises struct.error where
the buffer is too short.
"""

from __future__ import annotations

import keyword
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import construct

_INTEGERS: dict[int, str] = {1: "B", 2: "H", 4: "I", 8: "Q"}

Self = TypeVar("Self", bound="Derived")


class DeclarationError(TypeError):
    """A declaration that is not flat: raised at import, for the programmer."""


def _integer_width(subcon: Any) -> int | None:
    """Bytes of an unsigned big-endian integer, None for anything else."""
    if isinstance(subcon, construct.FormatField):
        if subcon.fmtstr[0] == ">" and subcon.fmtstr[1] in "BHIQLQ" and subcon.fmtstr[1:] in ("B", "H", "L", "Q", "I"):
            return int(subcon.length)
        return None
    if isinstance(subcon, construct.BytesInteger) and not subcon.signed and not subcon.swapped:
        if not isinstance(subcon.length, int):
            return None
        return int(subcon.length)
    return None


class _Plan:
    """What the walk over a declaration found: the struct format, and how its items map to fields."""

    def __init__(self, declaration: Any) -> None:
        self.format = ">"
        self.names: list[str] = []
        self.defaults: dict[str, Any] = {}
        self.items: list[tuple[str, ...]] = []  # one struct item: one field, or (Int8ub, Int24ub) in one word
        self.limits: dict[str, int] = {}
        for renamed in declaration.subcons:
            self._add(renamed.name, renamed.subcon if isinstance(renamed, construct.Renamed) else renamed)

    def _add(self, name: str | None, subcon: Any) -> None:
        if not name:
            raise DeclarationError("every field of a flat declaration has a name")
        if not name.isidentifier() or keyword.iskeyword(name) or name in self.names:
            raise DeclarationError(f"{name}: field names are Python names, each once")
        width = _integer_width(subcon)
        if width == 3:
            # An RFC 7143 DataSegmentLength: its 24 bits share a word with the byte in front of them.
            if not self.items or self.format[-1] != "B":
                raise DeclarationError(f"{name}: a 24-bit integer follows an 8-bit one, or it can't be derived")
            self.format = self.format[:-1] + "I"
            self.items[-1] = (self.items[-1][0], name)
        elif width in _INTEGERS:
            self.format += _INTEGERS[width]
            self.items.append((name,))
        elif isinstance(subcon, construct.Bytes) and isinstance(subcon.length, int):
            self.format += f"{subcon.length}s"
            self.items.append((name,))
            self.defaults[name] = bytes(subcon.length)
        else:
            raise DeclarationError(f"{name}: only big-endian unsigned integers and Bytes(n) can be derived")
        self.names.append(name)
        self.defaults.setdefault(name, 0)

    def unpack_source(self) -> str:
        targets, after = [], []
        for number, item in enumerate(self.items):
            if len(item) == 1:
                targets.append(f"self.{item[0]}")
            else:
                targets.append(f"word{number}")
                after.append(f"    self.{item[0]} = word{number} >> 24")
                after.append(f"    self.{item[1]} = word{number} & 0xFFFFFF")
        return "\n".join(
            [
                "def unpack_from(cls, buffer, offset=0):",
                "    self = _new(cls)",
                f"    ({', '.join(targets)},) = _unpack_from(buffer, offset)",
                *after,
                "    return self",
            ]
        )

    def pack_arguments(self) -> str:
        arguments = []
        for item in self.items:
            if len(item) == 1:
                arguments.append(f"self.{item[0]}")
            else:
                arguments.append(f"(self.{item[0]} << 24 | _low24(self.{item[1]}))")
        return ", ".join(arguments)

    def init_source(self) -> str:
        parameters = ", ".join(f"{name}=_default_{name}" for name in self.names)
        body = "; ".join(f"self.{name} = {name}" for name in self.names)
        return f"def __init__(self, *, {parameters}):\n    {body}"


def _low24(value: int) -> int:
    if not 0 <= value <= 0xFFFFFF:
        raise struct.error(f"{value} does not fit in 24 bits")
    return value


class _DerivedMeta(type):
    """Reads ``declaration`` and ``defaults`` from a class body and gives the class its fields and its codec."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> _DerivedMeta:
        declaration = namespace.get("declaration")
        if declaration is None:
            return super().__new__(mcs, name, bases, {"__slots__": (), **namespace})
        plan = _Plan(declaration)
        codec = struct.Struct(plan.format)
        defaults = {**plan.defaults, **namespace.pop("defaults", {})}
        unknown = set(defaults) - set(plan.names)
        if unknown:
            raise DeclarationError(f"{name}: defaults for fields that are not declared: {sorted(unknown)}")
        scope: dict[str, Any] = {
            "_new": object.__new__,
            "_unpack_from": codec.unpack_from,
            "_pack": codec.pack,
            "_pack_into": codec.pack_into,
            "_low24": _low24,
            **{f"_default_{field}": value for field, value in defaults.items()},
        }
        arguments = plan.pack_arguments()
        # The generated text holds nothing but field names of the declaration above.
        exec(plan.init_source(), scope)
        exec(plan.unpack_source(), scope)
        exec(f"def pack(self):\n    return _pack({arguments})", scope)
        exec(f"def pack_into(self, buffer, offset=0):\n    _pack_into(buffer, offset, {arguments})", scope)
        namespace.update(
            __slots__=tuple(plan.names),
            __init__=scope["__init__"],
            unpack_from=classmethod(scope["unpack_from"]),
            pack=scope["pack"],
            pack_into=scope["pack_into"],
            unpack_items=codec.unpack_from,
            pack_items=codec.pack,
            SIZE=codec.size,
            FIELDS=tuple(plan.names),
        )
        return super().__new__(mcs, name, bases, namespace)


class Derived(metaclass=_DerivedMeta):
    """Base of every declared format: ``class X(Derived): declaration = construct.Struct(...)``."""

    SIZE: ClassVar[int]  # bytes
    FIELDS: ClassVar[tuple[str, ...]]
    declaration: ClassVar[Any] = None
    # The codec without the object, for the hot path: struct items in wire order, (Int8ub, Int24ub) as one word.
    unpack_items: ClassVar[Callable[..., tuple[Any, ...]]]
    pack_items: ClassVar[Callable[..., bytes]]

    if TYPE_CHECKING:  # the methods are generated from the declaration, one set a class

        def __init__(self, **fields: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...
        @classmethod
        def unpack_from(cls: type[Self], buffer: Any, offset: int = 0) -> Self: ...
        def pack(self) -> bytes: ...
        def pack_into(self, buffer: Any, offset: int = 0) -> None: ...

    def as_dict(self) -> dict[str, Any]:
        """Field names and values, in wire order."""
        return {name: getattr(self, name) for name in self.FIELDS}

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value.hex()}"
            for name, value in self.as_dict().items()
            if not name.startswith("reserved")
        )
        return f"{type(self).__name__}({shown})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.as_dict() == other.as_dict()

    __hash__ = None  # type: ignore[assignment]  # values change while a PDU is being built
