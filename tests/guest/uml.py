"""A real Linux initiator on any kernel: User Mode Linux, a network namespace, open-iscsi on the host's own file tree.

`GuestNetwork` is a namespace with a tap device, made and removed by the test; the target runs in it, too, reached at
`TARGET_ADDRESS`. `Guest` boots Debian's user-mode-linux there in about three seconds, runs one bash script as the only
task of its init, and powers off. What the script reports comes back through files; its console is a log that stays with
the test's directory and can be watched for marks while it runs.

The guest's root is hostfs: the host's files, writable. So whatever it changes outside its own mounts it changes here:
everything it writes lies in its directory or on a tmpfs or disk that it mounted.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.guest.console import Console, GuestError, GuestResult
from tests.interop import processes
from tests.interop.serving import environment
from tests.tools import require_root_and_tun, require_tool

TARGET_ADDRESS = "192.0.2.1"
GUEST_ADDRESS = "192.0.2.2"
MODULES = Path("/usr/lib/uml/modules")

_numbers = itertools.count(1)


class GuestNetwork:
    """A network namespace of the test's own, with a tap device between it and one guest."""

    def __init__(self) -> None:
        require_root_and_tun()
        self.ip = require_tool("ip", "iproute2")
        self.name = f"ovs-{os.getpid()}-{next(_numbers)}"  # two runs at once do not collide
        self.prefix = [self.ip, "netns", "exec", self.name]

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if done.returncode:
            raise GuestError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def __enter__(self) -> GuestNetwork:
        self._run(self.ip, "netns", "add", self.name)
        try:
            self._run(*self.prefix, self.ip, "link", "set", "lo", "up")
            self._run(*self.prefix, self.ip, "tuntap", "add", "tap0", "mode", "tap")
            self._run(*self.prefix, self.ip, "address", "add", f"{TARGET_ADDRESS}/24", "dev", "tap0")
            self._run(*self.prefix, self.ip, "link", "set", "tap0", "up")
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        # what still runs in the namespace was started by the test that made it
        processes.kill_all(int(pid) for pid in self._run(self.ip, "netns", "pids", self.name).split())
        self._run(self.ip, "netns", "delete", self.name)


# What every script stands on. `report KEY VALUE` hands a value out; `say TEXT` marks the console at once; `told NAME`
# is whether the test has called `tell(NAME)`.
PRELUDE = r"""
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mkdir -p /run/lock/iscsi /run/etc-iscsi /run/disk
cp -a /etc/iscsi/. /run/etc-iscsi/
mount -t tmpfs tmpfs /etc/iscsi
cp -a /run/etc-iscsi/. /etc/iscsi/
rm -rf /etc/iscsi/nodes /etc/iscsi/send_targets
mkdir -p /etc/iscsi/nodes /etc/iscsi/send_targets
mount --bind @MODULES@ /lib/modules
ip link set lo up
ip address add @GUEST_ADDRESS@/24 dev vec0
ip link set vec0 up
modprobe -a iscsi_tcp sd_mod ext4
echo 'InitiatorName=@INITIATOR@' >/etc/iscsi/initiatorname.iscsi
chmod 600 /etc/iscsi/initiatorname.iscsi
iscsid -f >@DIRECTORY@/iscsid.log 2>&1 &

report() { printf '%s\t%s\n' "$1" "$2" >>@DIRECTORY@/values; }
say() { printf 'guest: %s\n' "$*" >/dev/console; }
told() { [ -e @DIRECTORY@/told.$1 ]; }

# discover ADDRESS; login IQN; logout IQN; disk_of IQN prints /dev/sdX once the kernel has it
discover() { iscsiadm -m discovery -t sendtargets -p "$1"; }
login() {
    local tries
    for tries in $(seq 100); do  # iscsid listens on an abstract socket
        grep -q ISCSIADM_ABSTRACT_NAMESPACE /proc/net/unix && break
        sleep 0.05
    done
    iscsiadm -m node -T "$1" --login
}
logout() { iscsiadm -m node -T "$1" --logout; }
disk_of() {
    local name tries
    for tries in $(seq 200); do
        name=$(iscsiadm -m session -P 3 | awk -v iqn="$1" '
            $1 == "Target:" { here = ($2 == iqn) } here && /Attached scsi disk/ && /running/ { print $4 }')
        if [ -n "$name" ] && [ "$(blockdev --getsize64 "/dev/$name" 2>/dev/null || echo 0)" -gt 0 ]; then
            echo "/dev/$name"
            return 0
        fi
        sleep 0.05
    done
    say "no disk of $1"
    return 1
}
"""

INIT = r"""#!/bin/bash
exec >>@DIRECTORY@/output 2>&1
@PRELUDE@
(
set -euo pipefail
. @DIRECTORY@/script.sh
)
code=$?
dmesg >@DIRECTORY@/dmesg
printf 'exit\t%s\n' "$code" >>@DIRECTORY@/values
say "script ended with code $code"
sync
poweroff -f
"""


class Guest:
    """One boot of a User Mode Linux in a `GuestNetwork`; its directory's path must be the same in the guest.

    /dev, /run, /proc and /sys are the guest's own: a directory below /tmp will do.
    """

    def __init__(
        self, network: GuestNetwork, directory: Path, *, memory_mib: int = 384, arguments: Sequence[str] = ()
    ) -> None:
        """``arguments`` are the kernel's, beside those that every guest has."""
        self.linux = require_tool("linux.uml", "user-mode-linux")
        for program, package in (
            ("iscsid", "open-iscsi"),
            ("iscsiadm", "open-iscsi"),
            ("modprobe", "kmod"),
            ("mkfs.ext4", "e2fsprogs"),
        ):
            require_tool(program, package)
        self.network = network
        self.directory = directory
        self.memory_mib = memory_mib
        self.arguments = list(arguments)
        self.console_path = directory / "console.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None

    @property
    def pid(self) -> int:
        """Of its first process, whose number its process group has."""
        assert self._process is not None
        return self._process.pid

    def run(self, script: str, timeout_s: float = 60.0) -> GuestResult:
        """Boots, runs the script (`set -euo pipefail`, root) and powers off."""
        self.start(script)
        return self.finish(timeout_s)

    def start(self, script: str) -> None:
        """Boots with this script; `wait_for` and `finish` follow."""
        self.directory.mkdir(parents=True, exist_ok=True)
        Path("/lib/modules").mkdir(exist_ok=True)  # where the guest mounts its own
        (self.directory / "script.sh").write_text(script)
        init = self.directory / "init.sh"
        init.write_text(self._fill(INIT.replace("@PRELUDE@", PRELUDE)))
        init.chmod(0o755)
        command = [
            *self.network.prefix,
            self.linux,
            f"mem={self.memory_mib}M",
            "quiet",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            f"init={init}",
            f"uml_dir={self.directory}/uml",
            "umid=guest",
            "con=null",
            "con0=fd:0,fd:1",
            "vec0:transport=tap,ifname=tap0,depth=128,gro=1",
            *self.arguments,
        ]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,  # a process group of its own: kill -9 of the first alone leaves helpers behind
        )
        self._console = Console(self._process, self.console_path, self.tail)

    def _fill(self, text: str) -> str:
        for key, value in {
            "@DIRECTORY@": str(self.directory),
            "@GUEST_ADDRESS@": GUEST_ADDRESS,
            "@MODULES@": str(MODULES),
            "@INITIATOR@": f"iqn.2016-01.com.openvstorage:guest.{self.network.name}",
        }.items():
            text = text.replace(key, value)
        return text

    @property
    def console(self) -> Console:
        """Watched for marks (`say`)."""
        assert self._console is not None, "not started"
        return self._console

    def wait_for(self, mark: str, timeout_s: float, times: int = 1) -> None:
        """Waits until the script has said (`say`) these words, so many times in all."""
        self.console.wait_for(mark, timeout_s, times)

    def wait_for_another(self, mark: str, timeout_s: float) -> None:
        """Waits until the script says these words once more than it has by now."""
        self.console.wait_for_another(mark, timeout_s)

    def wait_quietly(self, seconds: float) -> None:
        """Lets the guest work on for so long; an error if it ends meanwhile."""
        assert self._process is not None
        if processes.wait_gone(self._process.pid, seconds):
            raise GuestError(f"the guest ended: {self.tail()}")

    def tell(self, name: str) -> None:
        """Makes `told NAME` true in the guest."""
        (self.directory / f"told.{name}").touch()

    def finish(self, timeout_s: float) -> GuestResult:
        """Waits until the guest has powered off, and reads what it reported."""
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest was not done after {timeout_s:g} s: {self.tail()}") from None
        finally:
            self.kill()
        values = dict(line.split("\t", 1) for line in self._read("values").splitlines())
        if "exit" not in values:
            raise GuestError(f"the guest ended without a result: {self.tail()}")
        return GuestResult(int(values.pop("exit")), values, self._read("output"), self._read("dmesg"))

    def kill(self) -> None:
        """Ends the whole process group of the guest."""
        if self._process is not None:
            processes.kill_all(processes.group(self._process.pid))
            self._process.wait(10)

    def _read(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    def tail(self) -> str:
        """The end of the console, of the script's output and of iscsid's log."""
        names = ("console.log", "output", "iscsid.log")
        return "\n".join(f"--- {name}\n" + "\n".join(self._read(name).splitlines()[-25:]) for name in names)
