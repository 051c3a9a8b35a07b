"""The LUNs that are judged: one of each personality, each a target of its own that two portals lead to.

A target each, because TARGET COLD RESET ends every session of a target. The sizes leave room for everything that the
suite does to a disk, and stay under 32 MiB where blocks have 512 bytes: WriteSame16.Unmap writes 65536 blocks with one
WRITE(16) to a disk that has them, whatever MAXIMUM TRANSFER LENGTH says.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conformance.runs import Lun
from tests.interop import processes
from tests.interop.serving import IQN_PREFIX, Serve, iscsi_ovs, vpool
from tests.interop.tgtd import free_port


@dataclass(frozen=True, slots=True)
class Personality:
    """A LUN of the fleet: the keys of its table in config.toml, its size, and why it is there."""

    name: str
    size: str
    keys: str
    why: str
    families: tuple[str, ...] | None = None  # None: all of them
    without: Mapping[str, str] = field(default_factory=dict)  # tests that are not run, each with its reason


# SBC-3 5.5.2: the first descriptor "shall contain the LBA specified in the STARTING LOGICAL BLOCK ADDRESS field".
_ASKS_FOR_ANOTHER_LBA = (
    "the suite asks for the status of LBA i + 1 and wants a descriptor of LBA i + (logical blocks in a physical one), "
    "which are the same only where a physical block is a logical one"
)

# What does not write to begin with: all other families take for granted that a disk can be written.
READING = (
    "Inquiry", "Mandatory", "ModeSense6", "NoMedia", "Prefetch10", "Prefetch16", "Read6", "Read10", "Read12", "Read16",
    "ReadCapacity10", "ReadCapacity16", "ReadDefectData10", "ReadDefectData12", "ReadOnly", "ReportSupportedOpcodes",
    "StartStopUnit", "TestUnitReady",
)  # fmt: skip

FLEET = (
    Personality("thin", "24M", "physical-block-size = 512", "thinly provisioned, blocks of 512 bytes"),
    Personality(
        "emulated",
        "24M",
        "",
        "thinly provisioned, 512 bytes on physical blocks of 4096 (what a volume is by default)",
        without={"GetLBAStatus.UnmapSingle": _ASKS_FOR_ANOTHER_LBA},
    ),
    Personality("native", "48M", "block-size = 4096", "thinly provisioned, blocks of 4096 bytes"),
    Personality("thick", "24M", "thin = false", "fully provisioned, 512 bytes on physical blocks of 4096"),
    Personality("read-only", "24M", "read-only = true", "write protected", families=READING),
    Personality("removable", "24M", "physical-block-size = 512\nremovable = true", "its medium can be taken out"),
    Personality("no-cache", "24M", "thin = false\nwrite-cache = false", "no volatile write cache"),
)

TARGET_COMMAND = ("target", "--config")


def configuration(ports: tuple[int, int]) -> str:
    """The config.toml of the fleet."""
    listen = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    tables = [f"[portal-group.fleet]\nlisten = [{listen}]\n"]
    for each in FLEET:
        tables.append(f'[lun.{each.name}]\nvolume = "{each.name}"\n{each.keys}\n')
        tables.append(f'[target.{each.name}]\nportal-group = "fleet"\nlun = {{ 0 = "{each.name}" }}\n')
    return "\n".join(tables)


@contextmanager
def serve(directory: Path) -> Iterator[list[Lun]]:
    """The running fleet: a volume server, and a target process with the configuration above."""
    volumes = {each.name: each.size for each in FLEET}
    ports = (free_port(), free_port())
    path = directory / "config.toml"
    path.write_text(configuration(ports))
    path.chmod(0o600)
    pool = vpool(directory / "pool")
    # The suite sends a SANITIZE, looks after 3 s, resets everything, logs in again, and wants it to go on still.
    pool["shm_server"] = {"sanitize_bytes_per_s": "3MiB"}
    with Serve(directory / "fleet", volumes, vpool=pool) as serving:
        log = directory / "target.log"
        with target(serving, path, log) as process:
            urls = [f"iscsi://127.0.0.1:{port}/{IQN_PREFIX}" for port in ports]
            yield [
                Lun(
                    each.name, f"{urls[0]}{each.name}/0", f"{urls[1]}{each.name}/0",
                    each.families, tuple(each.without),
                )
                for each in FLEET
            ]  # fmt: skip
            assert process.poll() is None, f"the target ended with code {process.returncode}: {tail(log)}"
        code = serving.stop()
        assert code == 0, f"serve ended with code {code}: {serving.log_tail()}"


@contextmanager
def target(serving: Serve, path: Path, log: Path) -> Iterator[subprocess.Popen[str]]:
    """The target process, from its ready lines to its end."""
    command = iscsi_ovs(*TARGET_COMMAND, str(path), "--state-dir", str(serving.state_dir))
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        for _ in FLEET:
            line = process.stdout.readline()
            assert line.startswith("ready "), f"{line!r} {tail(log)}"
        yield process
        process.terminate()
        code = process.wait(20)
        assert code == 0, f"the target ended with code {code}: {tail(log)}"
    finally:
        processes.kill_all([process.pid] if process.poll() is None else [])
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
