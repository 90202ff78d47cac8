"""What a node of a cluster must have for the runs of a comparison.

Ray sends this module to the nodes as it is, since they may lack the package: it uses the standard
library alone.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """What the machine of the comparison has, and the nodes must have as well.

    Attributes:
        version: Version of `hf_losses`.
        directory: Working directory, which relative paths start from.
        script: Path of the script.
        script_hash: SHA-256 of the script.
        sizes: Size in bytes of other files by their path; None for a folder.
        program: Program of the launcher; empty without one.
        mark: A file in the comparison's folder; a node that sees it shares the disk.
        mark_text: Its content.
    """

    version: str
    directory: str
    script: str
    script_hash: str
    sizes: Mapping[str, int | None]
    program: str
    mark: str
    mark_text: str


def local_sizes(values: Iterable[str]) -> dict[str, int | None]:
    """Which values are paths of files or folders here: the size of each file, None for a folder."""
    return {
        value: os.path.getsize(value) if os.path.isfile(value) else None
        for value in values
        if value and os.path.exists(value)
    }


def file_hash(path: str) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_node(needs: Needs) -> tuple[str, bool]:
    """What this machine lacks.

    Args:
        needs: What it should have.

    Returns:
        What it lacks, empty if it lacks nothing; and whether it sees the comparison's folder.
    """
    try:
        with open(needs.mark, encoding="utf-8") as file:
            shared = file.read() == needs.mark_text
    except OSError:
        shared = False
    return _lacking(needs), shared


def _lacking(needs: Needs) -> str:
    # In another process, as the script: Ray adds paths of the comparison's machine to this one.
    program = "import hf_losses; print(hf_losses.__version__)"
    imported = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False
    )
    if imported.returncode:
        error = imported.stderr.strip().rpartition("\n")[2]
        return f"cannot import hf_losses ({error}); install version {needs.version} there"
    version = imported.stdout.strip()
    if version != needs.version:
        return f"has hf_losses {version}, not {needs.version} as here"
    if not os.path.isdir(needs.directory):
        return f"lacks the working directory {needs.directory}, which relative paths start from"
    script = os.path.join(needs.directory, needs.script)
    if not os.path.isfile(script):
        return f"lacks the script {script}"
    if file_hash(script) != needs.script_hash:
        return f"has another version of the script {script}"
    for name, size in needs.sizes.items():
        path = os.path.join(needs.directory, name)
        if not os.path.exists(path):
            return f"lacks {path}"
        if size is not None and os.path.getsize(path) != size:
            return f"has another version of {path}, of {os.path.getsize(path)} bytes, not {size}"
    if needs.program:
        try:
            importlib.import_module("hf_losses.compare.plan").find_program(needs.program)
        except ValueError as error:
            return f"cannot start the script: {error}"
    return ""
