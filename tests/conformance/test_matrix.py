"""The matrix of requirements names code that is there and tests that are there; `make conformance` runs them."""

from __future__ import annotations

import ast
from functools import cache

from conformance import document, matrix
from conformance.matrix import ROOT, Row


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_code_is_there() -> None:
    """Every ``module:name``."""
    assert matrix.missing_code(matrix.read()) == []


def test_the_tests_are_there() -> None:
    """Every node id, by its file and its function."""
    for row in matrix.read():
        assert row.tests, row
        for node_id in row.tests:
            path, _, name = node_id.partition("::")
            assert name in functions(path), node_id


def test_the_document_has_every_row() -> None:
    """docs/CONFORMANCE.md was made from this matrix: make conformance."""
    written = document.DOCUMENT.read_text()
    assert [row.says for row in matrix.read() if row.says not in written] == []


REPORT = b"""<testsuites><testsuite>
<testcase classname="tests.a.test_b" name="test_one[x]"/>
<testcase classname="tests.a.test_b" name="test_one[y]"><failure message="no"/></testcase>
<testcase classname="tests.a.test_b" name="test_two"/>
<testcase classname="tests.a.test_b" name="test_three"><skipped message="later"/></testcase>
</testsuite></testsuites>"""


def test_the_worst_of_a_tests_parameters_counts() -> None:
    """A failure among its parameters, a skip, and a test that did not run are no proof."""
    wanted = [f"tests/a/test_b.py::test_{name}" for name in ("one", "two", "three", "four")]
    assert list(matrix.outcomes(REPORT, wanted).values()) == ["failed", "passed", "skipped", "missing"]


def test_a_row_without_proof_is_a_shortcoming() -> None:
    """No test, no code, code that is not there, a test that did not pass."""
    good = Row("X", "1", "it does", ("conformance.matrix:read",), ("a.py::b",))
    assert matrix.shortcomings([good], {"a.py::b": "passed"}) == []
    bad = [
        (good, {"a.py::b": "failed"}),
        (good, {}),
        (Row("X", "1", "it does", ("conformance.matrix:nothing",), ("a.py::b",)), {"a.py::b": "passed"}),
        (Row("X", "1", "it does", (), ("a.py::b",)), {"a.py::b": "passed"}),
        (Row("X", "1", "it does", ("conformance.matrix:read",), ()), {}),
    ]
    assert all(len(matrix.shortcomings([row], ran)) == 1 for row, ran in bad)
