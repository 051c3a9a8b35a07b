"""A small Linux under QEMU (TCG): Debian's cloud kernel, and an initramfs of busybox and a few programs made here.

`tools/setup` has put kernel, modules and busybox into `.linux`; programs come from the host with their libraries. The
initramfs runs one script of the test's; what that reports comes out on the serial console, which is also how the test
tells it something. No network and no root: its disks are all that it has, and they are the test's to give.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.guest.console import Console, GuestError, GuestResult
from tests.interop import processes
from tests.interop.serving import environment
from tests.tools import require_small_linux, require_tool

MEMORY = "192M"
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk")
PROGRAMS = (("mke2fs", "e2fsprogs"), ("e2fsck", "e2fsprogs"), ("fstrim", "util-linux"), ("dd", "coreutils"))

# `report KEY VALUE` hands a value out; `say TEXT` marks the console; `told NAME` is whether the test has called
# `tell(NAME)`.
INIT = r"""#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mkdir /run/disk
stty -F /dev/ttyS0 -echo
for module in @MODULES@; do insmod /modules/$module.ko; done
report() { printf 'report: %s\t%s\n' "$1" "$2"; }
say() { printf 'guest: %s\n' "$*"; }
told() { [ -e /run/told.$1 ]; }
@PROGRAMS@
while read -r name; do touch "/run/told.$name"; done </dev/ttyS0 &
(
set -euo pipefail
. /script
)
report exit $?
dmesg | sed 's/^/dmesg: /'
sync
poweroff -f
"""

_REPORT = re.compile(r"^report: (\w+)\t(.*?)\r?$", re.MULTILINE)
_DMESG = re.compile(r"^dmesg: (.*?)\r?$", re.MULTILINE)


class SmallLinux:
    """One boot, ended with the context. Its directory holds the initramfs and the console's log."""

    def __init__(self, directory: Path, arguments: Sequence[str], *, processors: int = 1) -> None:
        """``arguments`` are QEMU's for memory and disks, as ``volume export`` prints them."""
        self._linux = require_small_linux()
        self._qemu = require_tool("qemu-system-x86_64", "qemu-system-x86")
        self._programs = [Path(require_tool(name, package)) for name, package in PROGRAMS]
        self._directory = directory
        self._arguments = list(arguments)
        self._processors = processors
        self._process: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None

    def start(self, script: str) -> None:
        """Boots with this script (`set -euo pipefail`); `console` and `finish` follow."""
        self._directory.mkdir(parents=True, exist_ok=True)
        archive = self._directory / "initramfs"
        archive.write_bytes(self._initramfs(script))
        command = [self._qemu, "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        command += ["-smp", str(self._processors), *self._arguments]
        command += ["-kernel", str(self._linux / "vmlinuz"), "-initrd", str(archive)]
        command += ["-append", "console=ttyS0 quiet panic=-1"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
        )
        self._console = Console(self._process, self._directory / "console.log", self.tail)

    def _initramfs(self, script: str) -> bytes:
        # busybox's shell takes its own program for a name wherever it has one
        ours = "\n".join(f'{program.name}() {{ {program} "$@"; }}' for program in self._programs)
        files: dict[str, bytes] = {
            "init": INIT.replace("@MODULES@", " ".join(MODULES)).replace("@PROGRAMS@", ours).encode(),
            "script": script.encode(),
            "bin/busybox": (self._linux / "busybox").read_bytes(),
            "etc/mke2fs.conf": Path("/etc/mke2fs.conf").read_bytes(),
        }
        for module in MODULES:
            files[f"modules/{module}.ko"] = (self._linux / f"{module}.ko").read_bytes()
        for program in self._programs:
            for path in (program, *_libraries(program)):
                files[str(path).lstrip("/")] = path.read_bytes()
        return _archive(files, ("proc", "sys", "dev", "run", "tmp"))

    @property
    def console(self) -> Console:
        assert self._console is not None, "not started"
        return self._console

    def tell(self, name: str) -> None:
        """Makes `told NAME` true in the guest."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        self._process.stdin.flush()

    def finish(self, timeout_s: float) -> GuestResult:
        """Waits until the guest has powered off, and reads what it reported."""
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise GuestError(f"the guest was not done after {timeout_s:g} s: {self.tail()}") from None
        finally:
            self.kill()
        text = self.console.all()
        values = dict(_REPORT.findall(text))
        if "exit" not in values:
            raise GuestError(f"the guest ended without a result: {self.tail()}")
        return GuestResult(int(values.pop("exit")), values, text, "\n".join(_DMESG.findall(text)))

    def kill(self) -> None:
        if self._process is not None:
            processes.kill_all([self._process.pid])
            self._process.wait(10)
            if self._process.stdin is not None:
                self._process.stdin.close()

    def __enter__(self) -> SmallLinux:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def tail(self) -> str:
        """The end of the console."""
        log = self._directory / "console.log"
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join([line for line in lines if not line.startswith("dmesg: ")][-40:])


def _libraries(program: Path) -> list[Path]:
    """What the program is linked with, and the loader."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", said)]


def _archive(files: dict[str, bytes], directories: Sequence[str]) -> bytes:
    """The "newc" format of cpio, which the kernel unpacks ("initramfs buffer format")."""
    parents = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries = [(name, 0o040755, b"") for name in sorted({*directories, *parents})]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    entries += [("dev/console", 0o020600, b""), ("TRAILER!!!", 0, b"")]
    archive = bytearray()
    for number, (name, mode, content) in enumerate(entries, 1):
        minor, major = (1, 5) if name == "dev/console" else (0, 0)
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4) + content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
