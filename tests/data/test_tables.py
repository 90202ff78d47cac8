"""Files of one's own, as tables."""

import json

import pytest

from hf_losses.data.text.dataset import load_files
from hf_losses.data.text.tables import read_rows


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_column_may_begin_in_any_row(tmp_path, ending):
    rows = [{"text": "a"}, {"text": "b", "weight": 0}, {"weight": 3, "text": "c", "id": 7}]
    lines = map(json.dumps, rows)
    path = tmp_path / f"a.{ending}"
    path.write_text("\n".join(lines) if ending == "jsonl" else f"[{','.join(lines)}]")
    read = read_rows([path])
    assert read.column_names == ["text", "weight", "id"]
    assert read["weight"][:] == [None, 0, 3]
    assert read["id"][:] == [None, None, 7]


def test_a_column_of_several_types_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": {"b": 1}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl: column 'text': "):
        read_rows([path])


@pytest.mark.parametrize("key", ["id", "idx"])
def test_a_column_that_names_the_rows_is_no_text(tmp_path, key):
    lines = [f"{number:08x}f,film {number},{('good', 'bad')[number % 2]}" for number in range(8)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join([f"{key},comment,label", *lines]))
    files = {"train": str(path), "validation": str(path)}
    data = load_files(files, "label")
    assert data.columns == ["comment"]
    assert data.splits["train"][key][:2] == ["00000000f", "00000001f"]
    assert load_files(files, "label", key).columns == [key]
