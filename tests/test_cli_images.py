"""`iscsi-ovs volume export` and `import` of images, with QEMU's tools as judges."""

from __future__ import annotations

import itertools
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs.cli.images import _interruptible
from iscsi_ovs.images import applying, importing
from iscsi_ovs.images.image import Extent, ImageError, Kind
from iscsi_ovs.shm_client import Context
from tests.images.pictures import KIB, MIB, a_disk, write_qcow2
from tests.images.test_qcow2 import qemu_img
from tests.interop.serving import Serve, iscsi_ovs
from tests.test_cli import BUSY, DONE, FAILED, NOT_FOUND, ROOT, USAGE, run

Call = Callable[..., "subprocess.CompletedProcess[str]"]
_numbers = itertools.count(1)
SIZE = 8 * MIB


@pytest.fixture
def name() -> str:
    """Of a volume that is not there yet."""
    return f"w{next(_numbers)}"


@pytest.fixture
def volume(serve: Serve) -> Call:
    def call(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run("volume", command, "--state-dir", serve.state_dir, *arguments)

    return call


@pytest.fixture
def disk() -> bytes:
    return a_disk(SIZE)


def put(context: Context, name: str, data: bytes, offset: int = 0) -> None:
    with context.open(name) as volume:
        buffer = context.allocate(len(data))
        buffer.data[:] = data
        volume.write(buffer, len(data), offset)
        context.deallocate(buffer)


def get(context: Context, name: str) -> bytes:
    with context.open(name, os.O_RDONLY) as volume:
        buffer = context.allocate(volume.size)
        volume.read(buffer, volume.size, 0)
        found = bytes(buffer.data)
        context.deallocate(buffer)
        return found


# Out and in --------------------------------------------------------------------------------------------------------


def test_out(context: Context, volume: Call, name: str, disk: bytes, short_dir: Path) -> None:
    """As raw and as qcow2: QEMU sees the volume's bytes in both, and what is zero takes no space."""
    context.create_volume(name, SIZE)
    put(context, name, disk)
    raw, image = short_dir / "a.raw", short_dir / "a.qcow2"
    for path in (raw, image):
        assert volume("export", name, path).returncode == DONE
    assert raw.read_bytes() == disk
    assert raw.stat().st_blocks * 512 < len(disk)
    assert "No errors were found" in qemu_img("check", image)
    assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", raw, image)
    assert image.stat().st_size < len(disk)


@pytest.mark.parametrize("options", [["raw"], ["qcow2"], ["qcow2", "-c"]], ids=str)
def test_in(context: Context, volume: Call, name: str, disk: bytes, short_dir: Path, options: list[str]) -> None:
    """What QEMU wrote becomes a volume of these bytes; what is zero takes no space."""
    raw, image = short_dir / "a.raw", short_dir / "image"
    raw.write_bytes(disk)
    qemu_img("convert", "-f", "raw", "-O", *options, raw, image)
    ran = volume("import", image, name)
    assert (ran.returncode, ran.stderr) == (DONE, "")
    assert get(context, name) == disk
    zero_pages = sum(not any(disk[at : at + 4096]) for at in range(0, SIZE, 4096))
    assert context.stat_volume(name).allocated_bytes == SIZE - zero_pages * 4096


def test_odd_size(context: Context, volume: Call, name: str, short_dir: Path) -> None:
    """A volume has whole pages: what is missing of the last one is zeros."""
    image = short_dir / "a.raw"
    image.write_bytes(b"x" * 512 * 3)
    assert volume("import", image, name).returncode == DONE
    assert get(context, name) == (b"x" * 512 * 3).ljust(4096, b"\0")


def test_mostly_holes(context: Context, volume: Call, name: str, short_dir: Path) -> None:
    """1 TiB with three pages of data, at its start, in the middle and at its end: out and in, and nothing crawls."""
    context.create_volume(name, 1 << 40)
    for offset in (0, (1 << 39) + 12 * KIB, (1 << 40) - 4 * KIB):
        put(context, name, b"page" * KIB, offset)
    image = short_dir / "a.qcow2"
    assert volume("export", name, image).returncode == DONE
    assert image.stat().st_size < MIB
    assert volume("import", image, name + "x").returncode == DONE
    assert context.stat_volume(name + "x").allocated_bytes == 12 * KIB
    assert volume("export", name + "x", short_dir / "b.raw").returncode == DONE
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", image, short_dir / "b.raw")


# Differences -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(context: Context, name: str, disk: bytes) -> tuple[bytes, bytes]:
    """A volume with the snapshots monday and tuesday, and what it was then."""
    context.create_volume(name, SIZE)
    put(context, name, disk)
    context.create_snapshot(name, "monday")
    later = bytearray(disk)
    for at, data in ((8 * KIB, b"changed" * KIB), (3 * MIB + 100, b"odd"), (5 * MIB, bytes(512 * KIB))):
        put(context, name, data, at)
        later[at : at + len(data)] = data
    with context.open(name) as volume:
        volume.discard(6 * MIB, MIB)
    later[6 * MIB : 7 * MIB] = bytes(MIB)
    context.create_snapshot(name, "tuesday")
    put(context, name, b"wednesday")  # what comes later is in none of it
    return disk, bytes(later)


@pytest.mark.parametrize("suffix", ["raw", "qcow2"])
def test_over_the_earlier_image(
    volume: Call, name: str, two: tuple[bytes, bytes], short_dir: Path, suffix: str
) -> None:
    """QEMU reads the difference over the image of the earlier snapshot, and finds the later one; it is much smaller."""
    whole, difference = short_dir / f"monday.{suffix}", short_dir / "tuesday.qcow2"
    assert volume("export", f"{name}@monday", whole).returncode == DONE
    ran = volume("export", f"{name}@tuesday", difference, "--since", "monday", "--backing", whole.name)
    assert (ran.returncode, ran.stderr) == (DONE, "")
    (short_dir / "expected.raw").write_bytes(two[1])
    assert "No errors were found" in qemu_img("check", difference)
    names = difference, short_dir / "expected.raw"
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", *names)
    assert difference.stat().st_size < 64 * KIB
    qemu_img("commit", "-q", "-f", "qcow2", difference)
    assert "identical" in qemu_img("compare", "-f", suffix, "-F", "raw", whole, short_dir / "expected.raw")


def test_onto_a_clone(context: Context, volume: Call, name: str, two: tuple[bytes, bytes], short_dir: Path) -> None:
    """A clone of the earlier snapshot becomes the later one, and says so by its snapshots."""
    difference = short_dir / "d.qcow2"
    assert volume("export", f"{name}@tuesday", difference, "--since", "monday").returncode == DONE
    context.clone_volume(name, "monday", "copy")
    ran = volume("import", difference, "--onto", "copy")
    assert (ran.returncode, ran.stderr) == (DONE, "")
    assert get(context, "copy") == two[1]
    assert [found.name for found in context.list_snapshots("copy")] == ["monday", "tuesday"]
    assert get(context, "copy@monday") == two[0]
    context.remove_volume("copy")


def test_elsewhere(context: Context, volume: Call, name: str, two: tuple[bytes, bytes], short_dir: Path) -> None:
    """In another pool: the whole image, then difference upon difference; each fits only where it should."""
    put(context, name, b"thursday", 2 * MIB)
    context.create_snapshot(name, "thursday")
    whole, first, second = (short_dir / f"{each}.qcow2" for each in ("whole", "first", "second"))
    assert volume("export", f"{name}@monday", whole).returncode == DONE
    assert volume("export", f"{name}@tuesday", first, "--since", "monday").returncode == DONE
    assert volume("export", f"{name}@thursday", second, "--since", "tuesday").returncode == DONE
    with Serve(short_dir / "t", {}) as other, Context(state_dir=other.state_dir) as there:

        def bring(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
            return run("volume", "import", "--state-dir", other.state_dir, *arguments)

        assert bring(whole, "mirror", "--with-snapshot").returncode == DONE
        ran = bring(second, "--onto", "mirror")
        assert ran.returncode == FAILED
        assert f"volume mirror is not known to be {name}@tuesday" in ran.stderr
        assert bring(first, "--onto", "mirror").returncode == DONE
        assert get(there, "mirror") == two[1]
        assert bring(first, "--onto", "mirror").returncode == BUSY  # it has that snapshot
        put(there, "mirror", b"x")
        ran = bring(second, "--onto", "mirror")
        assert ran.returncode == FAILED
        assert f"was written since it was {name}@tuesday: roll it back" in ran.stderr
        there.rollback_snapshot("mirror", "tuesday")
        assert bring(second, "--onto", "mirror").returncode == DONE
        assert get(there, "mirror") == get(context, f"{name}@thursday")
        assert other.stop() == 0


def test_force(context: Context, volume: Call, name: str, two: tuple[bytes, bytes], short_dir: Path) -> None:
    """Onto whatever it is: what changed comes, the rest stays."""
    difference = short_dir / "d.qcow2"
    assert volume("export", f"{name}@tuesday", difference, "--since", "monday").returncode == DONE
    context.create_volume("any", SIZE)
    put(context, "any", two[0])
    assert volume("import", difference, "--onto", "any").returncode == FAILED
    assert get(context, "any") == two[0]
    assert volume("import", difference, "--onto", "any", "--force").returncode == DONE
    assert get(context, "any") == two[1]
    context.remove_volume("any")


def test_half_a_difference(
    context: Context, volume: Call, name: str, two: tuple[bytes, bytes], short_dir: Path
) -> None:
    """What ends it half-way is undone: the volume is what it was."""
    difference = short_dir / "d.qcow2"
    assert volume("export", f"{name}@tuesday", difference, "--since", "monday").returncode == DONE
    context.clone_volume(name, "monday", "half")
    with importing.opened(difference, None) as image:
        fill = image.reader.fill
        calls = itertools.count()

        def fail(extent: Extent, view: memoryview) -> None:
            if next(calls):
                raise KeyboardInterrupt
            fill(extent, view)

        image.reader.fill = fail  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            applying.apply(context, image, "half", lambda done: None)
    assert next(calls) > 1
    assert get(context, "half") == two[0]
    context.remove_volume("half")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export", "{name}", "a.qcow2", "--since", "monday"], USAGE, "--since is for two snapshots"),
        (["export", "{name}@tuesday", "--since", "monday", "--vhost-user", "x"], USAGE, "for a qcow2 FILE"),
        (["export", "{name}@tuesday", "{dir}/a.qcow2", "--since", "friday"], NOT_FOUND, "no snapshot friday"),
        (["export", "{name}@monday", "{dir}/a.qcow2", "--backing", "b"], USAGE, "--backing is for --since"),
        (
            ["export", "{name}@tuesday", "{dir}/a.qcow2", "--since", "monday", "--backing", "none.raw"],
            FAILED,
            "none.raw is not there: say --backing-format",
        ),
        (["import", "a.qcow2", "b", "--onto", "c"], USAGE, "one of NAME and --onto"),
        (["import", "a.qcow2", "b", "--force"], USAGE, "--force is for --onto"),
        (["import", "{dir}/d.qcow2", "new"], FAILED, "it is the difference since {name}@monday: import it --onto"),
        (["import", "{dir}/w.qcow2", "--onto", "{name}"], FAILED, "it is a whole image"),
        (["import", "{dir}/r.raw", "new", "--with-snapshot"], FAILED, "does not say which snapshot"),
    ],
)
def test_no_difference(
    volume: Call,
    name: str,
    two: tuple[bytes, bytes],
    short_dir: Path,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    """What can't be is refused in a sentence."""
    if "d.qcow2" in arguments[1]:
        assert volume("export", f"{name}@tuesday", short_dir / "d.qcow2", "--since", "monday").returncode == DONE
    write_qcow2(short_dir / "w.qcow2", two[0])
    (short_dir / "r.raw").write_bytes(bytes(MIB))
    places = {"name": name, "dir": str(short_dir)}
    ran = volume(*(argument.format(**places) for argument in arguments))
    assert (ran.returncode, words.format(**places) in ran.stderr) == (code, True), ran.stderr


# What is refused ---------------------------------------------------------------------------------------------------


def test_names_that_are_there(context: Context, volume: Call, name: str, short_dir: Path) -> None:
    """A file is replaced only with --yes, a volume never; what isn't there is 3."""
    context.create_volume(name, MIB)
    path = short_dir / "a.raw"
    path.write_bytes(b"old")
    ran = volume("export", name, path)
    assert (ran.returncode, path.read_bytes()) == (BUSY, b"old")
    assert "--yes replaces it" in ran.stderr
    assert volume("export", "--yes", name, path).returncode == DONE
    assert path.stat().st_size == MIB
    assert volume("import", path, name).returncode == BUSY
    assert volume("export", "none", short_dir / "b.raw").returncode == NOT_FOUND
    assert volume("import", short_dir / "none.raw", "other").returncode == NOT_FOUND
    ran = volume("export", name, short_dir / "none" / "a.raw")
    assert (ran.returncode, ran.stderr) == (NOT_FOUND, f"iscsi-ovs: {short_dir}/none: there is no such directory\n")
    assert os.listdir(short_dir) == ["a.raw"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "demo"], "one of FILE and --vhost-user"),
        (["export", "demo", "a.raw", "--vhost-user", "b.sock"], "one of FILE and --vhost-user"),
        (["export", "demo", "a.vmdk", "--format", "vmdk"], "'vmdk' is not one of"),
        (["export", "demo", "a.raw", "--read-only"], "--read-only is for --vhost-user"),
        (["import", "a.raw"], "one of NAME and --onto VOLUME"),
    ],
)
def test_usage(volume: Call, arguments: list[str], words: str) -> None:
    """What can't be meant is 2."""
    ran = volume(*arguments)
    assert (ran.returncode, words in ran.stderr) == (USAGE, True), ran.stderr


def test_a_name_without_a_format(volume: Call, short_dir: Path) -> None:
    """What format a new file gets is not guessed."""
    ran = volume("export", "demo", short_dir / "a.disk")
    assert (ran.returncode, "--format raw or --format qcow2" in ran.stderr) == (USAGE, True)


def test_no_image(context: Context, volume: Call, name: str, short_dir: Path) -> None:
    """What can't be read is told with the file's name, and leaves no volume."""
    path = short_dir / "a.qcow2"
    write_qcow2(path, b"data" * 64 * KIB)
    image = bytearray(path.read_bytes())
    image[72:80] = (1 << 4).to_bytes(8, "big")
    path.write_bytes(image)
    ran = volume("import", path, name)
    assert (ran.returncode, ran.stderr) == (FAILED, f"iscsi-ovs: {path}: it has extended L2 entries\n")
    below, above = short_dir / "below.raw", short_dir / "above.qcow2"
    below.write_bytes(bytes(MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", above)
    ran = volume("import", above, name)
    assert (ran.returncode, "stands on another image" in ran.stderr) == (FAILED, True)
    assert name not in {found.name for found in context.list_volumes()}


class _Ending:
    """An image that comes to an end of another kind, half-way."""

    size_bytes = 64 * MIB
    step_bytes = MIB

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end

    def extents(self) -> Iterator[Extent]:
        for at in range(0, self.size_bytes, MIB):
            yield Extent(at, MIB, Kind.DATA, at)

    def fill(self, extent: Extent, view: memoryview) -> None:
        if extent.at == 32 * MIB:
            self._end()
        view[:] = b"x" * len(view)


def _fail() -> None:
    raise ImageError("it was cut")


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (_fail, ImageError),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), KeyboardInterrupt),
        (lambda: os.kill(os.getpid(), signal.SIGINT), KeyboardInterrupt),
    ],
    ids=["error", "SIGTERM", "SIGINT"],
)
def test_half_an_import(context: Context, name: str, end: Callable[[], object], error: type[BaseException]) -> None:
    """Whatever ends an import, no half-made volume is left."""
    image = importing.Image(Path("half"), _Ending(end), "", None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs us in the background ignores it
    try:
        with pytest.raises(error), _interruptible():
            importing.import_image(context, image, name, lambda done: None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert name not in {found.name for found in context.list_volumes()}


def test_server_dies_under_an_import(short_dir: Path) -> None:
    """Its successor has no half-made volume either."""
    with Serve(short_dir / "s", {"other": "64M"}) as serve, Context(state_dir=serve.state_dir) as context:
        image = importing.Image(Path("half"), _Ending(serve.kill_server), "", None)
        with pytest.raises(ConnectionError):
            importing.import_image(context, image, "half", lambda done: None)
        with Context(state_dir=serve.state_dir) as again:
            assert [found.name for found in again.list_volumes()] == ["other"]
        assert serve.stop() == 0


# A terminal --------------------------------------------------------------------------------------------------------


def test_bar(serve: Serve, name: str, short_dir: Path) -> None:
    """A terminal sees how far it is; a pipe sees nothing (test_in)."""
    image = short_dir / "a.raw"
    image.write_bytes(a_disk(SIZE))
    reader, terminal = pty.openpty()
    command = iscsi_ovs("volume", "import", "--state-dir", str(serve.state_dir), str(image), name)
    ran = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=terminal, timeout=30, cwd=ROOT, check=False)
    os.close(terminal)
    said = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert ran.returncode == DONE
    assert re.search(r"importing a\.raw.*100%", said, re.DOTALL), said
