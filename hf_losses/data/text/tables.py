"""Reads and checks files of rows: csv, tsv, json, jsonl and parquet."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset

from hf_losses.messages import UsageError, nearest

LONGEST = 2**30  # Characters of a cell; Arrow then applies its own limit.

ROW_NAMES = ("idx", "id")  # Columns that name the rows.
FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def sample(split: Dataset, name: str, limit: int | None) -> Dataset:
    """A fixed random sample of at most `limit` rows, with their positions; None takes all.

    Args:
        split: The set.
        name: Its name, for the error.
        limit: Rows to take.

    Raises:
        ValueError: If the limit is not positive.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"cannot take {limit} rows of the {name} set: at least 1 is needed")
    if limit is None or limit >= len(split):
        return split
    if not set(ROW_NAMES) & set(split.column_names):
        split = split.add_column(ROW_NAMES[0], range(len(split)))
    # Files are often sorted by label: the first rows may hold one class alone.
    return split.shuffle(seed=0).select(range(limit))


def read_rows(paths: list[Path]) -> Dataset:
    """Reads files of one set: csv, tsv, json (a list, or one object a line) or parquet.

    Args:
        paths: The files.

    Raises:
        ValueError: If one cannot be read, or there are no rows.
    """
    split = Dataset(pa.concat_tables([_read_table(path) for path in paths]))
    if not len(split):
        raise UsageError(f"{paths[0]} has no rows")
    return split


def check_file(path: Path, formats: tuple[str, ...] = FORMATS) -> None:
    """Raises a ValueError if a file is missing, or has none of the formats.

    Args:
        path: The file.
        formats: Valid endings of its name.
    """
    if path.suffix not in formats:
        raise UsageError(f"{path}: unknown format; the name must end in {', '.join(formats)}")
    if not path.is_file():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no file {str(path)!r}.{nearest(path.name, names)}")


def _read_table(path: Path) -> pa.Table:
    check_file(path)
    try:
        if path.suffix == ".parquet":
            return pa.parquet.read_table(path)
        if path.suffix in (".csv", ".tsv"):
            # Unlike pandas, Arrow refuses rows that are too short, and keeps 'NA' as a word.
            table = pa.csv.read_csv(path, parse_options=layout(path))
            names = table.column_names
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UsageError(f"two columns have the name {twice!r}: rename one of them")
            return table
        rows = _json_rows(path.read_text(encoding="utf-8-sig"))
        # Of all rows: Table.from_pylist takes the columns of the first and drops all others.
        columns = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                columns[name] = pa.array([row.get(name) for row in rows])
            except pa.ArrowException as error:
                raise UsageError(f"column {name!r}: {error}") from error
        return pa.table(columns)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: {error}") from error


def layout(path: Path) -> pa.csv.ParseOptions:
    """How a table is read: a .csv has quoted cells, and so has a .tsv whose header is quoted.

    In any other .tsv, quotes are part of the text, as in the files of GLUE.

    Args:
        path: The file.

    Raises:
        ValueError: If its quotes would join cells or rows.
    """
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        quoted = delimiter == "," or header.startswith('"') or '\t"' in header
        for number, line in enumerate(() if quoted else file, start=2):
            cells = line.rstrip("\r\n").split("\t") if '""' in line else []
            if cell := next(filter(_escaped, cells), ""):
                raise UsageError(
                    f"line {number}: {cell:.80} looks quoted as in a .csv, but the header is not, "
                    "and quotes are text in such a .tsv; write it without quotes, or with all "
                    "cells quoted (csv.QUOTE_ALL), or as .jsonl"
                )
        if quoted:
            file.seek(0)
            csv.field_size_limit(LONGEST)
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            columns = empty = 0
            try:
                for row in rows:
                    if row and empty and columns == 1:
                        # Arrow would leave it out, and the rows that follow would move up.
                        raise UsageError(f'line {empty} is empty: write "" for an empty text')
                    columns = columns or len(row)
                    empty = 0 if row else rows.line_num * bool(columns)
            except csv.Error as error:
                raise UsageError(
                    f"line {rows.line_num}: {error}; a cell that begins with a quote must end with "
                    "one, and have those in between doubled; or write the file as .jsonl"
                ) from error
    return pa.csv.ParseOptions(
        delimiter=delimiter,
        quote_char='"' if quoted else False,
        newlines_in_values=quoted,
    )


def _escaped(cell: str) -> bool:
    """Whether a cell is in quotes, and all quotes within it are doubled, with one pair at least."""
    inner = cell[1:-1]
    in_quotes = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return in_quotes and '""' in inner and '"' not in inner.replace('""', "")


def _json_rows(text: str) -> list[dict[str, Any]]:
    """The rows of a JSON list, or of one JSON object a line."""
    if text.lstrip().startswith("["):
        rows = list(enumerate(json.loads(text), start=1))
    else:
        rows = []
        # splitlines would also cut at characters that JSON allows in strings, such as U+2028.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except json.JSONDecodeError as error:
                    raise UsageError(f"line {number} is not JSON: {error}") from error
    for number, row in rows:
        if not isinstance(row, dict):
            raise UsageError(f"row {number} must be an object such as {{'text': …}}, got {row!r}")
    return [row for _, row in rows]


def need_column(split: Dataset, column: str, where: str) -> None:
    """Raises a ValueError if a set has no such column.

    Args:
        split: The set.
        column: The column.
        where: File or dataset, for the error.
    """
    if column not in split.column_names:
        raise UsageError(
            f"{where} has no column {column!r}.{nearest(column, split.column_names)} "
            f"Columns: {', '.join(split.column_names)}"
        )


def dtype_of(split: Dataset, column: str) -> str:
    """Type of a column's values, such as `string`; `list` for nested ones."""
    return getattr(split.features[column], "dtype", "list")  # Nested features have no dtype.
