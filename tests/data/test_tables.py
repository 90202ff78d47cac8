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


ANSWERS = ("good", "very bad")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("label_text", lambda n: ANSWERS[n % 2], "'label_text' says the label in other words"),
        ("uid", lambda n: f"a-{n:08x}", "'uid' holds names or numbers"),
    ],
)
def test_a_second_column_that_is_no_text_is_not_read(tmp_path, name, value, message):
    rows = [{"text": f"film {n}", name: value(n), "label": n % 2} for n in range(8)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    files = {"train": str(path), "validation": str(path)}
    with pytest.raises(ValueError, match=f"{message}.*--sentence1_column.*columns: text, {name}"):
        load_files(files, "label")
    assert load_files(files, "label", "text").columns == ["text"]
    assert load_files(files, "label", "text", name).columns == ["text", name]


def test_a_text_may_not_have_the_name_that_labels_get(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("label,answer\n" + "\n".join(f"a film {n},{n % 2}" for n in range(8)))
    files = {"train": str(path), "validation": str(path)}
    with pytest.raises(ValueError, match="rename the text column 'label'"):
        load_files(files, "answer")


def test_a_column_name_that_stands_twice_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,note,label,note\na,b,1,c\n")
    with pytest.raises(ValueError, match=r"a\.csv: two columns have the name 'note'"):
        read_rows([path])


def test_an_empty_line_between_the_rows_of_one_column_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\na\n\nc\n")
    with pytest.raises(ValueError, match="line 3 is empty"):
        read_rows([path])
    path.write_text('\ntext\na\n""\n"b\n\nc"\n\n')
    assert read_rows([path])["text"][:] == ["a", "", "b\n\nc"]
    path.write_text("text,label\na,1\n\nc,0\n")
    assert read_rows([path])["text"][:] == ["a", "c"]


def test_labels_of_lists_are_refused_beside_two_texts(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"a": f"x {n}", "b": f"y {n}", "label": [1]} for n in range(3)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"column 'label' holds .*, not labels"):
        load_files({"train": str(path)}, "label")
