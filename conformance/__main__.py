"""`make conformance`: run the judges, compare with what is pinned, write docs/CONFORMANCE.md.

python -m conformance                   everything; exit code 1 if anything is not as promised
python -m conformance --pin             … and pin what libiscsi's suite says now
python -m conformance --sample 12       some families on some LUNs, by a seed that is printed; nothing is written
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from conformance import document, fleet, matrix, peer, pins, runs, sampling


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description="The judges of other projects.")
    parser.add_argument("--pin", action="store_true", help="take what the suite says now for what is expected")
    parser.add_argument("--sample", type=int, metavar="N", help="N pairs of family and LUN only")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CONFORMANCE_SEED", "0")) or None)
    options = parser.parse_args(arguments)
    directory = Path(tempfile.mkdtemp(prefix="cf-", dir="/dev/shm"))
    try:
        with fleet.serve(directory) as luns:
            if options.sample:
                seed = random.randrange(1 << 32) if options.seed is None else options.seed
                _tell(f"CONFORMANCE_SEED={seed}")
                return _report(sampling.differences(luns, options.sample, seed, _tell))
            print("libiscsi's suite against the fleet")
            ours = runs.run(luns, list(runs.suite()), _tell)
        print("libiscsi's suite against tgtd")
        theirs = peer.run(directory, _tell)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    rows = matrix.read()
    print(f"the tests of {len(rows)} requirements")
    ran = matrix.run_tests(node_id for row in rows for node_id in row.tests)
    if options.pin:
        pins.write(ours)
    document.write(ours, theirs, rows)
    print(f"written: {document.DOCUMENT}")
    found = pins.shortcomings(ours, runs.tests(None)) + pins.differences(ours, pins.pinned())
    return _report(found + matrix.shortcomings(rows, ran))


def _tell(line: str) -> None:
    print(line, flush=True)


def _report(found: Sequence[str]) -> int:
    for line in found:
        print(f"NOT AS PROMISED: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
