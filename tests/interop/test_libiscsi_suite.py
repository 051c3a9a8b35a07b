"""libiscsi's conformance suite against the fleet of LUNs: a sample of it, by chance, finds what is pinned.

The whole of it is `make conformance`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from conformance import fleet, sampling
from tests.interop import libiscsi_suite
from tests.interop.libiscsi_suite import FAILED, PASSED, SKIPPED

SAMPLE = 50  # pairs of family and LUN


@pytest.mark.interop
@pytest.mark.timeout(300)
def test_a_sample(short_dir: Path) -> None:
    """CONFORMANCE_SEED repeats one. A new failure or skip is an error, and so is one that is gone."""
    seed = int(os.environ.get("CONFORMANCE_SEED", str(random.randrange(1 << 32))))
    print(f"CONFORMANCE_SEED={seed}")
    with fleet.serve(short_dir) as luns:
        found = sampling.differences(luns, SAMPLE, seed, print)
    assert not found, "\n".join(found)


OUTPUT = """
Suite: Read10
  Test: Simple ...passed
  Test: Async ...    [SKIPPED] --dataloss flag is not set. Skipping test.
passed
  Test: Wrong ...    [FAILED] READ10 should have failed
FAILED
    1. test_read10.c:98  - CU_ASSERT_EQUAL(ret,0)
Suite: Other
  Test: Muttering ...    [FAILED] but tolerated
passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Run Summary:    Type  Total    Ran Passed Failed Inactive
              suites      2      2    n/a      0        0
               tests      4      4      3      1        0
             asserts   1554   1554   1554      0      n/a
"""


def test_reader_counts_skips_apart() -> None:
    """A test that says SKIPPED is skipped though the run calls it passed; complaints stand beside a pass."""
    verdicts = libiscsi_suite.parse(OUTPUT)
    assert {name: verdict.status for name, verdict in verdicts.items()} == {
        "Read10.Simple": PASSED,
        "Read10.Async": SKIPPED,
        "Read10.Wrong": FAILED,
        "Other.Muttering": PASSED,
    }
    assert verdicts["Other.Muttering"].complaints == ("but tolerated",)


def test_reader_refuses_a_run_that_broke_off() -> None:
    """A run without its summary, or with another count than was read, is an error and no pass."""
    with pytest.raises(libiscsi_suite.SuiteError, match="summary"):
        libiscsi_suite.parse(OUTPUT.split("Run Summary")[0])
    with pytest.raises(libiscsi_suite.SuiteError, match="its own summary"):
        libiscsi_suite.parse(OUTPUT.replace("  Test: Simple ...passed\n", ""))
