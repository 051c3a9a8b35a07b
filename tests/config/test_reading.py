"""config.toml → sections: what is wrong is told with file, path of the key, and the nearest known one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iscsi_ovs.config import reading
from iscsi_ovs.errors import ConfigurationError
from tests.config.files import LEAST, WHOLE, changed, write


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("tag = 7", "tagg = 7", "portal-group.outer: there is no key 'tagg'; the nearest is 'tag'"),
        ("[lun.more]", "[lnu.more]", "there is no key 'lnu'; the nearest is 'lun'"),
        ("tag = 7", "tag = 0", "portal-group.outer.tag: expected `int` >= 1"),
        ("tag = 7", 'tag = "7"', "portal-group.outer.tag: expected `int"),
        ("block-size = 4096", "block-size = 1024", "lun.disk.block-size: 1024 is none of 512, 4096"),
        ('lun = "more", read', 'lunn = "more", read', "target.disk.lun.1: there is no key 'lunn'; the nearest is"),
        ('lun = "more", read-only = true', "read-only = true", "target.disk.lun.1: the key 'lun' is missing"),
        ('user = "alice"', "user = 3", "auth-group.lab.chap[0].user: expected `str`, got `int`"),
        ('user = "target"', "", "auth-group.lab.mutual: the key 'user' is missing"),
        ('networks = ["192', 'networks = [3, "192', "acl.lab.networks[0]: expected `str`, got `int`"),
        ("[acl.lab]", "[acl]\nlab = 3\n[other]", "there is no key 'other'"),
        ("[acl.lab]", "[acl", "at line "),
        ("[target.disk]", '[target."iqn.2001-04.com.x:y"]\ntag = 1\n[target.disk]',
         'target."iqn.2001-04.com.x:y": there is no key \'tag\''),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    """File, path, and what would have been right."""
    path = write(tmp_path, changed(old, new))
    with pytest.raises(ConfigurationError) as refused:
        reading.read(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert words in str(refused.value)


def test_underscores_are_hyphens(tmp_path: Path) -> None:
    """In keys, not in names; both ways of writing one key are one too many."""
    key, spelled = "discovery-auth-group", "discovery_auth_group"
    assert reading.read(write(tmp_path, changed(key, spelled))) == reading.read(write(tmp_path, WHOLE))
    with pytest.raises(ConfigurationError, match=rf"portal-group.outer: the key '{key}' stands there twice"):
        reading.read(write(tmp_path, changed(key, f"{spelled} = 'lab'\n{key}")))


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    path = write(tmp_path, "session = 3\n" + LEAST)
    with pytest.raises(ConfigurationError, match="session: a table is expected"):
        reading.read(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o666])
def test_secrets_that_others_may_read(tmp_path: Path, mode: int) -> None:
    """The file and its mode are named, and the secret is not."""
    path = write(tmp_path, WHOLE, mode)
    with pytest.raises(ConfigurationError, match=f"{path} has mode {mode:04o}.*chmod 600") as refused:
        reading.read(path)
    assert "long secret" not in str(refused.value)


def test_without_secrets_anybody_may_read(tmp_path: Path) -> None:
    assert reading.read(write(tmp_path, LEAST, 0o644)).target.keys() == {"demo"}


def test_no_secret_in_a_repr(tmp_path: Path) -> None:
    """Sections end up in tracebacks."""
    text = repr(reading.read(write(tmp_path, WHOLE)))
    assert "alice" in text
    assert "long secret" not in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "brackets are nested too deeply"),
        ("a = " + "9" * 5000, "5000 digits"),
        ('auth-group.x.chap = [{ user = "a\\u0000b=c", secret = "x" }]', "auth-group.x.chap[0].user: expected `str`"),
    ],
)
def test_what_only_looks_like_a_file(tmp_path: Path, text: str, words: str) -> None:
    """Whatever stands in it, it is refused: anything else would end the target that reads it again."""
    with pytest.raises(ConfigurationError) as refused:
        reading.read(write(tmp_path, text))
    assert words in str(refused.value)


@pytest.mark.timeout(10)
def test_a_fifo(tmp_path: Path) -> None:
    """Nobody waits for whoever writes to it."""
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigurationError, match="is no regular file"):
        reading.read_text(tmp_path / "fifo")


def test_files_that_are_none(tmp_path: Path) -> None:
    """Missing, a directory, not text: a sentence with the path."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path, words in (
        (tmp_path / "missing", "can't read .*: No such file"),
        (tmp_path, "can't read .*: Is a directory"),
        (tmp_path / "binary", "is not UTF-8, at byte 0"),
        (Path("/dev/null"), "is no regular file"),
        (tmp_path / "a\0b", "there is a NUL in the name"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            reading.read(path)
