"""What is kept with a snapshot: labels and metadata, durable as its name, bounded, changed as one asks."""

from __future__ import annotations

import errno

import pytest

from shm_server.abi import control
from shm_server.volumes import labels
from tests.shm_server.pool import Pool
from tests.shm_server.test_snapshots import raises

LIMIT = control.MAX_LABELS_BYTES


def kept(pool: Pool, name: str = "s") -> tuple[dict[str, str], bytes]:
    found = pool.run(pool.snapshots.find("demo", name))
    return labels.decode(found.labels), found.metadata


def test_they_are_kept(pool: Pool) -> None:
    """Over a restart, and while layers are merged; an old snapshot has none."""
    words = {"owner": "álice", "a/b.c-d_e": "", "note": "two = words"}
    pool.run(pool.snapshots.create("demo", "r"))
    made = pool.run(pool.snapshots.create("demo", "s", words, b"\0\xff"))
    assert labels.decode(made.labels) == words
    pool.run(pool.snapshots.remove("demo", "r"))
    pool.settle()
    pool.restart()
    assert kept(pool) == (words, b"\0\xff")
    pool.run(pool.snapshots.create("demo", "t"))
    assert kept(pool, "t") == ({}, b"")


def test_they_are_changed(pool: Pool) -> None:
    """Labels one by one, metadata as a whole; what isn't named stays."""
    before = pool.run(pool.snapshots.create("demo", "s", {"a": "1", "b": "2"}, b"old"))
    after = pool.run(pool.snapshots.label("demo", "s", {"a": None, "c": "3", "none": None}, None))
    assert kept(pool) == ({"b": "2", "c": "3"}, b"old")
    assert (after.identity, after.created_s) == (before.identity, before.created_s)
    pool.run(pool.snapshots.label("demo", "s", {}, b""))
    assert kept(pool) == ({"b": "2", "c": "3"}, b"")
    with raises(errno.ENOENT):
        pool.run(pool.snapshots.label("demo", "t", {}, b""))


def test_the_limit(pool: Pool) -> None:
    """4096 bytes of UTF-8 and metadata, all together; one more is E2BIG, names the limit and changes nothing."""
    pool.run(pool.snapshots.create("demo", "s", {"key": "ä" * 100}, bytes(LIMIT - 203)))
    with pytest.raises(OSError, match=f"at most {LIMIT}"):
        pool.run(pool.snapshots.label("demo", "s", {"k": ""}, None))
    with raises(errno.E2BIG):
        pool.run(pool.snapshots.create("demo", "t", {}, bytes(LIMIT + 1)))
    with pytest.raises(OSError, match="at most 64"):
        pool.run(pool.snapshots.create("demo", "t", {f"k{number}": "" for number in range(65)}))
    assert kept(pool) == ({"key": "ä" * 100}, bytes(LIMIT - 203))
    assert [found.name for found in pool.run(pool.snapshots.find_all("demo", "", 9))] == ["s"]


@pytest.mark.parametrize("words", [{"": "x"}, {" a": "x"}, {"a" * 64: "x"}, {"a": "line\nline"}, {"a\n": ""}])
def test_labels_that_can_not_be(pool: Pool, words: dict[str, str]) -> None:
    """A key is a short name, a value one printable line: EINVAL."""
    with raises(errno.EINVAL):
        pool.run(pool.snapshots.create("demo", "s", words))


def test_a_full_list_fits_a_message() -> None:
    """So many snapshots as one reply has, each with as much as it can have, are fewer bytes than a client takes."""
    words = {f"{number:02}" + "k" * 30: "v" * 32 for number in range(labels.MAX_LABELS)}
    labels.check(words, b"")
    info = control.SnapshotInfo("n" * 127, 1 << 46, 0.5, "f" * 32, words)
    message = control.encode(control.Snapshots(1, [info] * control.MAX_SNAPSHOTS))
    assert len(message) < control.MAX_ANSWER_BYTES
