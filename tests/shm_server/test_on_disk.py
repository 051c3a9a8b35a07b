"""docs/ON-DISK.md is enough to read a pool by: a reader made from it alone finds what the server wrote."""

from __future__ import annotations

import errno

import pytest
from hypothesis.stateful import invariant

from shm_server.stores import maplog
from shm_server.stores.redo import RedoFile
from shm_server.volumes.lineage import Lineage, Merge
from tests.shm_server.disk_reader import NOBODY, PAGE, DiskReader
from tests.shm_server.pool import Pool
from tests.shm_server.test_snapshots_model import BEGIN, MAX_SPAN, Machine, run

EXAMPLES = 6
SIZE = 1 << 20


def read(pool: Pool, name: str, boot_id: bytes = b"") -> bytes:
    return DiskReader(pool.directory, boot_id or maplog.boot_id()).read(name, 0, SIZE // PAGE)


class _Read(Machine):
    @invariant()
    def the_files_say_the_same(self) -> None:
        self.pool.settle()
        reader = DiskReader(self.directory, maplog.boot_id())
        contents = {name: bytes(model.content) for name, model in self.models.items()}
        assert reader.volumes.keys() == contents.keys()
        for name, model in self.models.items():
            contents |= {f"{name}@{snapshot}": kept for snapshot, kept in model.snapshots.items()}
        assert reader.snapshots.keys() == contents.keys() - reader.volumes.keys()
        for name, content in contents.items():
            assert reader.read(name, BEGIN // PAGE, MAX_SPAN // PAGE) == content, name


def test_a_reader_finds_any_history_in_the_files() -> None:
    """Snapshots, clones, templates, merges, promotions, rollbacks, closed or in use, over starts of the machine."""
    run("", EXAMPLES, _Read)


def test_a_merge_that_was_given_up_is_not_seen(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lower layer has the upper one's pages then, and nobody reads them there."""

    def fails(lineage: Lineage, merge: Merge) -> bool:
        raise OSError(errno.EIO, "the catalogue's disk")

    monkeypatch.setattr(Lineage, "merged", fails)
    with pool.volume("demo") as volume:
        for value, name in (b"a", "first"), (b"b", "second"), (b"c", "third"):
            pool.write(volume, 0, value * 2 * PAGE)
            pool.run(pool.snapshots.create("demo", name))
        pool.run(pool.snapshots.create("demo", "fourth"))
        pool.run(pool.snapshots.remove("demo", "second"))
        pool.settle()
        assert (pool.directory / "volumes" / "1.data").read_bytes()[: 2 * PAGE] == b"c" * 2 * PAGE
        found = [read(pool, name)[: 2 * PAGE] for name in ("demo@first", "demo@third", "demo")]
    assert found == [b"a" * 2 * PAGE, b"c" * 2 * PAGE, b"c" * 2 * PAGE]


def test_after_a_power_cut_only_what_was_flushed_is_there(pool: Pool) -> None:
    """Its data are there, too, but a record that no barrier covers counts in the boot of its writing only."""
    with pool.volume("demo") as volume:
        pool.run(pool.snapshots.create("demo", "s"))
        pool.write(volume, 0, b"a" * PAGE)
        pool.run(volume.flush())
        pool.write(volume, PAGE, b"b" * PAGE)
        assert read(pool, "demo")[: 2 * PAGE] == b"a" * PAGE + b"b" * PAGE
        assert read(pool, "demo", b"another boot's id")[: 2 * PAGE] == b"a" * PAGE + bytes(PAGE)


def test_a_write_that_was_under_way_is_in_the_redo_record(pool: Pool) -> None:
    """Nothing of it is where it belongs; there it is, with the record, and without when that was retired."""
    uuid = pool.manager.stat("demo").uuid
    record = RedoFile(pool.directory / "volumes" / "demo.redo", uuid)
    record.record(PAGE + 512, b"x" * PAGE)
    assert read(pool, "demo")[: 3 * PAGE] == bytes(PAGE + 512) + b"x" * PAGE + bytes(PAGE - 512)
    record.retire()
    assert not any(read(pool, "demo"))
    record.close()


def test_the_table_of_owners_says_what_the_maps_say(pool: Pool) -> None:
    """Of a volume that was closed, with a layer in it that was merged away since."""
    with pool.volume("demo") as volume:
        for page, name in enumerate(("first", "second", "third")):
            pool.write(volume, page * PAGE, b"x" * PAGE)
            pool.run(pool.snapshots.create("demo", name))
        pool.run(volume.write_zeroes(0, PAGE, lambda: False, is_durable=False, may_unmap=True))
    pool.settle()
    pool.run(pool.snapshots.remove("demo", "second"))
    pool.settle()
    reader = DiskReader(pool.directory, maplog.boot_id())
    uuid, _, _ = reader.volumes["demo"]
    table, chain = reader.table("demo"), reader.chain_of(uuid)
    assert table is not None
    owners = reader.owners(chain, 0, SIZE // PAGE)
    assert owners[0] == NOBODY
    assert [0 if owner == chain[-1].number else owner for owner in owners] == table
