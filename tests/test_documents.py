"""What documents name is there; commands of the README and of docs/VOLUMES.md work as they stand there, one behind the
other.

The journey of docs/VOLUMES.md needs a Linux initiator: tests/guest/test_journey.py, which types what the README's lines
of iscsiadm are, too. Disks as files and for virtual machines: tests/interfaces/test_virtual_machine.py. Other examples
in Python: tests/storage/test_examples.py, tests/interfaces/test_nbd.py. What installs, builds or measures (apt, pip,
make) is not typed here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.documents import commands
from tests.interop.serving import Serve, environment, iscsi_ovs
from tests.tools import require_tool

ROOT = Path(__file__).parents[1]
# What is typed at another terminal, or is about another page.
ELSEWHERE = ("serve", "reload", "mount", "unmount")
LINUX = ("iscsiadm", "lsblk", "mkfs")  # a kernel's initiator is asked for
PORTAL = "127.0.0.1:3260"
# What is typed while nobody serves the pool, and the two directories in it.
STOPPED, STATE, COPY = "cp -a --sparse", "/var/lib/iscsi-ovs", "/srv/copy"


DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("iscsi_ovs", "shm_server", "tests", "docs", "examples", "benchmarks", "conformance", "tools")
A_PATH = re.compile(rf"(?<![\w/.-])((?:[\w-]+/)+[\w-]+\.(?:py|md|toml)|(?:{'|'.join(FOLDERS)})/[\w/.-]*\w)")


def test_files_that_are_named_are_there() -> None:
    """Written from the root, from one of the packages, or from the documents."""
    bases = (ROOT, ROOT / "iscsi_ovs", ROOT / "shm_server", ROOT / "docs")
    named = [(document.name, path) for document in DOCUMENTS for path in A_PATH.findall(document.read_text("utf-8"))]
    assert len(named) > 100, "the documents are read as they are meant"
    assert [each for each in named if not any((base / each[1]).exists() for base in bases)] == []


def test_every_folder_is_among_the_rooms() -> None:
    """docs/ARCHITECTURE.md says what is in it."""
    rooms = (ROOT / "docs" / "ARCHITECTURE.md").read_text("utf-8").partition("\n## Rooms\n")[2].partition("\n## ")[0]
    for package in ("iscsi_ovs", "shm_server"):
        for folder in sorted(path.parent for path in (ROOT / package).glob("*/__init__.py")):
            assert f"{folder.relative_to(ROOT)}/ " in rooms or f"the door of {folder.relative_to(ROOT)}/" in rooms


@pytest.fixture
def terminal(short_dir: Path) -> Path:
    """A directory with the command `iscsi-ovs`, which finds a running instance without being told where."""
    (short_dir / ".venv" / "bin").mkdir(parents=True)
    command = short_dir / ".venv" / "bin" / "iscsi-ovs"
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m iscsi_ovs "$@" --state-dir {short_dir}/s\n'
    )
    command.chmod(0o755)
    return short_dir


def test_in_a_test_of_yours(terminal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's few lines of Python start a target, ask its disk who it is, and end it."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## In a test of yours\n")[2].partition("\n## ")[0]
    )
    lines = "\n".join(line for line in section.splitlines() if line.startswith("    "))
    # The command of a .venv, without the option that the fixture's puts behind everything.
    command = terminal / ".venv" / "bin" / "iscsi-ovs"
    command.write_text(command.read_text().partition(" --state-dir")[0] + "\n")
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    names: dict[str, Any] = {}
    exec(textwrap.dedent(lines), names)
    assert names["result"].data[8:16] == b"OVS     "


def test_unit() -> None:
    """systemd's unit calls commands that there are, with options that they have."""
    unit = (ROOT / "examples" / "iscsi-ovs.service").read_text(encoding="utf-8")
    called = [line.split()[1:] for line in unit.splitlines() if line.startswith("Exec")]
    assert [words[0] for words in called] == ["serve", "reload"]
    for command, *options in called:
        ran = subprocess.run(iscsi_ovs(command, "--help"), capture_output=True, text=True, check=True)
        assert [option for option in options if option.startswith("-") and option not in ran.stdout] == []


@pytest.mark.parametrize(
    ("document", "headings"),
    [
        ("README.md", ["Log in from Linux", "Volumes of a running server"]),
        (
            "docs/VOLUMES.md",
            [
                "Snapshots and clones",
                "Images",
                "Differences: a copy elsewhere that is kept up",
                "Looking after a pool",
            ],
        ),
    ],
)
def test_typed(terminal: Path, document: str, headings: list[str]) -> None:
    """Every command of the sections ends well, in their order."""
    require_tool("qemu-img", "qemu-utils")
    lines = [line for heading in headings for line in commands(ROOT / document, heading)]
    assert len(lines) > 8, "the document is read as it is meant"
    path = f"{terminal / '.venv' / 'bin'}:{os.environ['PATH']}"

    def type_in(line: str) -> None:
        ran = subprocess.run(
            ["sh", "-c", line],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
            cwd=terminal, env={**environment(), "PATH": path},
        )  # fmt: skip
        assert ran.returncode == 0, f"{document}: {line}\n{ran.stdout}{ran.stderr}\n{serve.log_tail()}"

    def volumes(running: Serve) -> str:
        return running.volume("list", "-o", "json").stdout

    with Serve(terminal / "s", {"demo": "64M"}) as serve:
        for line in lines:
            command = line.partition("iscsi-ovs ")[2].split(" ")[0]
            if command not in ELSEWHERE and not line.startswith((STOPPED, *LINUX)):
                type_in(line.replace(PORTAL, "{}:{}".format(*serve.address)))
        listed = volumes(serve)
        assert serve.stop() == 0
    for line in [line for line in lines if line.startswith(STOPPED)]:
        type_in(line.replace(STATE, str(terminal / "s")).replace(COPY, str(terminal / "copy")))
        (terminal / "s").rename(terminal / "gone")
        with Serve(terminal / "copy", {}) as copy:
            assert volumes(copy) == listed


def _anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    lines = [
        line.lstrip("#").strip().lower() for line in document.read_text("utf-8").splitlines() if line.startswith("#")
    ]
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in lines}


def test_links() -> None:
    """What a document points at is there: files, and headings in them."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text("utf-8")):
            if "://" not in link:
                name, _, anchor = link.partition("#")
                at = (document.parent / name).resolve() if name else document
                assert at.exists(), f"{document.name}: {link}"
                assert not anchor or anchor in _anchors(at), f"{document.name}: {link}"
