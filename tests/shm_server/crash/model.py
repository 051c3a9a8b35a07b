"""What may be found in a pool: for each block of 512 bytes the values that it may have, and which snapshots there are.

A value is the number of the write that it came from; its bytes say that number and the block's, over and over. Nothing
here is changed once it is made: a life (lives.py) keeps one *world* for each way in which a crash may end what is under
way, and notes them between the events of its recording.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

SECTOR = 512
GARBAGE = -1
_ZEROS = bytes(SECTOR)

Values = tuple[int, ...]


@lru_cache(1 << 16)
def pattern(value: int, block: int) -> bytes:
    """What a block has that write ``value`` wrote there."""
    return struct.pack("<QQ", value, block) * (SECTOR // 16) if value else _ZEROS


def values_of(content: bytes) -> Values:
    """GARBAGE: no write left that."""
    values = []
    for at in range(0, len(content), SECTOR):
        block = content[at : at + SECTOR]
        value = int.from_bytes(block[:8], "little")
        values.append(value if block == pattern(value, at // SECTOR) else GARBAGE)
    return tuple(values)


class Found(NamedTuple):
    """What was read of a volume."""

    blocks: Values
    snapshots: dict[str, Values]
    record: tuple[int, bytes]
    is_template: bool = False


@dataclass(frozen=True)
class Volume:
    blocks: tuple[Values, ...]  # what each may have, oldest first
    snapshots: Mapping[str, tuple[Values, ...]] = field(default_factory=dict)  # its content is one of these
    record: tuple[int, bytes] = (0, b"")
    is_template: bool = False

    @classmethod
    def certain(cls, found: Found) -> Volume:
        snapshots = {name: (values,) for name, values in found.snapshots.items()}
        return cls(tuple((value,) for value in found.blocks), snapshots, found.record, found.is_template)

    @property
    def latest(self) -> Values:
        return tuple(values[-1] for values in self.blocks)

    def written(self, first: int, count: int, value: int) -> Volume:
        """By a write that need not have come."""
        blocks = list(self.blocks)
        for block in range(first, first + count):
            blocks[block] = (*(each for each in blocks[block] if each != value), value)
        return replace(self, blocks=tuple(blocks))

    def settled(self, first: int = 0, count: int = 1 << 30) -> Volume:
        """What came last is there."""
        blocks = list(self.blocks)
        for block in range(first, min(first + count, len(blocks))):
            blocks[block] = blocks[block][-1:]
        return replace(self, blocks=tuple(blocks))

    def resized(self, count: int) -> Volume:
        return replace(self, blocks=self.blocks[:count] + ((0,),) * (count - len(self.blocks)))

    def kept(self, snapshot: str) -> Volume:
        """All that there is, by the name of ``snapshot``."""
        settled = self.settled()
        return replace(settled, snapshots={**self.snapshots, snapshot: (self.latest,)})

    def differs(self, found: Found) -> str:
        """How what was found is not as it may be; "" if it is."""
        if len(found.blocks) != len(self.blocks):
            return f"it has {len(found.blocks)} blocks, not {len(self.blocks)}"
        for number, (value, allowed) in enumerate(zip(found.blocks, self.blocks, strict=True)):
            if value not in allowed:
                return f"block {number} has {value}, not one of {allowed}"
        if found.snapshots.keys() != self.snapshots.keys():
            return f"it has the snapshots {sorted(found.snapshots)}, not {sorted(self.snapshots)}"
        for name, values in found.snapshots.items():
            if values not in self.snapshots[name]:
                (first, *_) = self.snapshots[name]
                where = [at for at, pair in enumerate(zip(values, first, strict=False)) if pair[0] != pair[1]]
                return f"snapshot {name} is another: blocks {where} of {len(values)}, it should have {len(first)}"
        if found.is_template is not self.is_template:
            return "it is a template" if found.is_template else "it is no template"
        if found.record != self.record:
            return f"its record is {found.record}, not {self.record}"
        return ""


World = dict[str, Volume]


class Expected(NamedTuple):
    """The first world is the one that those see who go on; the others are what a crash may leave instead."""

    boot: int
    after_death: tuple[World, ...]
    after_cut: tuple[World, ...]


def differs(world: World, found: Mapping[str, Found]) -> str:
    """How; "" if it does not."""
    if found.keys() != world.keys():
        return f"there are the volumes {sorted(found)}, not {sorted(world)}"
    for name, volume in world.items():
        if words := volume.differs(found[name]):
            return f"{name}: {words}"
    return ""


def none_of(worlds: tuple[World, ...], found: Mapping[str, Found]) -> str:
    """How it is none of them; "" if it is one."""
    words = [differs(world, found) for world in worlds]
    return "" if "" in words else " | ".join(words)


def certain(found: Mapping[str, Found]) -> World:
    return {name: Volume.certain(each) for name, each in found.items()}
