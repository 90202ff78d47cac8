"""Checks of rows of prompts, completions and chats; errors name file and row."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_losses.data.text.tables import ROW_NAMES, layout, need_column
from hf_losses.messages import UsageError

TABLES = (".csv", ".tsv")
TOOLS = "tools"


def check_quotes(path: Path) -> None:
    """Raises a ValueError if `datasets` would join rows: it reads every table as a quoted one."""
    if path.suffix not in TABLES:  # A folder.
        return
    try:
        quoted = layout(path).quote_char
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not quoted and re.search(r'(^|\t)"', path.read_text(encoding="utf-8-sig"), re.MULTILINE):
        raise UsageError(
            f"{path} has cells that begin with a quote, which would be taken for that of a .csv: "
            "name the files one by one (--train_file, --validation_file, --test_file)"
        )


def check_rows(split: Dataset, columns: list[str], name: str, where: str) -> Dataset:
    """Checks every row, and returns the columns under their usual names with the row numbers."""
    is_test, is_chat = name == "test", len(columns) == 1
    texts: dict[str, Any] = {}
    if is_chat:
        (column,) = columns
        need_column(split, column, where)
        chats = split[column][:]
        for row, chat in enumerate(chats, start=1):
            _check_chat(chat, f"{where}, row {row}")
        texts["weights"] = [
            [weight * _turn_weight(turn) for turn in chat]
            for weight, chat in zip(_row_weights(split, where), chats, strict=True)
        ]
        texts["messages"] = [
            [without_none({key: turn[key] for key in turn if key != "weight"}) for turn in chat]
            for chat in chats
        ]
        if TOOLS in split.column_names:
            tools = enumerate(split[TOOLS][:], start=1)
            texts[TOOLS] = [_tools(value, f"{where}, row {row}") for row, value in tools]
        complete = [chat[-1]["role"] == "assistant" for chat in chats]
        missing = "the last turn is not the assistant's"
    else:
        prompt, completion = columns
        prompts = _texts(split, prompt, where)
        for row, text in enumerate(prompts, start=1):
            if not (text and text.strip()):
                raise UsageError(f"{where}, row {row}: no text in column {prompt!r}")
        answers: list[str | None] = [None] * len(split)
        if not is_test or completion in split.column_names:
            answers = _texts(split, completion, where)
        texts["prompt"] = prompts
        texts["weights"] = [[weight] for weight in _row_weights(split, where)]
        complete = [bool(text and text.strip()) for text in answers]
        texts["completion"] = answers if any(complete) else [None] * len(split)
        missing = f"no text in column {completion!r}"
    if not all(complete) and (any(complete) or not is_test):
        raise UsageError(
            f"{where}, row {complete.index(False) + 1}: {missing}; only a test set may have "
            "nothing to learn, and then in every row"
        )
    kept = {key: split[key][:] for key in ROW_NAMES if key in split.column_names}
    return Dataset.from_dict(texts | kept | {"row": list(range(1, len(split) + 1))})


def _row_weights(split: Dataset, where: str) -> list[float]:
    """The column `weight`, in which a row may leave out its 1; without one, 1 for every row."""
    if "weight" not in split.column_names:
        return [1.0] * len(split)
    weights = split["weight"][:]
    for row, weight in enumerate(weights, start=1):
        if not _is_weight(weight):
            raise UsageError(
                f"{where}, row {row}: weight {weight!r} is not a finite number from 0 up"
            )
    return [1.0 if weight is None else float(weight) for weight in weights]


def _tools(value: Any, where: str) -> str:
    """The tools of a chat as JSON: a list of their descriptions, or that as text already."""
    try:
        tools = json.loads(value) if isinstance(value, str) and value else value or []
    except ValueError:
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UsageError(f"{where}: {TOOLS} must be a list of descriptions, got {value!r:.80}")
    tools = tools if isinstance(value, str) else without_none(tools)
    return json.dumps(tools, ensure_ascii=False, default=str)


def without_none(value: Any) -> Any:
    """Without the keys that `datasets` adds so that all rows have the same ones.

    It adds them wherever it holds dicts: to a tool's arguments those of all other tools.
    """
    if isinstance(value, dict):
        return {key: without_none(part) for key, part in value.items() if part is not None}
    return [without_none(part) for part in value] if isinstance(value, list) else value


def _turn_weight(turn: dict[str, Any]) -> float:
    """What a turn's tokens weigh: the assistant's 1 unless it says so itself, all others 0."""
    weight = turn.get("weight")
    if turn["role"] != "assistant":
        return 0.0
    return 1.0 if weight is None else float(weight)


def _is_weight(weight: Any) -> bool:
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return weight is None or (is_number and 0 <= weight < float("inf"))


def _texts(split: Dataset, column: str, where: str) -> list[str | None]:
    need_column(split, column, where)
    texts: list[str | None] = split[column][:]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str | None):
            raise UsageError(f"{where}, row {row}: column {column!r} holds {text!r:.80}, not text")
    return texts


def _check_chat(chat: Any, where: str) -> None:
    is_list = isinstance(chat, list) and chat and all(isinstance(turn, dict) for turn in chat)
    if not is_list or not all(isinstance(turn.get("role"), str) for turn in chat):
        raise UsageError(f"{where}: a chat must be a list of {{role, content}}, got {chat!r:.80}")
    for number, turn in enumerate(chat, start=1):
        text, role = turn.get("content"), turn["role"]
        if not isinstance(text, str) or (role == "assistant" and not text.strip()):
            raise UsageError(f"{where}: turn {number} ({role}) has no text as content")
        if not _is_weight(turn.get("weight")):
            raise UsageError(
                f"{where}: turn {number} ({role}) has weight {turn['weight']!r}, which is not a "
                "finite number from 0 up (0: the turn is not learned; without one: 1)"
            )
    if len(chat) == 1 and chat[0]["role"] == "assistant":
        raise UsageError(
            f"{where}: the assistant's turn answers nothing; a turn before it is needed"
        )
