"""The layers of one open chain, found by their numbers in the catalogue, which is how the resolved map names them.

A number stays good whatever becomes of the chain: layers are numbered in the order in which they come to lie on top, a
number is never used again, and a layer is only ever merged into the one right below it. So above the base numbers
ascend, and what a layer had that is not there any more is the next lower one's; below all of them is the base.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from shm_server.stores.base import Views, views_after
from shm_server.stores.layer import Layer
from shm_server.stores.owners import BASE, ZERO

_zeros = os.open("/dev/zero", os.O_RDONLY | os.O_CLOEXEC)


class Nobody:
    """Has the pages that read zeros; like a layer to who reads, and like its data."""

    def __init__(self) -> None:
        self.was_used = True
        self.open_reader = self.reader = self.data = self
        self.memory_descriptor = _zeros
        self.is_plain = self.is_writable = True

    def read_now(self, views: Views, _offset: int) -> int:
        return os.preadv(_zeros, views, 0)

    read_verified = read_now

    def read(self, views: Views, _offset: int) -> int:
        total = sum(map(len, views))
        done = 0
        while done < total:
            done += os.preadv(_zeros, views_after(views, done), 0)
        return total

    def extent(self, _offset: int, length: int) -> tuple[bool, int]:
        return False, length


NOBODY = Nobody()


class Stack(dict[int, Layer | Nobody]):
    """``stack[number]`` is the layer that has what layer ``number`` had. Any thread may look."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        """The base first."""
        super().__init__()
        self.base, *above = layers
        self._layers = {layer.file.number: layer for layer in above}
        self._numbers = sorted(self._layers)
        self.top = above[-1] if above else self.base
        self._lock = threading.Lock()

    def __missing__(self, number: int) -> Layer | Nobody:
        found: Layer | Nobody = NOBODY
        with self._lock:
            if number != ZERO:
                at = bisect_right(self._numbers, number)
                found = self._layers[self._numbers[at - 1]] if at else self.base
            self[number] = found
        return found

    def number_of(self, owner: int) -> int:
        """Of the layer that has what ``owner`` had, or ZERO."""
        found = self[owner]
        return found.file.number if isinstance(found, Layer) else ZERO

    def find(self, number: int) -> Layer | None:
        """The layer of that number, where it is still there, above the base."""
        return self._layers.get(number)

    @property
    def top_number(self) -> int:
        return self._numbers[-1] if self._numbers else BASE

    def all_layers(self) -> list[Layer]:
        """The base first."""
        return [self.base, *(self._layers[number] for number in self._numbers)]

    def push(self, layer: Layer) -> None:
        """On top."""
        with self._lock:
            insort(self._numbers, layer.file.number)
            self._layers[layer.file.number] = self.top = layer

    def rebase(self, number: int) -> list[Layer]:
        """It has all that the layers below it had. Returns these; none where it is not there, or is the base."""
        with self._lock:
            if (base := self._layers.pop(number, None)) is None:
                return []
            gone = [self.base, *(layer for below, layer in self._layers.items() if below < number)]
            self._layers = {above: layer for above, layer in self._layers.items() if above > number}
            self._numbers = sorted(self._layers)
            self.base = base
            self.top = self._layers[self._numbers[-1]] if self._numbers else base
            self.clear()
        return gone

    def remove(self, number: int) -> Layer | None:
        """It was merged into the one below. None: it was not there."""
        with self._lock:
            layer = self._layers.pop(number, None)
            if layer is not None:
                del self._numbers[bisect_left(self._numbers, number)]
                self.top = self._layers[self._numbers[-1]] if self._numbers else self.base
                self.clear()
        return layer
