"""What a test asks of the machine before it starts: programs of other projects, root, a tap device.

One place for the rule: with CI=true a missing tool *fails* the test, because a judge that stayed at home must not look
like an acquittal; elsewhere the test skips and says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # not on the PATH of an ordinary user, though the tools are there


def _absent(sentence: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def find_tool(name: str) -> str | None:
    """The program's path, looked for on PATH and then where system programs live."""
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SBIN))


def require_tool(name: str, package: str) -> str:
    """The path of a program that a test drives; without it the test skips, or fails where CI=true."""
    path = find_tool(name)
    if path is None:
        _absent(f"{name} is not installed: apt install {package}")
    return path


def require_root_and_tun() -> None:
    """A guest needs root (network namespaces, mounts) and /dev/net/tun."""
    if os.geteuid() != 0:
        _absent("a Linux guest needs root for its network namespace: run the tests as root")
    if not Path("/dev/net/tun").exists():
        _absent("a Linux guest needs /dev/net/tun: modprobe tun, or give the container that device")


def require_small_linux() -> Path:
    """Where a kernel, its modules and busybox lie for a machine under QEMU."""
    directory = Path(__file__).parents[1] / ".linux"
    if not (directory / "ready").exists():
        _absent("Debian's cloud kernel is not unpacked here: tools/setup linux (it is downloaded, not installed)")
    return directory


@contextmanager
def huge_pages(count: int) -> Iterator[None]:
    """So many huge pages of 2 MiB more than there were; only root can have them made."""
    setting = Path("/proc/sys/vm/nr_hugepages")
    if os.geteuid() != 0 or not setting.exists():
        _absent("huge pages are made by root, where the kernel has them: run the tests as root")
    before = int(setting.read_text())
    setting.write_text(str(before + count))
    try:
        if int(setting.read_text()) < before + count:
            _absent(f"the kernel has no {count} huge pages for us: its memory is too fragmented")
        yield
    finally:
        setting.write_text(str(before))


@contextmanager
def small_file_system(directory: Path, size: str) -> Iterator[None]:
    """One in memory, of this size, mounted there; only root can mount."""
    if os.geteuid() != 0:
        _absent("a small file system is mounted by root: run the tests as root")
    directory.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        _absent(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def require_fuse() -> None:
    """A mount needs /dev/fuse, fusermount3 and mfusepy."""
    if not Path("/dev/fuse").exists():
        _absent("a mount needs /dev/fuse: modprobe fuse, or give the container that device")
    require_tool("fusermount3", "fuse3")
