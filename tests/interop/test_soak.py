"""The long run behind `make soak`: writes, reads and deaths of the volume server, against a model of the disk.

SOAK_MINUTES says how long (default 10). The seed is printed; SOAK_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

import pytest

from tests.interop.initiators import QemuShell, qemu_io
from tests.interop.serving import Serve

pytestmark = [pytest.mark.soak, pytest.mark.interop, pytest.mark.timeout(0)]

CELL_BYTES = 192 * 1024 + 512
CELLS = 256
BETWEEN_DEATHS_S = 16.0  # `serve` gives up after five in a minute


@pytest.mark.parametrize("sessions", [4])
def test_deaths_under_load(make_serve: Callable[..., Serve], sessions: int) -> None:
    """Whatever was acknowledged is what every session reads, through one death of the volume server after another."""
    seed = int(os.environ.get("SOAK_SEED", str(random.randrange(1 << 32))))
    print(f"SOAK_SEED={seed}")
    rng = random.Random(seed)
    until = time.monotonic() + 60 * float(os.environ.get("SOAK_MINUTES", "10"))
    serve = make_serve({"demo": str(CELLS * CELL_BYTES)}).start()
    cells = [0] * CELLS
    shells = [QemuShell(serve.url("demo")) for _ in range(sessions)]
    deaths = 0
    try:
        next_death = time.monotonic() + BETWEEN_DEATHS_S
        while time.monotonic() < until:
            batch = rng.sample(range(CELLS), 32)
            for number, cell in enumerate(batch):
                cells[cell] = rng.randrange(256)
                where = f"-P {cells[cell]} {cell * CELL_BYTES} {CELL_BYTES}"
                shells[number % sessions].ask(f"aio_write -q {where}")
            if time.monotonic() > next_death:
                serve.wait_new_server(serve.kill_server())
                next_death = time.monotonic() + BETWEEN_DEATHS_S
                deaths += 1
            for shell in shells:
                shell.ask("aio_flush", timeout_s=120)
            for cell in rng.sample(range(CELLS), 16):
                where = f"-P {cells[cell]} {cell * CELL_BYTES} {CELL_BYTES}"
                rng.choice(shells).ask(f"read -q {where}", timeout_s=120)
    finally:
        for shell in shells:
            shell.__exit__()
    print(f"{deaths} deaths of the volume server")
    qemu_io(
        serve.url("demo"),
        *[f"read -q -P {pattern} {cell * CELL_BYTES} {CELL_BYTES}" for cell, pattern in enumerate(cells)],
    )
    assert serve.stop() == 0
