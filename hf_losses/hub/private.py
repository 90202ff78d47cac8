"""What is stripped from published files: the paths of this machine. Tokens are looked for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from hf_losses.hub.saved_run import ARGUMENTS_FILE

# Pickles are not published: they run code, and that of the training arguments holds the token.
TEXTS = (".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".tsv", ".csv", ".jinja", ".py")

# What looks like a path in these is a word.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json")

# Keys whose value names a model; if that was a folder, its last part says enough.
NAMES = ("name_or_path", "_name_or_path", "base_model_name_or_path", "best_model_checkpoint")

TOKEN = re.compile(rb"\bhf_[A-Za-z]{34}\b")


def without_paths(value: Any) -> Any:
    """JSON values in which every absolute path, wherever it led, is its last part.

    Args:
        value: What is cleaned; not changed itself.
    """
    return Scrub(Path.cwd()).json(value, every=True)


def is_text(path: Path) -> bool:
    """Whether a file holds text, in which a path or a token could stand."""
    return path.is_file() and path.suffix in TEXTS


class Scrub:
    """Cleans files of the paths of this machine: a path becomes its last part.

    Args:
        run_dir: The folder of the run, whose own path is one of those.
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
        # Whatever the encoding, what is not a path stays.
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        cleaned = self._text(text)
        if path.suffix == ".json":
            with contextlib.suppress(json.JSONDecodeError):
                value = json.loads(text)  # Escapes hide a path from the search in the text.
                found = self.json(value, every=path.name == ARGUMENTS_FILE)
                cleaned = text if found == value else json.dumps(found, indent=2) + "\n"
        if cleaned != text:
            path.write_text(cleaned, encoding="utf-8", errors="surrogateescape")

    def _text(self, text: str) -> str:
        return self._paths.sub(lambda match: self._last_part(match.group()), text)

    def _last_part(self, path: str) -> str:
        # The last part of the home directory is the user's name.
        return "~" if path.rstrip("\\/") in self._home else PureWindowsPath(path).name

    def json(self, value: Any, key: str = "", every: bool = False) -> Any:
        """Cleans JSON values.

        Args:
            value: What is cleaned; not changed itself.
            key: The key that it stands under.
            every: Whether absolute paths outside the known folders are cut down, too.
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
