"""libiscsi's conformance suite against the target, by families: nothing fails, and the skips are the pinned ones."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop import libiscsi_suite
from tests.interop.libiscsi_suite import FAILED, PASSED, SKIPPED
from tests.interop.serving import Serve

pytestmark = pytest.mark.interop

FAMILIES = (
    "CompareAndWrite",
    "ExtendedCopy",
    "Inquiry",
    "iSCSIResiduals",
    "iSCSITMF",
    "iSCSIcmdsn",
    "iSCSIdatasn",
    "Mandatory",
    "ModeSense6",
    "OrWrite",
    "Prefetch10",
    "Prefetch16",
    "PrinReadKeys",
    "PrinReportCapabilities",
    "PrinServiceactionRange",
    "ProutClear",
    "ProutPreempt",
    "ProutRegister",
    "ProutReserve",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReceiveCopyResults",
    "Reserve6",
    "TestUnitReady",
    "Unmap",
    "Verify10",
    "Verify12",
    "Verify16",
    "Write10",
    "Write12",
    "Write16",
    "WriteAtomic16",
    "WriteSame10",
    "WriteSame16",
    "WriteVerify10",
    "WriteVerify12",
    "WriteVerify16",
)

# WriteSame16.Unmap writes 32 MiB with one WRITE(16) where the disk has them, whatever MAXIMUM TRANSFER LENGTH says.
DISK_SIZES = {"WriteSame16": "24M"}

EXPECTED_SKIPS: dict[str, str] = tomllib.loads((Path(__file__).parent / "expected_skips.toml").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, new_disk: Callable[[str], str], target: Serve) -> None:
    """Every test of the family passes, but for the pinned skips."""
    expected = libiscsi_suite.names(family)
    verdicts = libiscsi_suite.run(new_disk(DISK_SIZES.get(family, "64M")), [family])
    assert set(verdicts) == set(expected)
    failed = {name: verdict.reason for name, verdict in verdicts.items() if verdict.status == FAILED}
    skipped = {name: verdict.reason for name, verdict in verdicts.items() if verdict.status == SKIPPED}
    passed = [name for name, verdict in verdicts.items() if verdict.status == PASSED]
    print(f"{family}: {len(passed)} passed, {len(skipped)} skipped, {len(failed)} failed")
    assert not failed, f"{failed}\n{target.log_tail()}"
    assert set(skipped) == {name for name in EXPECTED_SKIPS if name.startswith(f"{family}.")}, skipped


def test_pins_name_tests_that_exist() -> None:
    """Every pinned skip names a test of a family that runs here, and says why."""
    known = {name for family in FAMILIES for name in libiscsi_suite.names(family)}
    assert set(EXPECTED_SKIPS) <= known
    assert all(reason for reason in EXPECTED_SKIPS.values())


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
