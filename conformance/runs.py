"""libiscsi's suite over LUNs: every family of Debian's 230 tests against each, two LUNs at a time.

One process of iscsi-test-cu a family, so that a crash or a hang costs one family and is named. A test that did not end
is *failed*, with the reason. Families run in the order of the suite's own list, one after the other on a LUN: what one
leaves behind (a reservation, a prevented removal, a mode page) is the next one's to trip over, as with a single run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from tests.interop import initiators, libiscsi_suite
from tests.interop.libiscsi_suite import FAILED, SuiteError, Verdict

FAMILY_LIMIT_S = 150.0
NOWHERE = "iscsi://127.0.0.1/none/0"  # --list wants a URL and does not use it


@dataclass(frozen=True, slots=True)
class Lun:
    """A logical unit as the suite reaches it; ``second_url`` is the other path to it, for MultipathIO."""

    name: str
    url: str
    second_url: str | None = None
    families: tuple[str, ...] | None = None  # None: all of them
    without: tuple[str, ...] = ()  # tests that are not run, for a reason that the fleet gives


Results = dict[str, dict[str, Verdict]]  # LUN → test → verdict


@cache
def suite() -> Mapping[str, tuple[str, ...]]:
    """Families of ``ALL`` and their tests, in the suite's order."""
    families: dict[str, list[str]] = {}
    for line in initiators.run("iscsi-test-cu", "--list", NOWHERE).split():
        group, _, name = line.partition(".")
        family, _, test = name.partition(".")
        if group == "ALL" and test:
            families.setdefault(family, []).append(f"{family}.{test}")
    assert families, "the suite lists nothing"
    return {family: tuple(tests) for family, tests in families.items()}


def tests(families: Iterable[str] | None) -> list[str]:
    """The names of all tests, or of those in some families."""
    return [name for family in (suite() if families is None else families) for name in suite()[family]]


def run_family(lun: Lun, family: str) -> dict[str, Verdict]:
    """One family on one LUN. Every test of it that is wanted has a verdict, whatever happened to the run."""
    wanted = [name for name in suite()[family] if name not in lun.without]
    calls = [family] if len(wanted) == len(suite()[family]) else wanted
    verdicts: dict[str, Verdict] = {}
    for call in calls:
        verdicts.update(_run(lun, family, call, wanted if call == family else [call]))
    return verdicts


def _run(lun: Lun, family: str, call: str, wanted: Sequence[str]) -> dict[str, Verdict]:
    """One process of the suite."""
    urls = [lun.url]
    if family == "MultipathIO" and lun.second_url is not None:
        urls.append(lun.second_url)
    options = ("--dataloss", "--allow-sanitize", "-t", f"ALL.{call}")
    try:
        output = initiators.run("iscsi-test-cu", *options, *urls, timeout_s=FAMILY_LIMIT_S, codes=range(-64, 256))
        verdicts = libiscsi_suite.parse(output)
    except (initiators.InitiatorError, SuiteError) as error:
        reason = " ".join(str(error).split())[-300:]
        return {name: Verdict(FAILED, f"the run broke off: {reason}") for name in wanted}
    return {name: verdicts.get(name, Verdict(FAILED, "the run did not come to it")) for name in wanted}


def run_lun(lun: Lun, families: Sequence[str], tell: Callable[[str], None]) -> dict[str, Verdict]:
    """All the families on one LUN."""
    verdicts: dict[str, Verdict] = {}
    for family in families:
        if lun.families is not None and family not in lun.families:
            continue
        started = time.monotonic()
        found = run_family(lun, family)
        verdicts.update(found)
        counts = summary(found)
        tell(f"{lun.name:<12} {family:<22} {counts}  {time.monotonic() - started:5.1f} s")
    return verdicts


def run(luns: Sequence[Lun], families: Sequence[str], tell: Callable[[str], None], workers: int = 2) -> Results:
    """All the families on all the LUNs, ``workers`` LUNs at a time."""
    with ThreadPoolExecutor(workers) as pool:
        futures = {lun.name: pool.submit(run_lun, lun, families, tell) for lun in luns}
        return {name: future.result() for name, future in futures.items()}


def summary(verdicts: Mapping[str, Verdict]) -> str:
    """``12 passed, 3 skipped, 0 failed``: apart."""
    found = [verdict.status for verdict in verdicts.values()]
    return ", ".join(f"{found.count(status):3} {status}" for status in libiscsi_suite.STATUSES)
