"""The list itself: every test of the full feature phase suite for targets has its exchange."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

# Tests of each group, as the suite's table of contents has them: 82 in all.
GROUPS = {
    1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 2, 8: 2, 9: 7, 10: 1, 11: 9, 12: 4, 13: 3, 14: 3, 15: 8, 16: 12,
    17: 19, 18: 3, 19: 1,
}  # fmt: skip
ONE = re.compile(r"FFP (\d+)([.\d]*)(?: \((?:(\d+) to )?(\w[\w=]*)(?: of \d+)?\))?")


def test_every_test_of_the_list_is_here() -> None:
    """Each exchange says which one it is; together they are the list."""
    found: dict[int, set[str]] = defaultdict(set)
    for path in sorted(Path(__file__).parent.glob("test_ffp_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                match = ONE.match(ast.get_docstring(node) or "")
                assert match, f"{path.name}: {node.name} says no number"
                group, rest, first, last = match.groups()
                numbers = range(int(first), int(last) + 1) if first else [last]
                found[int(group)] |= {f"{rest} {number}" for number in numbers}
    assert {group: len(numbers) for group, numbers in found.items()} == GROUPS
    assert sum(GROUPS.values()) == 82
