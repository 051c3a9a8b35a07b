"""A file → sections. Every error names the file, the path of the key, and for a key or name that is not known the
nearest one that is.

A table is walked by its class, so that the path is exact down to the names that the operator chose; single values are
msgspec's to check.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from iscsi_ovs.config import sections
from iscsi_ovs.errors import ConfigurationError

FILE_LIMIT_BYTES = 16 << 20
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file: what an error begins with."""

    file: Path
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: str) -> Place:
        return Place(self.file, (*self.keys, key if _BARE.fullmatch(key) else f'"{key}"'))

    def __getitem__(self, index: int) -> Place:
        return Place(self.file, (*self.keys[:-1], f"{self.keys[-1]}[{index}]"))

    def __str__(self) -> str:
        return f"{self.file}: {'.'.join(self.keys)}" if self.keys else str(self.file)

    def error(self, message: str) -> ConfigurationError:
        return ConfigurationError(f"{self}: {message}")

    def unknown(self, what: str, name: str, known: Iterable[str]) -> ConfigurationError:
        """``name`` is not one of those that are known."""
        near = difflib.get_close_matches(name, sorted(known), 1, 0.0)
        return self.error(f"there is no {what} {name!r}" + (f"; the nearest is {near[0]!r}" if near else ""))


def read(path: Path) -> sections.Root:
    """The sections of a file. Raises ConfigurationError."""
    place = Place(path)
    text, mode = read_text(path)
    try:
        document = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError is one; int() of some thousand digits raises a plain one
        raise place.error(f"{error}") from None
    except RecursionError:
        raise place.error("brackets are nested too deeply") from None
    root: sections.Root = _table(document, sections.Root, place)
    if _has_secret(root):
        check_private(path, mode, "it has secrets in it")
    return root


def read_text(path: Path) -> tuple[str, int]:
    """A small text file, and its mode."""
    try:
        with open(path, "rb", opener=_open) as file:  # Path.open() takes no opener
            mode = os.fstat(file.fileno()).st_mode  # of the file that is read, not of what has its name now
            if not stat.S_ISREG(mode):
                raise ConfigurationError(f"{path} is no regular file")
            data = file.read(FILE_LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"can't read {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"can't read {str(path)!r}: there is a NUL in the name") from None
    if len(data) > FILE_LIMIT_BYTES:
        raise ConfigurationError(f"{path} has more than {FILE_LIMIT_BYTES} bytes")
    try:
        return data.decode(), mode
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8, at byte {error.start}") from None


def _open(path: str, flags: int) -> int:
    """A FIFO is opened at once, and refused, whether or not anybody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def check_private(path: Path, mode: int, why: str) -> None:
    """A file with secrets is its owner's alone."""
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        raise ConfigurationError(
            f"{path} has mode {stat.S_IMODE(mode):04o}, and {why}: group or others may read it; chmod 600 {path}"
        )


def _has_secret(root: sections.Root) -> bool:
    accounts = [chap for group in root.auth_group.values() for chap in [*group.chap, group.mutual] if chap is not None]
    return any(chap.secret is not None for chap in accounts)


# Values ---------------------------------------------------------------------------------------------------------------


def _value(value: Any, kind: Any, place: Place) -> Any:
    """A value as its type; containers are walked, so that what is wrong in them has its path."""
    if _is_section(kind):
        return _table(value, kind, place)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        of_tables = [argument for argument in arguments if _is_section(argument)]
        if of_tables and isinstance(value, dict):
            return _table(value, of_tables[0], place)
    elif origin is dict and isinstance(value, dict):
        return {key: _value(item, arguments[1], place / key) for key, item in value.items()}
    elif origin is list and isinstance(value, list) and _is_section(arguments[0]):
        return [_value(item, arguments[0], place[number]) for number, item in enumerate(value)]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        words, _, within = str(error).partition(" - at `$")
        raise ConfigurationError(f"{place}{within.removesuffix('`')}: {_words(words, kind)}") from None


def _words(words: str, kind: Any) -> str:
    """msgspec's, and what could stand there instead."""
    if words.startswith("Invalid enum value "):
        return f"{words.removeprefix('Invalid enum value ')} is none of {', '.join(map(str, _choices(kind)))}"
    return f"{words[:1].lower()}{words[1:]}".replace("object", "table")


def _choices(kind: Any) -> list[Any]:
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [choice for argument in get_args(kind) for choice in _choices(argument)]


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, sections.Section)


def _table(value: Any, kind: Any, place: Place) -> Any:
    if not isinstance(value, dict):
        raise place.error("a table is expected")
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    found: dict[str, str] = {}
    for key in value:
        name = key.replace("_", "-")  # secret_file, as some write it
        if name not in fields:
            raise place.unknown("key", key, fields)
        if name in found:
            raise place.error(f"the key {name!r} stands there twice")
        found[name] = key
    for name, field in fields.items():
        if field.required and name not in found:
            raise place.error(f"the key {name!r} is missing")
    return kind(
        **{fields[name].name: _value(value[key], fields[name].type, place / key) for name, key in found.items()}
    )
