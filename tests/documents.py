"""The commands that a document has, as they stand there: the lines of its indented blocks, under one heading."""

from __future__ import annotations

from pathlib import Path


def commands(document: Path, heading: str) -> list[str]:
    """Those under ``## heading``, without the remarks behind them."""
    text = document.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {heading}\n")
    assert found, f"{document.name} has no section {heading!r}"
    section = rest.partition("\n## ")[0]
    return [line.partition("  #")[0].strip() for line in section.splitlines() if line.startswith("    ")]
