"""A filter for tests: chosen operations take longer, or fail. The waiting is done on a worker thread.

A rule names a volume, operations (read, write, discard, flush), a byte range, and what happens: ``seconds`` of delay
before the operation is done, then ``error`` (an errno) instead of doing it. ``count`` bounds how often it acts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from shm_server.stores.base import Chain, LayerFile, Store, Stores, Views

OPERATIONS = ("read", "write", "discard", "flush")


@dataclass(frozen=True)
class DelayRule:
    """``volume`` "" means any; ``length`` 0 means to the end; ``count`` 0 means always; flushes have no range."""

    volume: str = ""
    operations: tuple[str, ...] = ("write",)
    offset: int = 0
    length: int = 0
    seconds: float = 0.0
    error: int = 0
    count: int = 0

    def matches(self, operation: str, offset: int, length: int) -> bool:
        if operation not in self.operations:
            return False
        if operation == "flush":
            return True
        return offset + length > self.offset and (self.length == 0 or offset < self.offset + self.length)


class DelayStore:
    """A store with rules in front. What a rule touches goes to a thread; the rest passes as before."""

    def __init__(self, store: Store, rules: Sequence[DelayRule], left: dict[DelayRule, int]) -> None:
        self.inner = store
        self._rules = rules
        self._left = left
        self._lock = threading.Lock()
        operations = {operation for rule in rules for operation in rule.operations}
        self.can_discard = store.can_discard
        self.max_atomic_write_bytes = store.max_atomic_write_bytes
        self.descriptor = -1 if "read" in operations else store.descriptor  # so that copies come by read()
        self.inline_bytes = 0 if operations & {"discard", "write"} else store.inline_bytes
        self.is_sync_instant = store.is_sync_instant and "flush" not in operations

    def around(self, store: Store) -> DelayStore:
        """The same rules in front of another store."""
        return DelayStore(store, self._rules, self._left)

    def _find(self, operation: str, offset: int, length: int) -> DelayRule | None:
        for rule in self._rules:
            if rule.matches(operation, offset, length) and (rule.count == 0 or self._left[rule] > 0):
                return rule
        return None

    def _obey(self, operation: str, offset: int, length: int) -> None:
        with self._lock:
            rule = self._find(operation, offset, length)
            if rule is not None and rule.count:
                self._left[rule] -= 1
        if rule is None:
            return
        time.sleep(rule.seconds)
        if rule.error:
            raise OSError(rule.error, os.strerror(rule.error))

    @property
    def dirty_bytes(self) -> int:
        return self.inner.dirty_bytes

    @property
    def must_settle(self) -> bool:
        return self.inner.must_settle

    def read_now(self, views: Views, offset: int, /) -> int:
        if self._find("read", offset, sum(map(len, views))) is not None:
            return 0
        return self.inner.read_now(views, offset)

    def write_now(self, views: Views, offset: int, /) -> int:
        if self._find("write", offset, sum(map(len, views))) is not None:
            return 0
        return self.inner.write_now(views, offset)

    def read(self, views: Views, offset: int) -> int:
        self._obey("read", offset, sum(map(len, views)))
        return self.inner.read(views, offset)

    def write(self, views: Views, offset: int) -> int:
        self._obey("write", offset, sum(map(len, views)))
        return self.inner.write(views, offset)

    def write_atomic(self, data: bytes, offset: int) -> None:
        self._obey("write", offset, len(data))
        self.inner.write_atomic(data, offset)

    def scrub(self) -> None:
        self.inner.scrub()

    def fill(self, pattern: memoryview, offset: int) -> int:
        self._obey("write", offset, len(pattern))
        return self.inner.fill(pattern, offset)

    def copy_from(self, source: Store, source_offset: int, offset: int, length: int) -> None:
        self._obey("write", offset, length)
        self.inner.copy_from(source, source_offset, offset, length)

    def punch(self, offset: int, length: int) -> None:
        self._obey("discard", offset, length)
        self.inner.punch(offset, length)

    def zero(self, offset: int, length: int) -> bool:
        self._obey("discard", offset, length)
        return self.inner.zero(offset, length)

    def extent(self, offset: int, length: int) -> tuple[bool, int]:
        return self.inner.extent(offset, length)

    def sync(self) -> None:
        self._obey("flush", 0, 0)
        self.inner.sync()

    def settle(self) -> None:
        self._obey("flush", 0, 0)
        self.inner.settle()

    def resize(self, size_bytes: int) -> None:
        self.inner.resize(size_bytes)

    def allocated_bytes(self) -> int:
        return self.inner.allocated_bytes()

    def close(self) -> None:
        self.inner.close()


class DelayStores:
    def __init__(self, stores: Stores, rules: Sequence[DelayRule]) -> None:
        self._stores = stores
        self._rules = rules
        self._left = {rule: rule.count for rule in rules}
        self.is_persistent = stores.is_persistent
        self.can_layer = stores.can_layer
        self.max_atomic_write_bytes = stores.max_atomic_write_bytes
        self.layer_checks = stores.layer_checks

    def create(self, name: str, size_bytes: int) -> None:
        self._stores.create(name, size_bytes)

    def open(self, name: str, size_bytes: int, uuid: str, chain: Chain = ()) -> Store:
        return self._behind_rules(name, self._stores.open(name, size_bytes, uuid, chain))

    def _behind_rules(self, name: str, store: Store) -> Store:
        rules = [rule for rule in self._rules if rule.volume in ("", name)]
        return DelayStore(store, rules, self._left) if rules else store

    def open_sealed(self, name: str, chain: Chain) -> Store:
        return self._behind_rules(name, self._stores.open_sealed(name, chain))

    def base_name(self, name: str) -> str:
        return self._stores.base_name(name)

    def create_layer(self, layer: LayerFile, size_bytes: int) -> None:
        self._stores.create_layer(layer, size_bytes)

    def top_number(self, store: Store) -> int:
        return self._stores.top_number(store.inner if isinstance(store, DelayStore) else store)

    def push(self, store: Store, chain: Chain) -> Store:
        if not isinstance(store, DelayStore):
            return self._stores.push(store, chain)
        return store.around(self._stores.push(store.inner, chain))

    def seal(self, store: Store) -> None:
        self._stores.seal(store.inner if isinstance(store, DelayStore) else store)

    def merge(self, upper: LayerFile, lower: LayerFile) -> Generator[None, None, None]:
        return self._stores.merge(upper, lower)

    def merged(self, store: Store, upper: int) -> None:
        self._stores.merged(store.inner if isinstance(store, DelayStore) else store, upper)

    def promote(self, chain: Chain, done_bytes: int) -> Generator[tuple[int, bool], None, None]:
        return self._stores.promote(chain, done_bytes)

    def give_up(self, chain: Chain) -> Generator[tuple[int, bool], None, None]:
        return self._stores.give_up(chain)

    def promoted(self, store: Store, number: int) -> None:
        self._stores.promoted(store.inner if isinstance(store, DelayStore) else store, number)

    def adopt(self, base: LayerFile, name: str) -> None:
        self._stores.adopt(base, name)

    def is_in_use(self, name: str, uuid: str) -> bool:
        return self._stores.is_in_use(name, uuid)

    def made_plain(self, name: str) -> None:
        self._stores.made_plain(name)

    def drop_atomic_write(self, name: str) -> None:
        self._stores.drop_atomic_write(name)

    def remove_layers(self, layers: Iterable[LayerFile]) -> None:
        self._stores.remove_layers(layers)

    def remove(self, name: str) -> None:
        self._stores.remove(name)

    def footprint_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        return self._stores.footprint_bytes(name, layers)

    def allocated_bytes(self, name: str, layers: Iterable[LayerFile] = ()) -> int:
        return self._stores.allocated_bytes(name, layers)

    def close(self) -> None:
        self._stores.close()
