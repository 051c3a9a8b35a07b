"""The matrix of requirements: each MUST that a target has, the code that obeys it, the test that shows it.

``matrix.toml`` is its data: one table a requirement, with the standard and section, what it says, ``code`` as
``module:name`` and ``tests`` as pytest node ids (without parameters: all of them). This module reads it, looks the code
up, runs the tests, and says what of it does not hold.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MATRIX = Path(__file__).parent / "matrix.toml"


@dataclass(frozen=True, slots=True)
class Row:
    """One requirement."""

    standard: str
    section: str
    says: str
    code: tuple[str, ...]
    tests: tuple[str, ...]


def read() -> list[Row]:
    """The file, in its order. A missing or unknown key is an error."""
    rows = []
    for standard, entries in tomllib.loads(MATRIX.read_text()).items():
        for entry in entries:
            rows.append(Row(standard, entry["section"], entry["says"], tuple(entry["code"]), tuple(entry["tests"])))
            assert set(entry) == {"section", "says", "code", "tests"}, entry
    return rows


def missing_code(rows: Iterable[Row]) -> list[str]:
    """Every ``module:name`` that is not there."""
    found = []
    for row in rows:
        for place in row.code:
            module_name, _, path = place.partition(":")
            try:
                thing = importlib.import_module(module_name)
                for name in path.split("."):
                    thing = getattr(thing, name)
            except (ImportError, AttributeError):
                found.append(f"{row.standard} {row.section}: no {place}")
    return found


def run_tests(node_ids: Iterable[str]) -> dict[str, str]:
    """Runs these tests, each file once; node id (without parameters) → passed, failed, skipped or missing."""
    wanted = sorted(set(node_ids))
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", "-n", "2"]
        subprocess.run([*command, *wanted], cwd=ROOT, capture_output=True, check=False)
        return outcomes(report.read_bytes(), wanted) if report.exists() else dict.fromkeys(wanted, "missing")


def outcomes(report: bytes, wanted: Sequence[str]) -> dict[str, str]:
    """What a JUnit report says of node ids; the worst of a test's parameters counts."""
    seen: dict[str, list[str]] = defaultdict(list)
    for case in ET.fromstring(report).iter("testcase"):
        path = case.get("classname", "").replace(".", "/") + ".py"
        name = case.get("name", "").partition("[")[0]
        marks = {child.tag for child in case}
        bad = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        seen[f"{path}::{name}"].append(bad)
    worst = ("failed", "skipped", "passed")
    return {node_id: next((status for status in worst if status in seen[node_id]), "missing") for node_id in wanted}


def shortcomings(rows: Sequence[Row], ran: dict[str, str]) -> list[str]:
    """Rows whose code is not there, that name no test, or whose test did not run and pass."""
    found = missing_code(rows)
    for row in rows:
        if not row.code or not row.tests:
            found.append(f"{row.standard} {row.section}: no code or no test is named")
        for node_id in row.tests:
            if ran.get(node_id) != "passed":
                found.append(f"{row.standard} {row.section}: {node_id} {ran.get(node_id, 'missing')}")
    return found
