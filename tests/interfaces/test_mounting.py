"""``iscsi-ovs mount`` and ``unmount`` as commands: words, exit codes, and every end of the process behind a mount."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.interfaces import mounting
from tests.interfaces.mounts import ROOT, Mount, mounted, run
from tests.interop import processes
from tests.interop.serving import iscsi_ovs


@pytest.fixture
def mount(short_dir: Path) -> Iterator[Mount]:
    with mounted(short_dir, {"demo": "16M"}) as made:
        yield made


def process_of(mount: Mount) -> int:
    """The pid of the process behind it, as it tells whoever asks who holds a volume."""
    with mount.path("demo").open("r+b"):
        return int(str(mount.row("demo")["held"]).rpartition(" ")[2])


def test_what_can_t_be_mounted_is_a_sentence(mount: Mount, short_dir: Path) -> None:
    """No directory: exit code 3, one that has files: 2. No server: 5. Mounted already: 4, or not at all: 3."""
    assert "No such file" in run("mount", short_dir / "nowhere", "--state-dir", short_dir, code=3)
    assert "is not empty" in run("mount", mount.serve.state_dir, "--state-dir", mount.serve.state_dir, code=2)
    (empty := short_dir / "empty").mkdir()
    assert "no volume server" in run("mount", empty, "--state-dir", short_dir, code=5)
    assert "mounted already" in run("mount", mount.directory, "--state-dir", mount.serve.state_dir, code=4)
    assert "no mount of volumes" in run("unmount", short_dir, code=3)
    with mount.path("demo").open("rb"):
        assert "in use" in run("unmount", mount.directory, code=4)


def test_without_mfusepy_the_extra_is_named(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``iscsi-ovs mount`` without mfusepy says what to install; so it does without libfuse."""
    monkeypatch.setenv("PYTHONPATH", str(short_dir))
    for what, sentence in (("ImportError", "pip install 'iscsi-ovs[fuse]'"), ("OSError", "apt install fuse3")):
        (short_dir / "mfusepy.py").write_text(f"raise {what}('not there')")
        assert sentence in run("mount", short_dir, "--state-dir", short_dir, code=1)


def test_the_process_ends_with_the_mount(mount: Mount) -> None:
    """After unmount nothing is left: no process, no connection, no volume held."""
    pid = process_of(mount)
    run("unmount", mount.directory)
    assert processes.wait_gone(pid, 10.0)
    assert os.listdir(mount.directory) == []
    assert run("mount", mount.directory, "--state-dir", mount.serve.state_dir) == "", "libfuse has no word to say"
    assert sorted(os.listdir(mount.directory)) == [".snapshots", "demo.raw"]


def test_sigterm_unmounts(mount: Mount, short_dir: Path) -> None:
    """In the foreground it stays until SIGTERM, then unmounts and ends with code 0."""
    point = short_dir / "second"
    point.mkdir()
    reader, writer = os.pipe()
    command = iscsi_ovs("mount", str(point), "--foreground", "--state-dir", str(mount.serve.state_dir))
    process = subprocess.Popen([*command, "--ready-fd", str(writer)], cwd=ROOT, pass_fds=[writer])
    try:
        os.close(writer)
        assert os.read(reader, 10) == b"ready\n"
        assert sorted(os.listdir(point)) == [".snapshots", "demo.raw"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert os.listdir(point) == []
    finally:
        os.close(reader)
        process.kill()
        process.wait()
        subprocess.run(["fusermount3", "-u", "-z", "--", str(point)], capture_output=True, check=False)


def test_a_mount_whose_process_was_killed(mount: Mount) -> None:
    """kill -9 of it: the volume is free at once, it can be unmounted and mounted anew, what was written is there."""
    pid = process_of(mount)
    descriptor = os.open(mount.path("demo"), os.O_RDWR)
    assert os.pwrite(descriptor, b"before", 0) == 6
    processes.kill_all([pid])
    for attempt in (lambda: os.pwrite(descriptor, b"after", 0), lambda: os.close(descriptor)):
        with pytest.raises(OSError) as raised:
            attempt()
        assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    mount.until_let_go("demo")
    assert "mounted already" in run("mount", mount.directory, "--state-dir", mount.serve.state_dir, code=4)
    run("unmount", mount.directory)
    run("mount", mount.directory, "--state-dir", mount.serve.state_dir)
    assert mount.path("demo").read_bytes()[:6] == b"before"


def test_names_in_the_mount_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with a space in its name is found there; the same place of another type is not ours."""
    line = "36 25 0:33 / {} rw,nosuid - {} volumes rw,user_id=0"
    table = [line.format(r"/mnt/with\040space", "fuse.iscsi-ovs"), line.format("/mnt/other", "fuse.sshfs")]
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "\n".join(table))
    assert mounting.is_mounted(Path("/mnt/with space"))
    assert not mounting.is_mounted(Path("/mnt/other"))


def test_mfusepy_is_imported_when_it_is_used() -> None:
    """The rest of the command line does without it."""
    code = "import sys, iscsi_ovs.cli, iscsi_ovs.interfaces.mounting; sys.exit('mfusepy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
