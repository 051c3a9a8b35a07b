"""Records tests/traces/*.pcapng anew: real initiators against this target, through the recording proxy.

    make traces                              all of them (the Linux one needs root and /dev/net/tun)
    python -m tests.traces.record qemu-io    one of them

Each recording starts a `serve` of its own with a small volume, so that the files stay small; what it did stands in the
table below and in the file's own comment, with what a replay needs: the volume's size and UUID, the region's size and
the portal that was advertised.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop import initiators, processes
from tests.interop.initiators import qemu_io
from tests.interop.serving import IQN_PREFIX, Serve, vpool
from tests.interop.tgtd import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
VOLUME = "trace"
IQN = f"{IQN_PREFIX}{VOLUME}"
MAX_BYTES = 300 * 1024


@dataclass(frozen=True, slots=True)
class Recording:
    """One file: who talks, to a volume of which size, and what is said."""

    name: str
    what: str
    size_bytes: int
    talk: Callable[[str], None] | None  # gets the portal's address as HOST:PORT; None: the guest talks, with LINUX
    region_bytes: int | None = None


def libiscsi_tools(portal: str) -> None:
    url = f"iscsi://{portal}/{IQN}/0"
    initiators.run("iscsi-ls", "-s", f"iscsi://{portal}")
    initiators.run("iscsi-inq", url)
    for page in ("0", "128", "131", "176", "177", "178"):
        initiators.run("iscsi-inq", "-e", "1", "-c", page, url)
    initiators.run("iscsi-readcapacity16", url)
    initiators.run("iscsi-swp", url)


def libiscsi_suite(portal: str) -> None:
    url = f"iscsi://{portal}/{IQN}/0"
    for family in ("TestUnitReady", "ModeSense6", "ReadCapacity10", "iSCSIResiduals", "iSCSIdatasn"):
        initiators.run("iscsi-test-cu", "--dataloss", "-t", f"ALL.{family}", url, codes=range(256))


def qemu_io_session(portal: str) -> None:
    qemu_io(
        f"iscsi://{portal}/{IQN}/0",
        "write -P 0xa5 3584 512",
        "write -P 0x5a 20480 20992",
        "read -P 0xa5 3584 512",
        "read -P 0x5a 20480 20992",
        "read -P 0 0 3584",
        "write -f -P 0x77 8192 4096",
        "write -z 65536 16384",
        "discard 131072 65536",
        "flush",
        "aio_write -q -P 1 262144 4096",
        "aio_write -q -P 2 266240 4096",
        "aio_write -q -P 3 270336 4096",
        "aio_flush",
        "read -P 2 266240 4096",
    )


def qemu_io_solicited(portal: str) -> None:
    qemu_io(f"iscsi://{portal}/{IQN}/0", "write -P 0x11 512 98304", "read -P 0x11 512 4096")


LINUX = f"""
sed -i '/^node.conn\\[0\\].timeo.noop_out_interval/d' /etc/iscsi/iscsid.conf
echo 'node.conn[0].timeo.noop_out_interval = 1' >>/etc/iscsi/iscsid.conf
discover {TARGET_ADDRESS}
login {IQN}
disk=$(disk_of {IQN})
yes linux | head -c 24576 >/run/source || true
dd if=/run/source of=$disk bs=8192 seek=1 oflag=direct conv=fsync
dd if=$disk of=/run/copy bs=8192 skip=1 count=3 iflag=direct
cmp /run/source /run/copy
blkdiscard -o 65536 -l 65536 $disk
sleep 2.2  # two pings
logout {IQN}
for key in InitialR2T:Yes ImmediateData:No FirstBurstLength:4096; do
    iscsiadm -m node -T {IQN} -o update -n node.session.iscsi.${{key%:*}} -v ${{key#*:}}
done
login {IQN}
disk=$(disk_of {IQN})
dd if=/run/source of=$disk bs=24576 count=1 oflag=direct
logout {IQN}
"""


@contextmanager
def proxied(recording: Recording, path: Path, directory: Path, host: str, prefix: Sequence[str]) -> Iterator[str]:
    """A target and the proxy before it; yields the proxy's address."""
    inner, outer = (f"{host}:{port}" for port in ((3261, 3260) if prefix else (free_port(), free_port())))
    pool = vpool(directory / "pool", region_bytes=recording.region_bytes)
    volumes = {VOLUME: str(recording.size_bytes)}
    with Serve(directory / "s", volumes, portal=inner, advertise=outer, vpool=pool, prefix=prefix) as serve:
        shown: Any = json.loads(serve.volume("show", VOLUME, "-o", "json").stdout)
        uuid = (shown[0] if isinstance(shown, list) else shown)["uuid"]
        region = recording.region_bytes or 256 * MIB
        comment = f"{recording.what}\nsize={recording.size_bytes} uuid={uuid} region={region} portal={outer}"
        command = [*prefix, sys.executable, "-m", "tests.traces.proxy", "--listen", outer, "--to", inner]
        proxy = subprocess.Popen(
            [*command, "--output", str(path), "--comment", comment], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            assert proxy.stdout is not None
            assert proxy.stdout.readline() == "ready\n"
            yield outer
            proxy.send_signal(signal.SIGTERM)
            assert proxy.wait(10) == 0
        finally:
            processes.kill_all([proxy.pid])
            if proxy.stdout is not None:
                proxy.stdout.close()


def record(recording: Recording, path: Path, directory: Path) -> None:
    if recording.talk is None:
        with GuestNetwork() as network, proxied(recording, path, directory, TARGET_ADDRESS, network.prefix):
            guest = Guest(network, Path(tempfile.mkdtemp(prefix="guest-")))
            result = guest.run(LINUX, timeout_s=60)
            assert result.code == 0, guest.tail()
            shutil.rmtree(guest.directory)
        return
    with proxied(recording, path, directory, "127.0.0.1", ()) as portal:
        recording.talk(portal)


MIB = 1 << 20
RECORDINGS = (
    Recording(
        "libiscsi-tools",
        "libiscsi 1.19: iscsi-ls -s, iscsi-inq with VPD pages, iscsi-readcapacity16, iscsi-swp",
        MIB,
        libiscsi_tools,
    ),
    Recording(
        "libiscsi-suite",
        "libiscsi 1.19: families of iscsi-test-cu, with residuals and wrong DataSNs",
        MIB,
        libiscsi_suite,
    ),
    Recording("qemu-io", "qemu-io 7.2: unaligned writes and reads, FUA, zeroes, discard, flush", MIB, qemu_io_session),
    Recording(
        "qemu-io-r2t",
        "qemu-io 7.2 against a region of 4 MiB: the login is answered with less unsolicited data, writes are solicited",
        MIB,
        qemu_io_solicited,
        region_bytes=4 * MIB,
    ),
    Recording(
        "open-iscsi",
        "Linux 6.1 and open-iscsi 2.1.8: discovery, login, direct I/O, discard, pings; then with InitialR2T=Yes",
        MIB,
        None,
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="which (default: all)")
    parser.add_argument("--output", type=Path, default=HERE, help="directory of the files")
    options = parser.parse_args()
    for recording in RECORDINGS:
        if options.names and recording.name not in options.names:
            continue
        directory = Path(tempfile.mkdtemp(prefix="ovs-", dir="/dev/shm"))
        path = options.output / f"{recording.name}.pcapng"
        try:
            record(recording, path, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        size = path.stat().st_size
        print(f"{path.name}: {size} bytes")
        assert size <= MAX_BYTES, f"{path.name} is over {MAX_BYTES} bytes: do less in it"
    return 0


if __name__ == "__main__":
    sys.exit(main())
