"""libiscsi's conformance suite (iscsi-test-cu), its output read with distrust.

The suite calls a test passed that it skipped: an opcode answered with INVALID COMMAND OPERATION CODE prints
``[SKIPPED]`` and then ``passed``. So here a test is *skipped* as soon as it says so, whatever CUnit's verdict, and a
run that ends without its summary (a crash, a time limit) is an error. ``[FAILED]`` before ``passed`` is a complaint
that the test itself did not count: it is kept beside the verdict.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.interop import initiators

_SUITE = re.compile(r"^Suite: (?P<name>\S+)", re.MULTILINE)
_TEST = re.compile(r"^  Test: (?P<name>\S+) \.\.\.", re.MULTILINE)
_MARK = re.compile(r"\[(?P<mark>SKIPPED|FAILED)\]\s*(?P<text>[^\n]*)")
_CUNIT = re.compile(r"^(passed|FAILED)", re.MULTILINE)
_SUMMARY = re.compile(r"^\s+tests\s+(?P<total>\d+)\s+(?P<ran>\d+)\s+(?P<passed>\d+)\s+(?P<failed>\d+)", re.MULTILINE)

STATUSES = PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"


class SuiteError(AssertionError):
    """The suite did not run to its end, or its output is not what this reader knows."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one test of the suite came to, and the first line of its reason."""

    status: str
    reason: str = ""
    complaints: tuple[str, ...] = field(default=())


def parse(output: str) -> dict[str, Verdict]:
    """``Suite.Test`` → verdict, from a run's whole output."""
    summary = _SUMMARY.search(output)
    if summary is None:
        raise SuiteError(f"the run did not reach its summary:\n{output[-2000:]}")
    body = output[: summary.start()].split("\nRun Summary:")[0]
    verdicts: dict[str, Verdict] = {}
    suites = list(_SUITE.finditer(body))
    for suite, following in zip(suites, [*suites[1:], None], strict=True):
        section = body[suite.end() : following.start() if following else len(body)]
        tests = list(_TEST.finditer(section))
        for test, after in zip(tests, [*tests[1:], None], strict=True):
            said = section[test.end() : after.start() if after else len(section)]
            verdicts[f"{suite['name']}.{test['name']}"] = _judge(said)
    failed = sum(verdict.status == FAILED for verdict in verdicts.values())
    if len(verdicts) != int(summary["ran"]) or failed != int(summary["failed"]):
        raise SuiteError(f"read {len(verdicts)} tests, {failed} failed; its own summary says {summary[0].strip()}")
    return verdicts


def _judge(said: str) -> Verdict:
    """A test's words stand between its name and CUnit's verdict; behind that stand assertions, or the suite's words."""
    cunit = _CUNIT.search(said)
    if cunit is None:
        raise SuiteError(f"neither passed nor failed: {said!r}")
    marks = [(match["mark"], match["text"].strip()) for match in _MARK.finditer(said[: cunit.start()])]
    # a test may complain of each of 256 commands in the same words
    complaints = tuple(dict.fromkeys(text for mark, text in marks if mark == "FAILED"))
    if cunit[0] == "FAILED":
        return Verdict(FAILED, "; ".join([*complaints, *said[cunit.end() :].split("\n")]).strip(), complaints)
    skips = [text for mark, text in marks if mark == "SKIPPED"]
    return Verdict(SKIPPED, skips[0], complaints) if skips else Verdict(PASSED, "", complaints)


def run(url: str, tests: Sequence[str], *, timeout_s: float = 90.0) -> dict[str, Verdict]:
    """Runs families (``Read10``) or tests (``Read10.Simple``) that may destroy the disk's data."""
    verdicts: dict[str, Verdict] = {}
    for each in tests:
        # its exit code tells failures apart from nothing: the verdicts are read from its words
        output = initiators.run(
            "iscsi-test-cu", "--dataloss", "-t", f"ALL.{each}", url, timeout_s=timeout_s, codes=range(256)
        )
        verdicts.update(parse(output))
    return verdicts


def names(family: str) -> list[str]:
    """The tests that a family should hold, from the suite's own list."""
    listed = initiators.run("iscsi-test-cu", "--list", "iscsi://127.0.0.1/none/0").split()
    prefix = f"ALL.{family}."
    found = [name.removeprefix("ALL.") for name in listed if name.startswith(prefix)]
    assert found, f"the suite has no family {family}"
    return found
