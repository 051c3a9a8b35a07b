"""Secrets: from the file or beside it, long enough, one for each direction, and never told."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ovs.errors import ConfigurationError
from tests.config.files import WHOLE, changed, load

IQN = "iqn.2024-05.com.example:disk"
ALICE = 'secret = "alice\'s long secret"'


def accounts(directory: Path, text: str) -> dict[str, bytes]:
    found = load(directory, text).targets[IQN].policy
    assert found is not None
    return dict(found.accounts)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_secret_file(tmp_path: Path, end: str) -> None:
    """Beside the configuration; the end of its line is not part of it."""
    file = tmp_path / "alice.secret"
    file.write_bytes(b"another long secret " + end.encode())
    file.chmod(0o600)
    found = accounts(tmp_path, changed(ALICE, 'secret-file = "alice.secret"'))
    assert found == {"alice": b"another long secret "}


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_secret_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    """The file and its mode are named."""
    file = tmp_path / "alice.secret"
    file.write_text("another long secret")
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"{file} has mode {mode:04o}, and it is a secret"):
        load(tmp_path, changed(ALICE, f'secret-file = "{file}"'))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "auth-group.lab.chap[0]: either 'secret' or 'secret-file' is expected"),
        (ALICE + '\nsecret-file = "x"', "auth-group.lab.chap[0]: either 'secret' or 'secret-file' is expected"),
        ('secret-file = "missing"', "auth-group.lab.chap[0].secret-file: can't read "),
        ('secret = ""', "auth-group.lab.chap[0]: a secret has 1 to 255 bytes"),
        (f'secret = "{"x" * 256}"', "a secret has 1 to 255 bytes"),
        ('secret = "eleven byte"', "the secret of 'alice' has less than 12 bytes"),
        (ALICE + '\n[[auth-group.lab.chap]]\nuser = "alice"\nsecret = "x"', "[1]: user 'alice' stands there twice"),
        ('secret = "our own long secret"', "auth-group.lab.mutual: its secret is that of user 'alice'"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, line: str, words: str) -> None:
    """With the place, and without the secret."""
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, changed(ALICE, line))
    assert words in str(refused.value)
    for secret in ("long secret", "eleven byte", "xxx"):
        assert secret not in str(refused.value)


def test_short_secrets_as_configured(tmp_path: Path) -> None:
    """Warned of, where the operator says so; twelve bytes are enough."""
    text = changed("[auth-group.lab]", '[auth-group.lab]\nshort-secrets = "warn"')
    found = load(tmp_path, changed(ALICE, 'secret = "eleven byte"', text))
    (warning,) = found.warnings
    assert "auth-group.lab.chap[0]: the secret of 'alice' has less than 12 bytes" in warning
    assert "eleven" not in warning
    assert load(tmp_path, changed(ALICE, 'secret = "twelve bytes"')).warnings == ()


def test_the_same_secret_in_two_groups_and_directions(tmp_path: Path) -> None:
    """What lets somebody in anywhere proves us nowhere."""
    other = '[[auth-group.other.chap]]\nuser = "bob"\nsecret = "our own long secret"\n'
    with pytest.raises(ConfigurationError, match=r"auth-group.lab.mutual: its secret is that of user 'bob'"):
        load(tmp_path, WHOLE + other)
