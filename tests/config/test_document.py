"""docs/CONFIG.md says what is so: its examples are whole, and each key stands there with its default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iscsi_ovs.config import sections
from tests.config.files import load

DOCUMENT = (Path(__file__).parents[2] / "docs" / "CONFIG.md").read_text()
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
# What stands in the table as words: a default that depends on something else, or on nothing.
IN_WORDS = {"the lowest that is free", "none", "NAME", "the volume's UUID", "from the volume's UUID",
            "`default`, or the only one"}  # fmt: skip
TABLES = {
    "At the top": sections.Root,
    "`[session]`": sections.Session,
    "`[portal-group.NAME]`": sections.PortalGroup,
    "`[auth-group.NAME]`": sections.AuthGroup,
    "`[acl.NAME]`": sections.Acl,
    "`[lun.NAME]`": sections.Lun,
    "`[target.NAME]`": sections.Target,
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(tmp_path: Path, text: str) -> None:
    """They can be served as they are."""
    (tmp_path / "alice.secret").write_text("alice's own long secret\n")
    (tmp_path / "alice.secret").chmod(0o600)
    assert load(tmp_path, text).warnings == ()


@pytest.mark.parametrize("title", TABLES)
def test_keys(title: str) -> None:
    """Every key of the section, and no other, with its default."""
    text = DOCUMENT.partition(f"\n### {title}\n")[2].partition("\n###")[0].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", text, re.MULTILINE))
    fields = {field.encode_name: field for field in msgspec.structs.fields(TABLES[title])}
    if title == "At the top":  # the tables in it have a section each
        fields = {name: field for name, field in fields.items() if not _is_table(field)}
    assert list(rows) == list(fields)
    for name, field in fields.items():
        default: Any = field.default
        if default is msgspec.NODEFAULT:
            default = field.default_factory()  # type: ignore[operator]
        if default is None:
            assert rows[name] in IN_WORDS, name
        else:
            assert tomllib.loads(f"x = {rows[name].strip('`')}")["x"] == default, name


def _is_table(field: msgspec.structs.FieldInfo) -> bool:
    return field.encode_name in ("session", "portal-group", "auth-group", "acl", "lun", "target")
