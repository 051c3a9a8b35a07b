"""What is expected of libiscsi's suite: the verdict of every test on every LUN, and the few tests that skip everywhere.

``results.toml`` is written by `make conformance ARGS=--pin` and read by everything else: a verdict that differs from
its pin is an error, in either direction. ``expected_skips.toml`` (tests/interop) names at most four tests that pass on
no LUN, each with the sentence of the standard that makes them untrue here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from conformance.runs import Results
from tests.interop.libiscsi_suite import FAILED, PASSED, SKIPPED, Verdict

RESULTS = Path(__file__).parent / "results.toml"
EXPECTED_SKIPS = Path(__file__).parent.parent / "tests" / "interop" / "expected_skips.toml"
MOST_SKIPS = 4

Pinned = dict[str, dict[str, str]]  # LUN → test → status

HEAD = """# The verdict of every test of libiscsi's suite (Debian's 1.19) on every LUN of the fleet.
# Written by `make conformance ARGS=--pin`; a run that differs from it fails.
"""


def pinned() -> Pinned:
    """The file."""
    return tomllib.loads(RESULTS.read_text())


def write(results: Results) -> None:
    """Pin these results: each LUN's tests by status, in the suite's order."""
    lines = [HEAD]
    for lun, verdicts in results.items():
        lines.append(f"[{lun}]")
        lines += [f'"{name}" = "{verdict.status}"' for name, verdict in verdicts.items()]
        lines.append("")
    RESULTS.write_text("\n".join(lines))


def expected_skips() -> dict[str, str]:
    """Tests that pass nowhere, each with its sentence."""
    return tomllib.loads(EXPECTED_SKIPS.read_text())


def differences(results: Results, pins: Pinned) -> list[str]:
    """Each verdict that is not as it was pinned, and each test that has none."""
    found = []
    for lun, verdicts in results.items():
        for name, verdict in verdicts.items():
            wanted = pins.get(lun, {}).get(name)
            if verdict.status != wanted:
                found.append(f"{name} on {lun}: {verdict.status}, pinned as {wanted}. {verdict.reason[:200]}")
    return found


def shortcomings(results: Results, names: Iterable[str]) -> list[str]:
    """What keeps a whole run from being what is promised: failures, and tests that pass nowhere and are not named."""
    found = [
        f"{name} on {lun} failed: {verdict.reason[:200]}"
        for lun, verdicts in results.items()
        for name, verdict in verdicts.items()
        if verdict.status == FAILED
    ]
    nowhere = [name for name in names if not passes_somewhere(results, name)]
    named = expected_skips()
    found += [f"{name} passes on no LUN: {reason_of(results, name)}" for name in nowhere if name not in named]
    found += [f"{name} passes, and is still among the expected skips" for name in named if name not in nowhere]
    if len(named) > MOST_SKIPS:
        found.append(f"{len(named)} expected skips; at most {MOST_SKIPS} are allowed")
    return found


def passes_somewhere(results: Mapping[str, Mapping[str, Verdict]], name: str) -> bool:
    return any(verdicts[name].status == PASSED for verdicts in results.values() if name in verdicts)


def reason_of(results: Mapping[str, Mapping[str, Verdict]], name: str) -> str:
    """Why a test was skipped, where it was."""
    return next(
        (v[name].reason for v in results.values() if name in v and v[name].status == SKIPPED and v[name].reason), "?"
    )
