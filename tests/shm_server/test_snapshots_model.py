"""Volumes with snapshots against the simplest model there is: a bytearray each, and a copy of it for each snapshot.

MODEL_SEED is printed, and repeats a run.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shm_server.abi import names
from shm_server.progress import Progress
from shm_server.renaming import rename
from shm_server.stores import maplog
from shm_server.stores.owners import CHUNK_BYTES, CHUNK_PAGES
from tests.shm_server.pool import Pool

PAGE = maplog.PAGE_BYTES
# What is written lies around the border between two chunks of the map.
BEGIN = CHUNK_PAGES * PAGE - 24 * PAGE
SPAN = 48 * PAGE
MAX_SPAN = 80 * PAGE


def never() -> bool:
    return False


class _Model:
    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.snapshots: dict[str, bytes] = {}
        self.order: list[str] = []
        self.children: dict[str, list[str]] = {}  # clones by snapshot; of the template itself by ""
        self.is_template = False


class Machine(RuleBasedStateMachine):
    where = ""  # the directory's; "" is the default

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir=self.where or None))
        self.pool = Pool(self.directory, map_cache_bytes=CHUNK_BYTES)
        self.models: dict[str, _Model] = {}
        self.held: dict[str, Any] = {}
        self.readers: dict[tuple[str, str], Any] = {}  # handles on snapshots
        self.numbers = itertools.count(1)

    @initialize()
    def begin(self) -> None:
        self.pool.run(self.pool.manager.create("v0", BEGIN + SPAN))
        self.models["v0"] = _Model(bytearray(SPAN))

    def teardown(self) -> None:
        for handle in (*self.held.values(), *self.readers.values()):
            self.pool.let_go(handle)
        self.pool.close()
        shutil.rmtree(self.directory)

    def new_name(self) -> str:
        return next(name for number in self.numbers if (name := f"v{number}") not in self.models)

    def pick(self, data: Any) -> str:
        return str(data.draw(st.sampled_from(sorted(self.models)), label="volume"))

    def pick_writable(self, data: Any) -> str:
        """There is one always."""
        writable = [name for name, model in sorted(self.models.items()) if not model.is_template]
        return str(data.draw(st.sampled_from(writable), label="volume"))

    def is_last_writable(self, name: str) -> bool:
        return all(model.is_template or other == name for other, model in self.models.items())

    def volume(self, name: str) -> Any:
        if name not in self.held:
            self.held[name] = self.pool.hold(name, "r" if self.models[name].is_template else "rw")
        return self.held[name].volume

    def let_go(self, name: str) -> None:
        if name in self.held:
            self.pool.let_go(self.held.pop(name))

    def let_readers_go(self, name: str) -> None:
        for key in [key for key in self.readers if key[0] == name]:
            self.pool.let_go(self.readers.pop(key))

    def range(self, data: Any, name: str) -> tuple[int, int]:
        """Any bytes, whole pages as often as not."""
        size = len(self.models[name].content)
        unit = data.draw(st.sampled_from((1, 512, PAGE)), label="unit")
        offset = data.draw(st.integers(0, size // unit - 1), label="offset")
        length = data.draw(st.integers(1, min(size // unit - offset, 12 * PAGE // unit)), label="length")
        return offset * unit, length * unit

    @rule(data=st.data(), value=st.integers(1, 255), durable=st.booleans())
    def write(self, data: Any, value: int, durable: bool) -> None:
        name = self.pick_writable(data)
        offset, length = self.range(data, name)
        self.pool.write(self.volume(name), BEGIN + offset, bytes([value]) * length, is_durable=durable)
        self.models[name].content[offset : offset + length] = bytes([value]) * length

    @rule(data=st.data(), unmap=st.booleans())
    def clear(self, data: Any, unmap: bool) -> None:
        name = self.pick_writable(data)
        offset, length = self.range(data, name)
        volume = self.volume(name)
        self.pool.run(volume.write_zeroes(BEGIN + offset, length, never, is_durable=False, may_unmap=unmap))
        self.models[name].content[offset : offset + length] = bytes(length)

    @rule(data=st.data(), value=st.integers(1, 255))
    def write_atomic(self, data: Any, value: int) -> None:
        name = self.pick_writable(data)
        offset, length = self.range(data, name)
        self.pool.run(self.volume(name).write_atomic(bytes([value]) * length, BEGIN + offset))
        self.models[name].content[offset : offset + length] = bytes([value]) * length

    @rule(data=st.data())
    def flush(self, data: Any) -> None:
        self.pool.run(self.volume(self.pick_writable(data)).flush())

    @rule(data=st.data(), opened=st.booleans())
    def snapshot(self, data: Any, opened: bool) -> None:
        name = self.pick_writable(data)
        if not opened:
            self.let_go(name)
        snapshot = f"s{next(self.numbers)}"
        self.pool.run(self.pool.snapshots.create(name, snapshot))
        model = self.models[name]
        model.snapshots[snapshot] = bytes(model.content)
        model.order.append(snapshot)

    @precondition(lambda self: any(model.order for model in self.models.values()))
    @rule(data=st.data())
    def roll_back(self, data: Any) -> None:
        name, snapshot = self.pick_snapshot(data)
        self.let_readers_go(name)
        model = self.models[name]
        later = model.order[model.order.index(snapshot) + 1 :]
        has_clones = any(model.children.get(each) for each in later)
        if name in self.held:
            with pytest.raises(OSError) as caught:
                self.pool.run(self.pool.snapshots.rollback(name, snapshot))
            assert caught.value.errno == (errno.ENOTEMPTY if has_clones else errno.EBUSY)
            self.let_go(name)
        if has_clones:
            with pytest.raises(OSError) as caught:
                self.pool.run(self.pool.snapshots.rollback(name, snapshot))
            assert caught.value.errno == errno.ENOTEMPTY
            return
        info = self.pool.run(self.pool.snapshots.rollback(name, snapshot))
        model.content = bytearray(model.snapshots[snapshot])
        assert info.size_bytes == BEGIN + len(model.content)
        for each in later:
            model.order.remove(each)
            del model.snapshots[each]

    def pick_snapshot(self, data: Any) -> tuple[str, str]:
        every = [(name, snapshot) for name, model in sorted(self.models.items()) for snapshot in model.order]
        name, snapshot = data.draw(st.sampled_from(every), label="snapshot")
        return name, snapshot

    @precondition(lambda self: any(model.order for model in self.models.values()))
    @rule(data=st.data(), settle=st.booleans())
    def remove_snapshot(self, data: Any, settle: bool) -> None:
        name, snapshot = self.pick_snapshot(data)
        model = self.models[name]
        if (name, snapshot) in self.readers:
            with pytest.raises(OSError) as caught:
                self.pool.run(self.pool.snapshots.remove(name, snapshot))
            assert caught.value.errno == errno.EBUSY
            self.pool.let_go(self.readers.pop((name, snapshot)))
        if model.children.get(snapshot):
            with pytest.raises(OSError) as caught:
                self.pool.run(self.pool.snapshots.remove(name, snapshot))
            assert caught.value.errno == errno.ENOTEMPTY
            return
        self.pool.run(self.pool.snapshots.remove(name, snapshot))
        model.order.remove(snapshot)
        del model.snapshots[snapshot]
        if settle:
            self.pool.settle()

    @precondition(lambda self: len(self.models) < 4 and any(model.order for model in self.models.values()))
    @rule(data=st.data())
    def clone(self, data: Any) -> None:
        name, snapshot = self.pick_snapshot(data)
        new = self.new_name()
        self.pool.run(self.pool.snapshots.clone(name, snapshot, new))
        self.models[new] = _Model(bytearray(self.models[name].snapshots[snapshot]))
        self.models[name].children.setdefault(snapshot, []).append(new)

    @precondition(lambda self: len(self.models) > 1)
    @rule(data=st.data())
    def make_template(self, data: Any) -> None:
        name = self.pick_writable(data)
        model = self.models[name]
        if self.is_last_writable(name):
            return
        self.let_readers_go(name)
        make = self.pool.snapshots.make_template(name)
        if name in self.held:
            with pytest.raises(OSError) as caught:
                self.pool.run(make)
            assert caught.value.errno == errno.EBUSY
            self.let_go(name)
            make = self.pool.snapshots.make_template(name)
        if any(model.children.values()):
            with pytest.raises(OSError) as caught:
                self.pool.run(make)
            assert caught.value.errno == errno.ENOTEMPTY
            return
        assert self.pool.run(make).is_template
        model.is_template = True
        model.snapshots.clear()
        model.order.clear()
        model.children.clear()

    @precondition(lambda self: len(self.models) < 4 and any(model.is_template for model in self.models.values()))
    @rule(data=st.data())
    def clone_template(self, data: Any) -> None:
        templates = [name for name, model in sorted(self.models.items()) if model.is_template]
        name, new = data.draw(st.sampled_from(templates), label="template"), self.new_name()
        self.pool.run(self.pool.snapshots.clone(name, "", new))
        self.models[new] = _Model(bytearray(self.models[name].content))
        self.models[name].children.setdefault("", []).append(new)

    @precondition(lambda self: len(self.models) > 1)
    @rule(data=st.data())
    def remove_volume(self, data: Any) -> None:
        name = self.pick(data)
        self.let_go(name)
        self.let_readers_go(name)
        if any(self.models[name].children.values()):
            with pytest.raises(OSError) as caught:
                self.pool.run(self.pool.manager.remove(name))
            assert caught.value.errno == errno.ENOTEMPTY
            return
        if self.is_last_writable(name):
            return
        self.pool.run(self.pool.manager.remove(name))
        del self.models[name]
        for model in self.models.values():
            for clones in model.children.values():
                if name in clones:
                    clones.remove(name)

    @rule(data=st.data(), is_old_name=st.booleans())
    def rename(self, data: Any, is_old_name: bool) -> None:
        """To a name that was there before, as often as not."""
        name = self.pick(data)
        used = [f"v{number}" for number in range(9) if f"v{number}" not in self.models]
        new = data.draw(st.sampled_from(used), label="new") if is_old_name and used else self.new_name()
        if name in self.held and not self.models[name].is_template:
            with pytest.raises(OSError) as caught:
                self.pool.run(rename(self.pool.manager, name, new))
            assert caught.value.errno == errno.EBUSY
            self.let_go(name)
        self.pool.run(rename(self.pool.manager, name, new))
        if name in self.held:
            self.held[new] = self.held.pop(name)
        for key in [key for key in self.readers if key[0] == name]:
            self.readers[new, key[1]] = self.readers.pop(key)
        self.models[new] = self.models.pop(name)
        for model in self.models.values():
            for clones in model.children.values():
                clones[:] = [new if each == name else each for each in clones]

    @rule(data=st.data())
    def promote(self, data: Any) -> None:
        """Held or not: it reads as before, and stands on nobody any more."""
        name = self.pick(data)
        progress = Progress(self.pool.runtime.clock, lambda done, total: None, lambda: True)
        self.pool.run(self.pool.promoter.promote(name, progress))
        for model in self.models.values():
            for clones in model.children.values():
                clones[:] = [each for each in clones if each != name]

    @precondition(lambda self: any(model.order for model in self.models.values()))
    @rule(data=st.data())
    def read_snapshot(self, data: Any) -> None:
        """To be read only; it stays open, whatever becomes of the volume and of the layers below."""
        name, snapshot = self.pick_snapshot(data)
        with pytest.raises(OSError) as caught:
            self.pool.hold(names.join(name, snapshot), "rw")
        assert caught.value.errno == errno.EROFS
        if (name, snapshot) not in self.readers:
            self.readers[name, snapshot] = self.pool.hold(names.join(name, snapshot), "r")

    @rule(data=st.data(), pages=st.integers(1, 8))
    def grow(self, data: Any, pages: int) -> None:
        name = self.pick_writable(data)
        model = self.models[name]
        size = min(len(model.content) + pages * PAGE, MAX_SPAN)
        self.pool.run(self.pool.manager.resize(name, BEGIN + size))
        model.content += bytes(size - len(model.content))

    @rule(data=st.data())
    def close(self, data: Any) -> None:
        self.let_go(self.pick(data))

    @rule(reboot=st.booleans(), killed=st.booleans())
    def reopen(self, reboot: bool, killed: bool) -> None:
        """The server ends, or is killed, and starts; or it ends, and the machine does."""
        if killed and not reboot:
            self.held.clear()
            self.readers.clear()
            self.pool.runtime.close()
            self.pool.catalog.close()
        else:
            for name in list(self.models):
                self.let_go(name)
                self.let_readers_go(name)
            self.pool.close()
        if reboot:
            boot = next(self.numbers).to_bytes(16, "little")
            patch.setattr(maplog, "boot_id", lambda: boot)
        self.pool = Pool(self.directory, map_cache_bytes=CHUNK_BYTES)
        if killed and not reboot:
            self.pool.settle()  # or the next start of the machine would find less

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        pool = self.pool
        assert [info.name for info in pool.manager.stat_all()] == sorted(self.models)
        for name, model in self.models.items():
            found = pool.run(pool.snapshots.find_all(name, "", 100))
            assert [each.name for each in found] == sorted(model.order)
            if name in self.held:
                assert pool.read(self.volume(name), BEGIN, MAX_SPAN) == model.content, name
                assert not any(pool.read(self.volume(name), BEGIN - 2 * PAGE, 2 * PAGE))
        for (name, snapshot), handle in self.readers.items():
            kept = self.models[name].snapshots[snapshot]
            assert pool.read(handle.volume, BEGIN, MAX_SPAN) == kept, f"{name}@{snapshot}"

    @rule(data=st.data())
    def look(self, data: Any) -> None:
        """At a volume that nobody has open, and at what a snapshot has."""
        name = self.pick(data)
        assert self.pool.read(self.volume(name), BEGIN, MAX_SPAN) == self.models[name].content

    @rule(data=st.data())
    def check(self, data: Any) -> None:
        """Whatever was merged, discarded and rolled back: no checksum is another page's, and none is missing."""
        assert self.pool.check(self.pick(data)).problems == 0


patch = pytest.MonkeyPatch()
EXAMPLES = 40
SOAK_EXAMPLES = 2000
STEPS = 40


def run(where: str, examples: int, machine: type[Machine] = Machine) -> None:
    class Here(machine):  # type: ignore[valid-type,misc]
        pass

    Here.where = where
    number = int(os.environ.get("MODEL_SEED", str(random.randrange(1 << 32))))
    print(f"MODEL_SEED={number}")
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            seed(number)(Here),
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        patch.undo()


@pytest.mark.parametrize("where", ["", "/dev/shm"])
def test_any_history_of_volumes_is_that_of_the_model(where: str) -> None:
    """Whatever is written, discarded, kept, read, rolled back, cloned, promoted, merged, renamed, closed."""
    run(where, EXAMPLES)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("where", ["", "/dev/shm"])
def test_a_long_history(where: str) -> None:
    """80,000 steps of the same."""
    run(where, SOAK_EXAMPLES)
