"""What is private in published files: paths of this machine are stripped, tokens recognised."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hf_losses.hub.saved_run import ARGUMENTS_FILE

# Pickles are not published: loading one runs code, and training_args.bin holds the user's token.
TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".tsv", ".csv", ".jinja", ".py")

# In these files, what looks like a path is an entry of a vocabulary.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")

# Keys whose value names a model; of a local folder only the last part is kept.
NAMES = ("name_or_path", "_name_or_path", "base_model_name_or_path", "best_model_checkpoint")

# Where the files of users lie on other machines, on which the run may have been made.
FOREIGN = re.compile(
    r"(?:(?<=file://)|(?<![\w./-]))(?:/(?:home|Users|root|mnt|media|Volumes|data|scratch|work|"
    r"workspace|content|kaggle|srv|opt|nfs|gpfs|lustre|export|tmp|var)/|[A-Za-z]:\\Users\\)[^\s\"'<>|:*?`()\[\],;]+"
)
HOME = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[\\/][^\\/]+[\\/]?")

TOKEN = re.compile(rb"\bhf_[A-Za-z]{34}\b")


def without_paths(value: Any) -> Any:
    """Cuts every absolute path in JSON values down to its last part, wherever it leads.

    Args:
        value: The values; not changed themselves.
    """
    return Scrub(Path.cwd()).json(value, every=True)


def is_text(path: Path) -> bool:
    """Whether a file holds text, in which a path or a token could stand."""
    return path.is_file() and path.suffix in TEXTS


class Scrub:
    """Cleans files of the paths of this machine and the usual ones of others.

    A path becomes its last part.

    Args:
        run_dir: The folder of the run; its own path is cut, too.
    """

    def __init__(self, run_dir: Path) -> None:
        home = {str(Path.home()), os.path.realpath(Path.home())}
        local = {str(path) for path in (run_dir.absolute(), run_dir.resolve(), Path.cwd())}
        local |= {tempfile.gettempdir(), os.path.realpath(tempfile.gettempdir())}
        roots = sorted((path for path in home | local if len(Path(path).parts) > 1), reverse=True)
        self._home = home
        rest = r"(?:[\\/][^\s\"'<>|:*?`()\[\],;]*)?"
        either = "|".join(map(re.escape, roots))
        self._paths = re.compile(rf"(?<![\w.-])(?:{either})(?![\w.-]){rest}")

    def __call__(self, path: Path) -> None:
        """Cleans one file in place."""
        # Bytes that are not UTF-8 must come out as they were.
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        cleaned = self._text(text)
        if path.suffix == ".json":
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(text)  # Escapes hide a path from the search in the text.
                stripped = self.json(value, every=path.name == ARGUMENTS_FILE)
                cleaned = text if stripped == value else json.dumps(stripped, indent=2) + "\n"
        if cleaned != text:
            path.write_text(cleaned, encoding="utf-8", errors="surrogateescape")

    def _text(self, text: str) -> str:
        text = self._paths.sub(lambda match: self._last_part(match.group()), text)
        return FOREIGN.sub(lambda match: self._last_part(match.group()), text)

    def _last_part(self, path: str) -> str:
        # The last part of a home directory is the user's name.
        home = path.rstrip("\\/") in self._home or HOME.fullmatch(path)
        return "~" if home else PureWindowsPath(path).name

    def json(self, value: Any, key: str = "", every: bool = False) -> Any:
        """Cleans JSON values.

        Args:
            value: The values; not changed themselves.
            key: The key under which they stand.
            every: Whether absolute paths outside the known folders are cut, too.
        """
        if isinstance(value, dict):
            return {
                self._text(name): self.json(entry, name, every) for name, entry in value.items()
            }
        if isinstance(value, list):
            return [self.json(entry, key, every) for entry in value]
        if not isinstance(value, str):
            return value
        absolute = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        if (every and absolute) or (key in NAMES and (absolute or os.path.isdir(value))):
            return self._last_part(value)
        return self._text(value)
