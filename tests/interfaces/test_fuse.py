"""Volumes as files, over real mounts: what Linux's calls and everyday tools make of them."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import mmap
import os
import random
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests import tools
from tests.interfaces.mounts import MIB, Mount, mounted, shell
from tests.interop import initiators, processes
from tests.interop.serving import IQN_PREFIX

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
_numbers = itertools.count(1)
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    """One instance and mount for all tests of this file; each works on volumes of its own."""
    directory = Path(tempfile.mkdtemp(prefix="ovs-", dir="/dev/shm"))
    try:
        with mounted(directory, {"demo": "16M"}) as made:
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def name() -> str:
    return f"v{next(_numbers)}"


@pytest.fixture
def path(mount: Mount, name: str) -> Path:
    """A volume of 4 MiB."""
    made = mount.path(name)
    shell("truncate", "-s", "4M", made)
    return made


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "fallocate")


def put(path: Path, data: bytes) -> None:
    """Write at the beginning of what is there."""
    with path.open("r+b") as file:
        file.write(data)


# Creating, growing, removing ---------------------------------------------------------------------------------------


def test_truncate_creates_a_thin_volume_and_grows_it(mount: Mount, name: str) -> None:
    """``truncate -s 10G`` on a new name is a volume of that size without allocated space; a larger size grows it."""
    path = mount.path(name)
    shell("truncate", "-s", "10G", path)
    row = mount.row(name)
    assert (row["size_bytes"], row["allocated_bytes"]) == (str(10 << 30), "0")
    shell("truncate", "-s", "+1G", path)
    assert mount.row(name)["size_bytes"] == str(11 << 30)
    found = path.stat()
    assert (found.st_size, found.st_blocks) == (11 << 30, 0)
    assert stat.S_ISREG(found.st_mode)


def test_truncate_down_is_refused(path: Path) -> None:
    """A volume can't shrink: EPERM, for truncate as for opening with O_TRUNC, and nothing is lost."""
    put(path, b"here")
    for attempt in (lambda: os.truncate(path, MIB), lambda: os.open(path, os.O_WRONLY | os.O_TRUNC)):
        with pytest.raises(PermissionError):
            attempt()
    assert path.read_bytes()[:4] == b"here"
    assert path.stat().st_size == 4 * MIB


def test_qemu_img_creates_converts_and_compares(mount: Mount, name: str, short_dir: Path) -> None:
    """qemu-img create, convert, info and compare work on the mount as on any file system."""
    qemu_img = tools.require_tool("qemu-img", "qemu-utils")
    shell(qemu_img, "create", "-f", "raw", mount.path(name), "1G")
    assert "virtual size: 1 GiB" in shell(qemu_img, "info", mount.path(name))
    source = short_dir / "source"
    source.write_bytes(random.Random(1).randbytes(3 * MIB) + bytes(MIB))
    copy = mount.path(f"{name}-copy")
    shell(qemu_img, "convert", "-f", "raw", "-O", "raw", source, copy)
    assert "identical" in shell(qemu_img, "compare", "-f", "raw", "-F", "raw", source, copy)
    assert mount.row(f"{name}-copy")["size_bytes"] == str(4 * MIB)


def test_cp_and_dd_make_volumes_of_what_they_write(mount: Mount, name: str, short_dir: Path) -> None:
    """A file that is written from its beginning grows with each write; sizes are rounded up to 4096 bytes."""
    data = random.Random(2).randbytes(700_001)
    source = short_dir / "source"
    source.write_bytes(data)
    copy, dumped = mount.path(f"{name}-cp"), mount.path(f"{name}-dd")
    shell("cp", source, copy)
    shell("dd", f"if={source}", f"of={dumped}", "bs=100k", "conv=fsync")
    for made in (copy, dumped):
        assert made.read_bytes() == data + bytes(-len(data) % 4096)


def test_a_file_without_a_size_is_no_volume_yet(mount: Mount, name: str) -> None:
    """touch makes a file of size 0 that the directory lists and the server does not know; writing makes the volume."""
    path = mount.path(name)
    path.touch()
    assert path.name in os.listdir(mount.directory)
    assert path.stat().st_size == 0
    assert path.read_bytes() == b""
    assert mount.serve.volume("show", name).returncode == 3
    with path.open("r+b", buffering=0) as file:
        file.seek(10_000)
        file.write(b"end")
    assert mount.row(name)["size_bytes"] == "12288"
    assert path.read_bytes() == bytes(10_000) + b"end" + bytes(12_288 - 10_003)


def test_a_file_without_a_size_gives_way_to_a_volume_of_its_name(mount: Mount, name: str) -> None:
    """What another client creates under the name is the file from then on."""
    path = mount.path(name)
    path.touch()
    assert mount.serve.volume("create", name, "1M").returncode == 0
    processes.wait_until(lambda: path.stat().st_size == MIB, 5.0, "the volume's size")
    path.unlink()
    assert mount.serve.volume("show", name).returncode == 3


def test_unlink_removes_the_volume(mount: Mount, name: str, path: Path) -> None:
    path.unlink()
    assert mount.serve.volume("show", name).returncode == 3
    assert path.name not in os.listdir(mount.directory)
    with pytest.raises(FileNotFoundError):
        path.unlink()


def test_mv_renames(mount: Mount, name: str, path: Path) -> None:
    """The same volume under another name; who reads it goes on, who writes is not disturbed, and nothing is written
    over; a file without a size has another name, too."""
    put(path, b"moved")
    uuid = mount.row(name)["uuid"]
    other, third = mount.path(f"{name}-b"), mount.path(f"{name}-c")
    with path.open("rb", buffering=0) as reader:
        shell("mv", path, other)
        assert os.pread(reader.fileno(), 5, MIB) == bytes(5)
        assert os.fstat(reader.fileno()).st_size == 4 * MIB
        assert not path.exists()
        with other.open("r+b") as writer:
            writer.write(b"again")
            with pytest.raises(OSError, match="busy"):
                other.rename(third)
    mount.until_let_go(f"{name}-b")
    assert mount.row(f"{name}-b")["uuid"] == uuid
    assert other.read_bytes()[:5] == b"again"
    third.touch()
    with pytest.raises(FileExistsError):
        other.rename(third)
    third.rename(path)
    os.truncate(path, MIB)
    with pytest.raises(FileExistsError):
        other.rename(path)
    assert (path.stat().st_size, other.stat().st_size) == (MIB, 4 * MIB)
    with pytest.raises(FileNotFoundError):
        third.rename(mount.path(f"{name}-d"))
    with pytest.raises(OSError, match="Invalid"):
        path.rename(mount.directory / "UPPER")
    exchange = 2
    assert _libc.renameat2(-100, bytes(path), -100, bytes(other), exchange) == -1
    assert ctypes.get_errno() == errno.EINVAL


@pytest.mark.parametrize("bad", ["UPPER.raw", "no-suffix", "-a.raw", ".raw", f"{'x' * 64}.raw", "a b.raw"])
def test_names_that_no_volume_can_have(mount: Mount, bad: str) -> None:
    """They are not there, and can't be created: EINVAL."""
    assert not (mount.directory / bad).exists()
    with pytest.raises(OSError) as raised:
        (mount.directory / bad).touch()
    assert raised.value.errno == errno.EINVAL


def test_there_are_no_directories_and_no_links(mount: Mount) -> None:
    with pytest.raises(PermissionError):
        (mount.directory / "d").mkdir()
    with pytest.raises(OSError):
        (mount.directory / "l.raw").symlink_to("x")


def test_statfs_is_the_pool_s(mount: Mount) -> None:
    """df shows the file system that the pool lies on."""
    here, pool = os.statvfs(mount.directory), os.statvfs(mount.serve.state_dir)
    assert (here.f_blocks * here.f_frsize, here.f_namemax) == (pool.f_blocks * pool.f_frsize, 131)


def test_times_modes_and_owners_are_accepted(path: Path) -> None:
    """cp -p and tar go on; nothing is kept."""
    os.utime(path, (1, 1))
    path.chmod(0o644)
    os.chown(path, 0, 0)
    assert path.stat().st_mode & 0o777 == 0o600


# Data ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "O_DIRECT"])
def test_random_operations_against_a_model(mount: Mount, name: str, direct: bool) -> None:
    """As fsx does it: writes, reads, holes, zeroes, growth, syncs and reopening, held against a bytearray."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    path, step = mount.path(name), 4096 if direct else 1
    model = bytearray(256 << 10)
    shell("truncate", "-s", str(len(model)), path)
    descriptor = -1
    for count in range(400):
        if descriptor < 0 or dice.random() < 0.02:
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = os.open(path, os.O_RDWR | (os.O_DIRECT if direct else 0))
        offset = dice.randrange(len(model)) // step * step
        length = max(step, dice.randrange(1, 70_000) // step * step)
        within = min(length, len(model) - offset)
        operation = dice.choice(["write", "write", "read", "read", "punch", "zero", "grow", "fsync"])
        if operation == "write" and offset + length <= 1 << 20:
            data = aligned(dice.randbytes(length))
            assert os.pwrite(descriptor, data, offset) == length
            model += bytes(-(-max(0, offset + length - len(model)) // 4096) * 4096)
            model[offset : offset + length] = data
        elif operation == "read":
            data = aligned(bytes(length))
            done = os.preadv(descriptor, [data], offset)
            assert (done, data[:done]) == (within, model[offset : offset + within]), (seed, count)
        elif operation in ("punch", "zero"):
            mode = PUNCH_HOLE if operation == "punch" else ZERO_RANGE
            fallocate(descriptor, mode | KEEP_SIZE, offset, length)
            model[offset : offset + within] = bytes(within)
        elif operation == "grow" and len(model) < 1 << 20:
            model += bytes(4096 * dice.randrange(1, 9))
            os.ftruncate(descriptor, len(model))
        elif operation == "fsync":
            os.fsync(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == model, seed


def aligned(data: bytes) -> memoryview:
    """Memory at a page's start, as O_DIRECT wants it."""
    memory = memoryview(mmap.mmap(-1, len(data)))
    memory[:] = data
    return memory


def test_punching_holes_gives_space_back(mount: Mount, name: str, path: Path) -> None:
    """fallocate --punch-hole lowers the footprint, in ``volume show`` and st_blocks, and reads as zeros."""
    with path.open("r+b", buffering=0) as file:
        file.write(random.Random(3).randbytes(2 * MIB))
        assert mount.allocated(name) == 2 * MIB
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 0, MIB)
        assert mount.allocated(name) == MIB
        processes.wait_until(lambda: path.stat().st_blocks == MIB // 512, 5.0, "st_blocks of what is left")
        assert os.pread(file.fileno(), MIB, 0) == bytes(MIB)


def test_space_can_t_be_reserved(path: Path) -> None:
    """fallocate without a mode is EOPNOTSUPP, not a promise."""
    with path.open("r+b") as file, pytest.raises(OSError) as raised:
        fallocate(file.fileno(), 0, 0, MIB)
    assert raised.value.errno == errno.EOPNOTSUPP


# Snapshots ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def past(mount: Mount, name: str, path: Path) -> Path:
    """A snapshot of a volume that has gone on since: it begins with "then"."""
    put(path, b"then")
    mount.until_let_go(name)
    mount.snapshot("create", name, "Monday_1")
    put(path, b"now!")
    return mount.directory / ".snapshots" / name / "Monday_1.raw"


def test_snapshots_are_read(mount: Mount, name: str, path: Path, past: Path) -> None:
    """Each volume has a directory of them; each has the size of then, and was last changed when it was made."""
    with path.open("r+b") as writer:
        os.truncate(path, 8 * MIB)
        assert past.read_bytes() == b"then" + bytes(4 * MIB - 4)
        writer.write(b"soon")
        writer.flush()
        assert past.read_bytes()[:4] == b"then"
    found = past.stat()
    created = datetime.fromisoformat(json.loads(mount.snapshot("show", name, "Monday_1", "-o", "json"))["created"])
    assert (found.st_size, int(found.st_mtime)) == (4 * MIB, int(created.timestamp()))
    assert stat.filemode(found.st_mode) == "-r--------"
    assert found.st_blocks * 512 < MIB
    assert os.listdir(past.parent) == [past.name]
    assert name in os.listdir(past.parent.parent)
    assert past.parent.parent.name in os.listdir(mount.directory)
    mount.snapshot("create", name, "other")
    assert sorted(os.listdir(past.parent)) == [past.name, "other.raw"]
    for missing in (past.with_name("none.raw"), past.parent.with_name("none") / past.name, past.parent.with_name("no")):
        with pytest.raises(FileNotFoundError):
            missing.stat()


def test_snapshots_are_not_written(path: Path, past: Path) -> None:
    """EROFS for whatever would change them, or the directories that they stand in."""
    new = past.with_name("new.raw")
    for attempt in (
        lambda: past.open("r+b"),
        lambda: os.open(past, os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(past, 0),
        past.unlink,
        new.touch,
        lambda: past.rename(path.with_name("taken.raw")),
        lambda: path.rename(new),
        new.mkdir,
        past.parent.rmdir,
        lambda: past.chmod(0o600),
        lambda: os.utime(past),
    ):
        with pytest.raises(OSError, match="Read-only") as raised:
            attempt()
        assert raised.value.errno == errno.EROFS
    assert path.exists()


def test_a_snapshot_that_is_open_stays(mount: Mount, name: str, path: Path, past: Path) -> None:
    """It can't be removed, nor can its volume; over the server's death it is the same; closed it goes, and then it is
    not there any more."""
    with past.open("rb") as reader:
        assert reader.read(4) == b"then"
        mount.snapshot("remove", name, "Monday_1", "--yes", code=4)
        os.kill(mount.serve.server_pid(), signal.SIGKILL)
        with past.open("rb", buffering=0) as again:
            assert again.read(4) == b"then"
        assert os.pread(reader.fileno(), 4, 2 * MIB) == bytes(4)
        with pytest.raises(OSError, match="busy"):
            path.unlink()
    processes.wait_until(lambda: mount.lets_go(f"{name}@Monday_1"), 5.0, "the snapshot let go")
    mount.snapshot("remove", name, "Monday_1", "--yes")
    processes.wait_until(lambda: not past.exists(), 5.0, "it is gone")


def test_many_threads_on_one_file(path: Path) -> None:
    """Ten readers and writers at once, each on its own part, through one mount."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with path.open("r+b", buffering=0) as file:
                for turn in range(30):
                    data = bytes([number, turn]) * 4096
                    os.pwrite(file.fileno(), data, number * 65536)
                    assert os.pread(file.fileno(), len(data), number * 65536) == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("direct", [0, 1], ids=["cached", "O_DIRECT"])
def test_fio_verifies(path: Path, direct: bool) -> None:
    """Blocks of all sizes in random order, four jobs at once, fsyncs between: fio finds every checksum again."""
    fio = tools.require_tool("fio", "fio")
    job = ["--name=verify", f"--filename={path}", "--ioengine=psync", f"--direct={direct}", "--fallocate=none"]
    load = ["--rw=randwrite", "--bsrange=4k-128k", "--size=1m", "--offset_increment=1m", "--numjobs=4", "--fsync=8"]
    check = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--do_verify=1", "--loops=3"]
    said = shell(fio, *job, *load, *check)
    assert said.count("err= 0") == 4, said


# Beside others -------------------------------------------------------------------------------------------------------


def test_the_same_volume_over_iscsi(mount: Mount, name: str, path: Path) -> None:
    """What is written to the file is what an initiator reads, and the other way round."""
    with path.open("r+b") as file:
        file.write(b"\x5a" * MIB)
    mount.until_let_go(name)
    host, port = mount.serve.address
    url = f"iscsi://{host}:{port}/{IQN_PREFIX}{name}/0"
    initiators.qemu_io(url, "read -P 0x5a 0 1M", "read -P 0 1M 3M", "write -P 0x66 1M 1M")
    mount.until_let_go(name)
    assert path.read_bytes() == b"\x5a" * MIB + b"\x66" * MIB + bytes(2 * MIB)


def test_one_writer_at_a_time(mount: Mount, name: str, path: Path) -> None:
    """Open for writing here, no initiator writes; open for writing there, EBUSY here, but reading goes. Held: EBUSY."""
    host, port = mount.serve.address
    url = f"iscsi://{host}:{port}/{IQN_PREFIX}{name}/0"
    with path.open("r+b"):
        with path.open("r+b"):  # many opens share it
            assert "fuse mount" in str(mount.row(name)["held"])
        assert mount.serve.volume("remove", name).returncode == 4
        with pytest.raises(OSError) as raised:
            path.unlink()
        assert raised.value.errno == errno.EBUSY
        with pytest.raises(initiators.InitiatorError):
            initiators.qemu_io(url, "write 0 4096")
    mount.until_let_go(name)
    with initiators.QemuShell(url) as shell_of_qemu:
        shell_of_qemu.ask("write -P 7 0 4096")
        with pytest.raises(OSError) as raised:
            path.open("r+b")
        assert raised.value.errno == errno.EBUSY
        assert path.read_bytes()[:4096] == b"\7" * 4096
        with pytest.raises(OSError) as raised:
            path.unlink()
        assert raised.value.errno == errno.EBUSY


def test_growth_from_outside_is_seen(mount: Mount, name: str, path: Path) -> None:
    """``volume resize`` does not wait for an idle mount, and the open file has the new size."""
    with path.open("r+b", buffering=0) as file:
        assert mount.serve.volume("resize", name, "8M").returncode == 0
        assert f"volume {name}: a holder did not acknowledge" not in mount.serve.log_path.read_text()
        processes.wait_until(lambda: os.fstat(file.fileno()).st_size == 8 * MIB, 5.0, "the new size")
        assert os.pwrite(file.fileno(), b"x", 8 * MIB - 1) == 1


def test_removal_by_force(mount: Mount, name: str, path: Path) -> None:
    """``volume remove --force`` takes the volume from under an open file, which is stale from then on."""
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 0)
        assert mount.serve.volume("remove", name, "--force").returncode == 0
        with pytest.raises(OSError) as raised:
            os.pwrite(file.fileno(), b"y", 0)
        assert raised.value.errno == errno.ESTALE
    assert not path.exists()


# Faults --------------------------------------------------------------------------------------------------------------


def test_the_server_s_death_under_writes(mount: Mount, path: Path) -> None:
    """kill -9 of the volume server twice while a file is written, read and synced: no call fails, no byte is lost."""
    with path.open("r+b", buffering=0) as file:
        expected: dict[int, bytes] = {}
        for turn in range(60):
            killed = mount.serve.kill_server() if turn in (20, 40) else None
            for part in range(8):
                data = os.urandom(4096)
                assert os.pwrite(file.fileno(), data, (part * 37 + turn) % 64 * 65536) == 4096
                expected[(part * 37 + turn) % 64 * 65536] = data
            os.fsync(file.fileno())
            if killed is not None:
                mount.serve.wait_new_server(killed)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        for offset, data in expected.items():
            found = aligned(bytes(4096))
            assert os.preadv(descriptor, [found], offset) == 4096
            assert found == data
        os.close(descriptor)


def test_an_idle_mount_takes_its_volumes_back(mount: Mount, name: str, path: Path) -> None:
    """After a restart of the server a file that is open for writing is held again, without anybody touching it."""
    with path.open("r+b"):
        killed = mount.serve.kill_server()
        mount.serve.wait_new_server(killed)
        processes.wait_until(
            lambda: "fuse mount" in mount.serve.volume("show", name).stdout, 10.0, "the volume held by the mount again"
        )
