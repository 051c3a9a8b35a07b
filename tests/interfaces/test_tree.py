"""What a path on the mount means."""

from __future__ import annotations

import pytest

from iscsi_ovs.interfaces import tree
from iscsi_ovs.interfaces.tree import Kind, Place


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a.raw", "a"),
        ("/a.raw.raw", "a.raw"),
        ("/0-1.2.raw", "0-1.2"),
        ("/.snapshots/a/b.raw", "a@b"),
        ("/.snapshots/a.raw/B_1:2.raw.raw", "a.raw@B_1:2.raw"),
    ],
)
def test_files(path: str, name: str) -> None:
    """A trailing .raw is not part of the name; snapshots stand below their volume's."""
    assert tree.find(path) == Place(Kind.FILE, name)
    assert path.endswith("/" + tree.file_name(name))
    assert tree.is_past(path) is ("@" in name)


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/", Place(Kind.VOLUMES)),
        ("/.snapshots", Place(Kind.SNAPSHOTS)),
        ("/.snapshots/a.raw", Place(Kind.SNAPSHOTS_OF, "a.raw")),
    ],
)
def test_directories(path: str, place: Place) -> None:
    """Three kinds."""
    assert tree.find(path) == place


@pytest.mark.parametrize(
    "path",
    [
        *("/a", "/.raw", "/A.raw", "/a@b.raw", "/a/b.raw", "/.snapshots.raw", "/.snapshots/A", "/.snapshots/a/b"),
        *("/.snapshots/a/.raw", "/.snapshots/a/..raw", "/.snapshots/a/b@c.raw", "/.snapshots/a/b.raw/c"),
    ],
)
def test_what_can_not_be(path: str) -> None:
    """No other names are there."""
    assert tree.find(path) is None
