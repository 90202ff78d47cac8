"""Writes what the registry generates: the README's table of losses and the picture of the curves.

`python docs/build.py` writes; with `--check` it names what is stale and exits 1. A picture is
judged by the digest of its content in its metadata, so another matplotlib does not make it stale.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_losses import list_losses
from hf_losses.plots import digest, plot_losses
from hf_losses.table import as_markdown

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("docs/losses.svg", "docs/losses.png")
BEGIN, END = "<!-- losses:begin -->", "<!-- losses:end -->"


def readme() -> str:
    """The README with the table as the registry has it now."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"README.md must hold {BEGIN} and, below it, {END}")
    return f"{before}{BEGIN}\n\n{as_markdown(list_losses())}\n\n{END}{after}"


def stale() -> list[str]:
    """The files that no longer show the registry."""
    shown = digest(list_losses(task="classification")).encode()
    files = [name for name in PICTURES if not _holds(ROOT / name, shown)]
    if (ROOT / "README.md").read_text(encoding="utf-8") != readme():
        files.append("README.md")
    return files


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and content in path.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Writes, or with `--check` compares."""
    parser = argparse.ArgumentParser(description="Generate the README's table and picture.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    if parser.parse_args(argv).check:
        files = stale()
        for name in files:
            print(f"stale: {name} (run `make docs`)", file=sys.stderr)
        return int(bool(files))
    for name in PICTURES:
        plot_losses(list_losses(task="classification"), ROOT / name)
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
