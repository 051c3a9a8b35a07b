"""The house rules that no linter knows: where formats are declared, how long a function and a file may be.

Import directions are import-linter's (`make lint`); this file holds what docs/ARCHITECTURE.md says beyond them.
"""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("iscsi_ovs", "shm_server")

# The files that declare a format, and so the only ones that import construct or struct.
FORMATS = (
    "iscsi_ovs/wire.py",
    "iscsi_ovs/pdu.py",
    "iscsi_ovs/commands/cdb.py",
    "iscsi_ovs/commands/copy_descriptors.py",
    "iscsi_ovs/commands/log_pages.py",
    "iscsi_ovs/commands/persistent_reserve_in.py",
    "iscsi_ovs/commands/persistent_reserve_out.py",
    "iscsi_ovs/commands/third_party_copy.py",
    "iscsi_ovs/commands/transport_id.py",
    "iscsi_ovs/commands/vpd.py",
    "iscsi_ovs/commands/mode_pages.py",
    "iscsi_ovs/commands/sense.py",
    "iscsi_ovs/images/qcow2.py",
    "shm_server/abi/*",
    "shm_server/interfaces/*",
    "shm_server/stores/checksums.py",
    "shm_server/stores/maplog.py",
    "shm_server/stores/redo.py",
    "shm_server/stores/table.py",
    "shm_server/stores/watching.py",  # inotify's
)

MAX_FUNCTION_LINES = 70
MAX_FILE_LINES = 600

# "path:function" → the reason why it may be longer.
LONG_FUNCTIONS: dict[str, str] = {}
LONG_FILES: dict[str, str] = {}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports_of(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every module named by an import statement, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module, node.lineno


def test_formats_are_declared_in_their_rooms_only() -> None:
    """construct and struct are imported only where a format is declared; and no such room is empty."""
    assert [pattern for pattern in FORMATS if not list(ROOT.glob(pattern))] == []
    strays = [
        f"{name_of(path)}:{line} imports {module}"
        for path in sources()
        if not any(fnmatch.fnmatch(name_of(path), pattern) for pattern in FORMATS)
        for module, line in imports_of(ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] in ("construct", "struct")
    ]
    assert not strays, "a format is declared outside its room:\n" + "\n".join(strays)


def test_functions_are_short() -> None:
    """No function is over 70 lines, unless its reason stands in LONG_FUNCTIONS; and no reason outlives its function."""
    long: dict[str, int] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{name_of(path)}:{node.name}"] = lines
    assert set(long) == set(LONG_FUNCTIONS), long


def test_files_hold_one_noun() -> None:
    """No file is over 600 lines, unless its reason stands in LONG_FILES."""
    long = {
        name_of(path): lines
        for path in sources()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES
    }
    assert set(long) == set(LONG_FILES), long


@pytest.mark.parametrize("package", PACKAGES)
def test_files_say_what_they_are(package: str) -> None:
    """Every module that holds code opens with a docstring."""
    silent = [
        name_of(path)
        for path in sources()
        if name_of(path).startswith(package)
        for tree in [ast.parse(path.read_text(encoding="utf-8"))]
        if tree.body and not ast.get_docstring(tree)
    ]
    assert not silent, silent
