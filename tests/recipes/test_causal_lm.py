"""recipes/causal_lm.py as users call it, on a tiny random Llama and data written here."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from test_glue import ACCELERATE, CPU_FOR_GPU
from tokenizers import ByteLevelBPETokenizer, normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from hf_losses import list_losses

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

import causal_lm  # noqa: E402

from hf_losses.data.chats import dataset as conversations  # noqa: E402

BEGIN, END, USER, BOT = "<s>", "</s>", "<user>", "<bot>"
PLAIN = (
    "{% for m in messages %}{{ '<bot>' if m.role == 'assistant' else '<user>' }}{{ m.content }}"
    "{% if m.role == 'assistant' %}</s>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<bot>{% generation %}{{ m.content }}</s>"
    "{% endgeneration %}{{ '\\n' }}{% else %}<user>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
NO_PREFIX = "{{ messages | length }}" + PLAIN
ANSWERS = {"a": "yes", "b": "no", "c": "so"}
RECIPE, FLAGS = (
    causal_lm,
    ("--learning_rate", "1e-2", "--max_length", "48", "--max_new_tokens", "8"),
)


def rows(size, seed):
    rng = random.Random(seed)
    letters = rng.choices(list(ANSWERS), k=size)
    return [{"prompt": f"{'x' * rng.randint(1, 5)}{c}:", "completion": ANSWERS[c]} for c in letters]


def turn(role, content):
    return {"role": role, "content": content}


def chat(*contents):
    """Turns of user and assistant by turns."""
    return {"messages": [turn(("user", "assistant")[i % 2], c) for i, c in enumerate(contents)]}


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(table), path)
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        options = pa.csv.WriteOptions(delimiter=delimiter)
        pa.csv.write_csv(pa.Table.from_pylist(table), path, options)
    return str(path)


def make_tokenizer(template=None, **options):
    """Every byte is a token, so that what is learned can be read."""
    bytes_only = ByteLevelBPETokenizer()
    special = [END, BEGIN, USER, BOT]
    bytes_only.train_from_iterator([""], vocab_size=256 + len(special), special_tokens=special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only._tokenizer,
        eos_token=END,
        additional_special_tokens=[USER, BOT],
        model_max_length=64,
        **options,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Folder of a tiny Llama; its tokenizer has no padding token and pads on the left."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = make_tokenizer(PLAIN, padding_side="left")
    tokenizer.save_pretrained(folder)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def files(tmp_path):
    data = tmp_path / "data"
    return [
        *("--train_file", write(data / "train.jsonl", rows(64, 0))),
        *("--validation_file", write(data / "validation.jsonl", rows(20, 1))),
    ]


@pytest.fixture
def encode(tmp_path):
    """Reads rows as a training set and encodes them; returns text and learned text of each."""

    def encode(table, tokenizer=None, max_length=48, **options):
        tokenizer = tokenizer or make_tokenizer()
        file = write(tmp_path / "data" / "train.jsonl", table)
        data = conversations.ChatArguments(train_file=file, train_val_split=0, **options).load()
        texts = []
        for row in data.encode(tokenizer, max_length)["train"]:
            ids, labels = row["input_ids"], row["labels"]
            assert all(label in (token, -100) for token, label in zip(ids, labels, strict=True))
            shown = [tokenizer.decode([i]) if i >= 0 else "." for i in labels]
            texts.append((tokenizer.decode(ids), "".join(shown)))
        return texts, data

    return encode


# ---- What is learned ---------------------------------------------------------------------------


def test_the_completion_and_its_end_are_learned(encode):
    table = [
        {"prompt": "ab c", "completion": " de"},
        {"prompt": "f", "completion": "g</s>"},  # It ends already.
        {"prompt": "</s>h", "completion": "</s>i"},
    ]
    texts, data = encode(table)
    assert texts == [
        ("ab c de</s>", ".... de</s>"),
        ("fg</s>", ".g</s>"),
        ("</s>h</s>i</s>", "..</s>i</s>"),
    ]
    assert (data.left_out, data.cut) == ({}, {})


def test_a_bos_stays_and_an_eos_after_the_prompt_does_not(encode):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer(bos_token=BEGIN)
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(BEGIN, tokenizer.bos_token_id), (END, tokenizer.eos_token_id)],
    )
    table = [{"prompt": "abcdef", "completion": "gh"}]
    assert encode(table, tokenizer)[0] == [("<s>abcdefgh</s>", ".......gh</s>")]
    assert encode(table, tokenizer, 7)[0] == [("<s>defgh</s>", "....gh</s>")]


def test_no_space_comes_between_a_prompt_and_its_completion(encode):
    tokenizer = make_tokenizer()
    # As SentencePiece has it: a text begins with a space, also a completion alone.
    tokenizer._tokenizer.normalizer = normalizers.Prepend(" ")
    assert tokenizer.decode(tokenizer("cd")["input_ids"]) == " cd"
    assert encode([{"prompt": "ab:", "completion": "cd"}], tokenizer)[0] == [
        (" ab:cd</s>", "....cd</s>")
    ]


def test_a_prompt_keeps_its_tokens_where_the_whole_would_join_them(encode):
    tokenizer = make_tokenizer(PLAIN)
    tokenizer.add_tokens(["bc"])
    assert len(tokenizer("abcd")["input_ids"]) == 3
    assert encode([{"prompt": "ab", "completion": "cd"}], tokenizer)[0] == [
        ("abcd</s>", "..cd</s>")
    ]


TWO_ROUNDS = "<user>q<bot>ok</s>\n<user>r<bot>no</s>"


@pytest.mark.parametrize(
    ("template", "text", "learned"),
    [
        (MARKED, TWO_ROUNDS, "...ok</s>....no</s>"),
        (PLAIN, TWO_ROUNDS, "..........no</s>"),
        (
            MARKED.replace("</s>{% endgen", "{% endgen").replace("'\\n", "'</s>\\n"),
            TWO_ROUNDS,
            "...ok.....no</s>",
        ),
        (PLAIN.replace("</s>\n", ""), "<user>q<bot>ok<user>r<bot>no</s>", "........no</s>"),
    ],
    ids=["marked", "unmarked", "end-outside-of-the-marks", "no-end-in-the-template"],
)
def test_only_the_assistants_turns_are_learned(encode, template, text, learned):
    texts, _ = encode([chat("q", "ok", "r", "no")], make_tokenizer(template))
    assert texts == [(text, learned)]


SEARCH = {"type": "function", "function": {"name": "find"}}
CLOCK = {"type": "function", "function": {"name": "now", "parameters": {"zone": "UTC"}}}
TOOLS = "{% if tools %}{% for tool in tools %}[{{ tool | tojson }}]{% endfor %}{% endif %}"


@pytest.mark.parametrize("template", [MARKED, PLAIN])
@pytest.mark.parametrize("stored", [list, json.dumps])
def test_the_template_is_told_of_the_tools_of_a_chat(encode, template, stored):
    tokenizer = make_tokenizer(TOOLS + template)
    tools = [[SEARCH], [SEARCH, CLOCK], []]
    table = [chat("q", "ok") | {"tools": stored(own)} for own in tools]
    texts, data = encode(table, tokenizer, 1000)
    told = ["".join(f"[{json.dumps(tool)}]" for tool in own) for own in tools]
    assert [text for text, _ in texts] == [f"{own}<user>q<bot>ok</s>" for own in told]
    assert all(learned.endswith("...ok</s>") for _, learned in texts)
    prompts = [tokenizer.decode(ids) for ids in data.prompts("train", tokenizer, 1000)]
    assert prompts == [f"{own}<user>q<bot>" for own in told]


CALLS = (
    "{% for message in messages %}{% for call in message.tool_calls or [] %}"
    "[{{ call.function.arguments | tojson }}]{% endfor %}{% endfor %}"
)


def test_a_call_of_a_tool_has_its_own_arguments_alone(encode):
    table = []
    for arguments in ({"city": "Oslo"}, {"zone": "UTC", "hours": [1]}):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        row = chat("q", "ok", "r", "no")
        row["messages"][1]["tool_calls"] = [call]
        table.append(row)
    tokenizer = make_tokenizer(CALLS + PLAIN)
    texts, data = encode(table, tokenizer, 1000)
    shown = ['[{"city": "Oslo"}]', '[{"zone": "UTC", "hours": [1]}]']
    assert [text for text, _ in texts] == [f"{call}{TWO_ROUNDS}" for call in shown]
    prompts = [tokenizer.decode(ids) for ids in data.prompts("train", tokenizer, 1000)]
    assert [prompt.partition("<user>")[0] for prompt in prompts] == shown


@pytest.mark.parametrize("tools", ["now", "{}", ["now"]])
def test_refuses_tools_that_are_no_descriptions(encode, tools):
    with pytest.raises(ValueError, match="row 1: tools must be a list of descriptions, got"):
        encode([chat("q", "ok") | {"tools": tools}], make_tokenizer(MARKED))


def weighted(*turns):
    """A chat of contents, or pairs of content and weight."""
    contents = [t if isinstance(t, str) else t[0] for t in turns]
    row = chat(*contents)
    for turn, content in zip(row["messages"], turns, strict=True):
        if not isinstance(content, str):
            turn["weight"] = content[1]
    return row


BEFORE = "<user>q<bot>ok</s>\n"


@pytest.mark.parametrize(
    ("template", "table", "text", "learned"),
    [
        (MARKED, ["q", ("ok", 0), "r", "no"], TWO_ROUNDS, "..........no</s>"),
        (MARKED, ["q", ("ok", 0), "r", ("no", 1)], TWO_ROUNDS, "..........no</s>"),
        (MARKED, [("q", 1), ("ok", 1), ("r", 0), ("no", 1.0)], TWO_ROUNDS, "...ok</s>....no</s>"),
        # What nobody learns from is left away.
        (MARKED, ["q", "ok", "r", ("no", 0)], BEFORE[:-1], "...ok</s>"),
        (PLAIN, ["q", "ok", "r", ("no", 0)], BEFORE[:-1], "...ok</s>"),
        (PLAIN, ["q", ("ok", 0), "r", "no"], TWO_ROUNDS, "..........no</s>"),
        (
            MARKED,
            ["a", "b", "c", ("d", 0), "e", "f", "g", ("h", 0)],
            "<user>a<bot>b</s>\n<user>c<bot>d</s>\n<user>e<bot>f</s>",
            "...b</s>..........f</s>",
        ),
    ],
)
def test_a_turn_of_weight_0_is_not_learned(encode, template, table, text, learned):
    texts, data = encode([weighted(*table)], make_tokenizer(template))
    assert [(text, shown.replace("\n", ".")) for text, shown in texts] == [(text, learned)]
    assert data.idle == {}


def test_many_rows_without_a_turn_to_learn_may_come_first(encode):
    table = [weighted("q", ("ok", 0))] * 1001 + [chat("r", "no")] * 2
    texts, data = encode(table, make_tokenizer(MARKED))
    assert [text for text, _ in texts] == ["<user>r<bot>no</s>"] * 2
    assert data.idle == {"train": 1001}


def test_a_greeting_that_alone_is_learned_answers_nothing(encode):
    greeting = {"role": "assistant", "content": "hello"}
    row = weighted("q", ("ok", 0))
    with pytest.raises(ValueError, match="row 1: the only turn that is learned answers nothing"):
        encode([{"messages": [greeting, *row["messages"]]}], make_tokenizer(PLAIN))


def test_a_chat_without_a_turn_to_learn_is_left_out_and_counted(encode):
    table = [weighted("q", ("ok", 0)), weighted("q", "ok"), chat("r", "no")]
    texts, data = encode(table, make_tokenizer(MARKED))
    assert [text for text, _ in texts] == ["<user>q<bot>ok</s>", "<user>r<bot>no</s>"]
    assert (data.idle, data.left_out, data.cut) == ({"train": 1}, {}, {})
    assert data.origin["partial"] == ["train"]
    shown = "Rows left out, since every turn of the assistant has weight 0: 1 train\n"
    assert data.too_long(48) == [shown]
    with pytest.raises(ValueError, match="nothing to learn in the train set"):
        encode(table[:1], make_tokenizer(MARKED))


def test_turns_that_a_template_runs_together_have_no_weights(encode):
    template = MARKED.replace("<bot>{% generation", "{% generation").replace("{{ '\\n' }}", "")
    table = [{"messages": [*chat("q", "ok")["messages"], turn("assistant", "no")]}]
    assert encode(table, make_tokenizer(template))[0] == [("<user>qok</s>no</s>", "..ok</s>no</s>")]
    table[0]["messages"][1]["weight"] = 0
    with pytest.raises(ValueError, match="row 1: the chat template does not mark the assistant's"):
        encode(table, make_tokenizer(template))


def test_the_weights_of_turns_decide_what_is_trained(run, tiny, tmp_path):
    """The loss of a chat with weights is that of the logits at the tokens that are learned."""
    tokenizer = make_tokenizer(MARKED)
    table = [weighted("a", ("yes", 0), "b", "no"), weighted("a", "yes", "b", ("so", 0))] * 4
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    tokenizer.save_pretrained(model)
    train = write(tmp_path / "data" / "train.jsonl", table)
    validation = write(tmp_path / "data" / "validation.jsonl", table[:2])
    files = ("--train_file", train, "--validation_file", validation)
    still = ("--learning_rate", "0", "--num_train_epochs", "1")
    result, out = run(*files, *still, model=str(model))
    losses = []
    for text, learned in (
        ("<user>a<bot>yes</s>\n<user>b<bot>no</s>", "no</s>"),
        ("<user>a<bot>yes</s>", "yes</s>"),
    ):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(out)(ids).logits.double()
        token_losses = torch.nn.functional.cross_entropy(
            logits[0, :-1], ids[0, 1:], reduction="none"
        )
        losses += token_losses[
            -len(tokenizer(learned, add_special_tokens=False)["input_ids"]) :
        ].tolist()
    expected = math.exp(sum(losses) / len(losses))
    assert result["metrics"]["validation"]["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_weights_of_turns_and_rows_multiply_the_losses_of_their_tokens(run, tiny, tmp_path):
    """The weights reach the tokens that they are for, and the mean counts tokens alone."""
    tokenizer = make_tokenizer(MARKED)
    table = [
        weighted("a", ("yes", 0.5), "b", "no") | {"weight": 3},
        weighted("a", "yes", "b", ("so", 0)) | {"weight": None},
        weighted("a", ("never", 2)) | {"weight": 0},
    ]
    model = tmp_path / "model"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(model)
    tokenizer.save_pretrained(model)
    path = write(tmp_path / "data" / "train.jsonl", table)
    still = ("--learning_rate", "0", "--num_train_epochs", "1", "--loss", "dft")
    result, out = run("--train_file", path, "--validation_file", path, *still, model=str(model))
    trained = AutoModelForCausalLM.from_pretrained(out)
    total, count = 0.0, 0
    for text, weights in (
        ("<user>a<bot>yes</s>\n<user>b<bot>no</s>", {"yes</s>": 1.5, "no</s>": 3.0}),
        ("<user>a<bot>yes</s>", {"yes</s>": 1.0}),
    ):
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"][0]
        with torch.no_grad():
            p = trained(ids.unsqueeze(0)).logits[0].double().softmax(-1)
        for answer, weight in weights.items():
            start = len(
                tokenizer(text[: text.index(answer)], add_special_tokens=False)["input_ids"]
            )
            end = start + len(tokenizer(answer, add_special_tokens=False)["input_ids"])
            for place in range(start, end):
                total += weight * (1 - p[place - 1, ids[place]].item())
                count += 1
    metrics = result["metrics"]["validation"]
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    (train_loss,) = (line["train_loss"] for line in history if "train_loss" in line)
    assert train_loss == pytest.approx(total / count, rel=1e-5)


def test_an_empty_system_turn_is_kept_and_not_learned(encode):
    messages = {"messages": [turn("system", ""), turn("user", "q"), turn("assistant", "ok")]}
    assert encode([messages], make_tokenizer(MARKED))[0] == [
        ("<user><user>q<bot>ok</s>", "....ok</s>")
    ]


def test_what_is_too_long_is_cut_or_left_out_and_counted(encode):
    table = [
        {"prompt": "abcdef", "completion": "gh"},  # 9 tokens with the end.
        {"prompt": "abc", "completion": "gh"},
        {"prompt": "a", "completion": "1234567"},  # 8 of them to learn.
        {"prompt": "ab", "completion": "123456"},  # 7, and one before them.
    ]
    texts, data = encode(table, max_length=8)
    assert texts == [
        ("bcdefgh</s>", ".....gh</s>"),
        ("abcgh</s>", "...gh</s>"),
        ("b123456</s>", ".123456</s>"),
    ]
    assert (data.left_out, data.cut) == ({"train": 1}, {"train": 2})
    assert data.origin["partial"] == ["train"]
    chats = [chat("q", "ok", "r", "no"), chat("q", "12345678")]
    texts, data = encode(chats, make_tokenizer(MARKED), 8)
    assert texts == [("</s>\n<user>r<bot>no</s>", "</s>....no</s>")]
    assert (data.left_out, data.cut) == ({"train": 1}, {"train": 1})


def test_the_prompts_to_go_on_from_are_those_of_training(encode):
    tokenizer = make_tokenizer(PLAIN)
    table = [chat("q", "ok", "r", "no"), chat("q", "ok")]
    texts, data = encode(table, tokenizer)
    prompts = [tokenizer.decode(ids) for ids in data.prompts("train", tokenizer, 48)]
    assert prompts == [
        text.removesuffix(end) for (text, _), end in zip(texts, ("no</s>", "ok</s>"), strict=True)
    ]
    assert [tokenizer.decode(p) for p in data.prompts("train", tokenizer, 3)] == [
        "<user>r<bot>",
        "<user>q<bot>",
    ]


def test_the_held_out_rows_are_the_same_on_every_run(tmp_path):
    file = write(tmp_path / "a.jsonl", [r | {"id": i} for i, r in enumerate(rows(40, 0))])
    loads = [conversations.ChatArguments(train_file=file).load().splits for _ in range(2)]
    train, validation = (loads[0][name]["id"][:] for name in ("train", "validation"))
    assert (len(train), len(validation)) == (36, 4)
    assert sorted(train + validation) == list(range(40))
    assert [split["id"][:] for split in loads[1].values()] == [train, validation]


def test_a_chat_may_have_its_first_turn_in_a_column_of_its_own(tmp_path):
    table = [chat("q", "ok", "r", "no") | {"prompt": "q"}] * 2
    file = write(tmp_path / "chats.jsonl", table)
    data = conversations.ChatArguments(train_file=file).load()
    assert data.is_chat
    table = [row | {"completion": "ok"} for row in table]
    file = write(tmp_path / "both.jsonl", table)
    assert not conversations.ChatArguments(train_file=file).load().is_chat


def test_the_card_knows_what_the_hub_calls_the_splits(monkeypatch):
    def load_dataset(name, config):
        assert (name, config) == ("HuggingFaceH4/chats", "default")
        table = [chat("q", "ok"), chat("r", "no")] * 5
        return datasets.DatasetDict(
            train_sft=datasets.Dataset.from_list(table),
            train_gen=datasets.Dataset.from_list([{"prompt": "q"}]),
            test_sft=datasets.Dataset.from_list(table),
        )

    monkeypatch.setattr(conversations, "load_dataset", load_dataset)
    data = conversations.ChatArguments(
        dataset_name="HuggingFaceH4/chats", dataset_config_name="default"
    ).load()
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 9,
        "validation": 1,
        "test": 10,
    }
    assert data.origin == {
        "name": "HuggingFaceH4/chats",
        "id": "HuggingFaceH4/chats",
        "config": "default",
        "splits": {"train": "train_sft", "validation": "train_sft", "test": "test_sft"},
        "partial": ["train", "validation"],
    }


# ---- What it does ------------------------------------------------------------------------------


def test_trains_evaluates_and_says_where_everything_lies(run, tmp_path, capsys, pictures):
    data = tmp_path / "data"
    long = {"prompt": "x" * 60 + "a:", "completion": "yes"}
    endless = {"prompt": "a:", "completion": "y" * 60}
    result, out = run(
        *("--train_file", write(data / "train.jsonl", [*rows(300, 0), long, endless])),
        *("--validation_file", write(data / "validation.jsonl", rows(32, 1))),
        *("--test_file", write(data / "test.jsonl", [*rows(30, 2), endless]), "--do_predict"),
        *("--loss", "liberal_exp", "--num_train_epochs", "8", "--loss_warmup_ratio", "0.3"),
    )
    metrics = result["metrics"]["test"]
    assert metrics["token_accuracy"] == metrics["exact_match"] == 1.0
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["cross_entropy"]), rel=1e-4)
    assert set(metrics) == {"token_accuracy", "exact_match", "perplexity", "loss", "cross_entropy"}
    assert (result["metric"], result["best"]["metric"]) == ("token_accuracy", "token_accuracy")
    assert (result["task"], result["model"], result["kind"]) == ("train", "tiny-llama", "liberal")
    assert (result["left_out"], result["cut"]) == ({"train": 1, "test": 1}, {"train": 1})
    assert [entry["step"] for entry in result["history"]] == [10 * n for n in range(1, 9)]
    assert str(tmp_path) not in (out / "result.json").read_text()
    # A row without metrics has a prediction all the same.
    header, *lines = (out / "predictions_test.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    expected = [row["completion"] for row in rows(30, 2)] + ["yes"]
    assert lines == [f"{i}\t{text}" for i, text in enumerate(expected)]
    assert all((out / picture).exists() for picture in pictures)
    shown = capsys.readouterr().out
    assert "Data    train: 302 train, 32 validation, 31 test" in shown
    assert "prompt → completion" in shown
    assert "fit into 48 tokens (--max_length): 1 train, 1 test" in shown
    assert "cut at their beginning to 48 tokens (--max_length): 1 train" in shown
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert AutoTokenizer.from_pretrained(out).padding_side == "left"


def test_metrics_are_those_of_the_saved_model_row_by_row(run, files, tiny, tmp_path):
    # GPT-2's positions are absolute: the tokenizer's padding on the left would shift them.
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    end = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    size |= {"initializer_range": 0.3}
    set_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **size, **end))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "gpt2")
    arguments = ("--per_device_eval_batch_size", "3", "--num_train_epochs", "3")
    result, out = run(*files, *arguments, model=str(tmp_path / "gpt2"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    right, losses = [], []
    for row in rows(20, 1):
        prompt, answer = (tokenizer(row[k])["input_ids"] for k in ("prompt", "completion"))
        answer = torch.tensor([*answer, tokenizer.eos_token_id])
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        right.append(logits.argmax(-1) == answer)
        losses.append(torch.nn.functional.cross_entropy(logits, answer, reduction="none"))
    metrics = result["metrics"]["validation"]
    assert 0 < metrics["token_accuracy"] < 1
    assert metrics["token_accuracy"] == pytest.approx(torch.cat(right).float().mean().item())
    assert metrics["exact_match"] == pytest.approx(sum(r.all().item() for r in right) / 20)
    assert metrics["perplexity"] == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-4)


def test_chats_without_a_validation_set_and_without_answers_to_predict(run, tmp_path):
    chats = [chat(row["prompt"], row["completion"]) for row in rows(300, 0)]
    prompts = [{"messages": row["messages"][:1]} for row in chats[:9]]
    result, out = run(
        *("--train_file", write(tmp_path / "chats.parquet", chats)),
        *("--test_file", write(tmp_path / "test.json", prompts), "--do_predict"),
        *("--loss", "strict_l", "--num_train_epochs", "8", "--per_device_eval_batch_size", "4"),
    )
    assert set(result["metrics"]) == {"validation"}
    assert result["dataset"]["rows"] == {"train": 270, "validation": 30, "test": 9}
    lines = (out / "predictions_test.tsv").read_text().splitlines()[1:]
    expected = [row["messages"][1]["content"] for row in chats[:9]]
    assert [line.split("\t")[1] for line in lines] == expected


def test_formats_and_column_names_give_the_same_weights(run, tmp_path):
    weights = []
    for ending in ("csv", "tsv", "json", "parquet"):
        folder = tmp_path / ending
        table = [{"q": row["prompt"], "a": row["completion"]} for row in rows(32, 0)]
        _, out = run(
            *("--train_file", write(folder / f"train.{ending}", table)),
            *("--prompt_column", "q", "--completion_column", "a", "--train_val_split", "0"),
            name=f"out-{ending}",
        )
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[1:] == weights[:1] * 3


def test_a_split_leaves_rows_to_train_on(refused, tmp_path):
    file = write(tmp_path / "train.jsonl", rows(12, 0))
    message = refused("--train_file", file, "--train_val_split", "0.99")
    assert "--train_val_split 0.99 of 12 training rows leaves none to train on" in message


def test_a_folder_of_files(run, tmp_path, monkeypatch):
    folder = tmp_path / "my_prompts"
    write(folder / "train.jsonl", rows(32, 0))
    write(folder / "test.jsonl", rows(8, 1))
    result, _ = run("--dataset_name", str(folder), "--train_val_split", "0")
    assert result["dataset"]["name"] == result["task"] == "my_prompts"
    assert set(result["metrics"]) == {"test"}


def test_resuming_gives_the_weights_of_an_uninterrupted_run(run, files):
    saving = ("--save_strategy", "steps", "--save_steps", "2", "--num_train_epochs", "4")
    saving = (*saving, "--loss", "liberal_exp", "--loss_warmup_ratio", "0.5")
    whole, out = run(*files, *saving)
    weights = load_file(out / "model.safetensors")
    state = json.loads((out / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8
    # As if it had been killed after its last but one checkpoint, which an evaluation follows.
    (out / "result.json").unlink()
    (out / "model.safetensors").unlink()
    (out / "checkpoint-8" / "trainer_state.json").unlink()
    resumed, _ = run(*files, *saving, "--resume_from_checkpoint", "true")
    assert resumed["metrics"] == whole["metrics"]
    for name, weight in load_file(out / "model.safetensors").items():
        assert torch.equal(weight, weights[name]), name


def test_the_best_model_is_that_of_the_lowest_perplexity(run, files):
    best = ("--metric_for_best_model", "perplexity", "--load_best_model_at_end", "true")
    result, _ = run(*files, *best, "--num_train_epochs", "3")
    least = min(entry["perplexity"] for entry in result["history"])
    assert (
        result["best"]["value"] == least < max(entry["perplexity"] for entry in result["history"])
    )
    assert result["metrics"]["validation"]["perplexity"] == pytest.approx(least, rel=1e-5)


def test_a_fused_head_gives_the_same_metrics(run, files):
    arguments = (*files, "--loss", "strict_l", "--num_train_epochs", "2")
    plain, _ = run(*arguments)
    fused, _ = run(*arguments, "--fused_linear", name="fused")
    expected = plain["metrics"]["validation"]
    assert fused["metrics"]["validation"] == pytest.approx(expected, rel=1e-3)


def test_adapter_predicts_the_same_on_the_same_base(run, files, tiny):
    result, out = run(*files, "--lora", "--lora_r", "4")
    assert not (out / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny)
    model = PeftModel.from_pretrained(base, out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    row = rows(20, 1)[0]
    text = tokenizer(row["prompt"] + row["completion"], return_tensors="pt")
    with torch.no_grad(), model.disable_adapter():
        without = model(**text).logits
    with torch.no_grad():
        assert not torch.equal(model(**text).logits, without)
    again, _ = run(*files, "--do_train", "false", model=str(out), name="again")
    assert again["metrics"] == result["metrics"]


def test_selects_by_any_metric_that_an_evaluation_reports(check_best_metrics, files):
    check_best_metrics(*files)


# ---- What it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "liberal_ex"], "unknown loss 'liberal_ex'. Did you mean 'liberal_exp'?"),
        (["--dataset_name", "a/b"], "--dataset_name and --train_file contradict each other"),
        (["--train_val_split", "1"], "--train_val_split must be in [0, 1), got 1.0"),
        (
            ["--max_new_tokens", "48", "--do_predict"],
            "--max_new_tokens must be above 0 and below 48 tokens",
        ),
        (
            ["--max_length", "3", "--max_new_tokens", "1"],
            "no row of the train set fits into 3 tokens; raise --max_length",
        ),
        (["--max_train_samples", "0"], "cannot take 0 rows of the train set"),
        (["--completion_column", "completions"], "Did you mean 'completion'? Columns: prompt, c"),
        (["--do_predict"], "--do_predict needs a test set"),
        (["--resume_from_checkpoint", "true"], "No valid checkpoint found in"),
        (["--lora", "--lora_target_modules", "nothing"], "--lora_target_modules: down_proj, em"),
    ],
)
def test_refuses(refused, files, arguments, message):
    assert message in refused(*files, *arguments)


@pytest.mark.parametrize(
    ("weight", "message"),
    [('"balanced"', "is for labels of whole rows or"), ("[1, 5]", "weight has 2 entries, one per")],
)
def test_refuses_class_weights_before_training(run, files, tmp_path, capsys, weight, message):
    with pytest.raises(SystemExit) as stop:
        run(*files, "--loss", "strict_l", "--loss_kwargs", f'{{"weight": {weight}}}')
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_refuses_a_folder_that_does_not_exist(refused):
    assert "no folder './no'" in refused("--dataset_name", "./no")


@pytest.mark.parametrize("weight", [-1, "0", True])
def test_refuses_weights_of_turns_that_are_no_weights(refused, tmp_path, weight):
    path = write(tmp_path / "data" / "a.jsonl", [chat("a", "b"), weighted("a", ("b", weight))])
    message = refused("--train_file", path)
    assert f"a.jsonl, row 2: turn 2 (assistant) has weight {weight!r}, which" in message
    assert "which is not a finite number from 0 up" in message


@pytest.mark.parametrize("weight", [-1, "heavy"])
def test_refuses_weights_of_rows_that_are_no_weights(refused, tmp_path, weight):
    rows = [{"prompt": "a", "completion": "b", "weight": weight}]
    path = write(tmp_path / "data" / "a.jsonl", rows)
    message = refused("--train_file", path)
    assert f"a.jsonl, row 1: weight {weight!r} is not a finite number from 0 up" in message


@pytest.mark.parametrize("loss", list_losses(task="regression"))
def test_refuses_a_regression_loss_with_those_that_fit(refused, files, loss):
    message = refused(*files, "--loss", loss)
    assert f"train is a classification task and {loss!r} a regression loss; choose" in message
    assert ", ".join(list_losses(task="classification")) in message


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([{"text": "a"}], "train.jsonl has no column 'prompt'."),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "row 2: no text in column 'compl"),
        ([{"prompt": "a", "completion": " "}], "row 1: no text in column 'completion'; only a te"),
        ([{"prompt": "", "completion": "b"}], "row 1: no text in column 'prompt'"),
        ([{"prompt": " \n", "completion": "b"}], "row 1: no text in column 'prompt'"),
        ([{"prompt": "a", "completion": 4}], "row 1: column 'completion' holds 4, not text"),
        ([{"messages": "a"}], "row 1: a chat must be a list of {role, content}, got 'a'"),
        ([{"messages": []}], "row 1: a chat must be a list of {role, content}, got []"),
        ([chat("q", "a"), chat("q", "")], "row 2: turn 2 (assistant) has no text as content"),
        ([chat("q", "a"), chat("q")], "row 2: the last turn is not the assistant's; only a test"),
        ([{"messages": [turn("assistant", "a")]}], "row 1: the assistant's turn answers nothing"),
    ],
)
def test_refuses_rows(refused, tmp_path, table, message):
    file = write(tmp_path / "train.jsonl", table)
    assert message in refused("--train_file", file, "--train_val_split", "0")


def test_refuses_a_file_that_does_not_exist(refused, files, tmp_path):
    path = str(tmp_path / "data" / "trian.jsonl")
    assert "trian.jsonl'. Did you mean 'train.jsonl'?" in refused("--train_file", path)
    assert "--test_file goes with --train_file" in refused("--test_file", path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.tsv", 'prompt\tcompletion\n"a\tb\nc\td\n', "train.tsv has cells that begin with"),
        ("train.csv", 'prompt,completion\n"a" b,c\n', "train.csv: line 2: ',' expected after"),
    ],
)
def test_refuses_a_folder_of_tables_whose_quotes_join_rows(refused, tmp_path, name, text, message):
    (tmp_path / "chats").mkdir()
    (tmp_path / "chats" / name).write_text(text)
    assert message in refused("--dataset_name", str(tmp_path / "chats"))


def test_refuses_a_folder_whose_test_file_would_be_trained_on(refused, tmp_path):
    for name in ("TRAIN", "TEST"):
        write(tmp_path / "chats" / f"{name}.jsonl", rows(8, 0))
    message = refused("--dataset_name", str(tmp_path / "chats"))
    assert "TEST.jsonl is called after the test set" in message
    assert "call it test.jsonl" in message


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "row 1 is a chat, but the tokenizer has no chat template"),
        (NO_PREFIX, "row 1: the chat without its last turn is not how the whole chat begins"),
        ("{{ raise_exception('no users') }}", "row 1: the chat template refuses it: no users"),
        (MARKED.replace("'assistant'", "'model'"), "row 1: the chat template marks nothing as th"),
    ],
)
def test_refuses_a_template(encode, template, message):
    with pytest.raises(ValueError, match=r".") as error:
        encode([chat("q", "a")], make_tokenizer(template))
    assert message in str(error.value)


def test_weights_of_turns_that_are_not_learned_are_refused(encode):
    table = [weighted("q", ("ok", 0.5), "r", "no")]
    with pytest.raises(ValueError, match="row 1: only the last turn is learned, since the chat"):
        encode(table, make_tokenizer(PLAIN))
    table = [weighted("q", ("ok", 0), "r", ("no", 0.5))]
    assert encode(table, make_tokenizer(PLAIN))[0] == [(TWO_ROUNDS, "..........no</s>")]


def test_refuses_a_model_that_is_none(refused, files, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "cannot load the tokenizer of" in refused(*files, model=str(tmp_path / "empty"))


def absolute(folder, **tokenizer):
    """Folder of a GPT-2 with 32 positions, and of a tokenizer that names no limit."""
    made = make_tokenizer(PLAIN)
    made.model_max_length = int(1e30)
    made.save_pretrained(folder)
    for name, value in tokenizer.items():
        setattr(made, name, value)
    made.save_pretrained(folder)
    set_seed(0)
    config = GPT2Config(vocab_size=len(made), n_embd=16, n_layer=1, n_head=2, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def test_long_rows_are_cut_to_the_positions_of_the_model(run, files, tmp_path, capsys):
    model = absolute(tmp_path / "model")
    table = [*rows(8, 0), {"prompt": "y" * 80, "completion": "no"}]
    train = write(tmp_path / "data" / "train.jsonl", table)
    test = write(tmp_path / "data" / "test.jsonl", [{"prompt": "y" * 80}, {"prompt": "a:"}])
    files = ("--train_file", train, *files[2:], "--test_file", test, "--max_new_tokens", "8")
    result, out = run(*files, "--do_predict", model=model)
    shown = capsys.readouterr().out
    assert "Length  32 tokens, since the model takes no more" in shown
    assert "Rows cut at their beginning to 32 tokens (--max_length): 1 train" in shown
    assert AutoTokenizer.from_pretrained(out).model_max_length == 32
    assert len((out / "predictions_test.tsv").read_text().splitlines()) > 2
    cut, _ = run(*files, "--max_length", "32", model=model, name="cut")
    assert result["metrics"] == cut["metrics"]


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        ({"eos_token": None}, "has no EOS token"),
        ({"pad_token": "<new>"}, "the padding token '<new>'"),
    ],
)
def test_refuses_a_tokenizer_that_does_not_fit(refused, files, tmp_path, dropped, message):
    model = absolute(tmp_path / "model", **dropped)
    if "pad_token" in dropped:
        config = GPT2Config(vocab_size=256, n_embd=16, n_layer=1, n_head=2, n_positions=32)
        GPT2LMHeadModel(config).save_pretrained(model)
    assert message in refused(*files, model=model)


def test_is_a_page_that_a_user_reads():
    assert len((RECIPES / "causal_lm.py").read_text().splitlines()) < 200


# ---- As users launch it ------------------------------------------------------------------------


def launch(folder, *arguments, launcher=ACCELERATE):
    done = subprocess.run(
        [*launcher, str(RECIPES / "causal_lm.py"), *arguments],
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_default_model_learns_a_few_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = ["--max_train_samples", "1000", "--max_eval_samples", "200"]
    causal_lm.main(["--loss", "liberal_exp", *sizes, "--do_predict", "--disable_tqdm", "true"])
    assert "1,000 train, 200 validation, 200 test" in capsys.readouterr().out
    out = tmp_path / "runs/causal_lm/movie_review_sentiments-liberal_exp-seed42"
    result = json.loads((out / "result.json").read_text())
    assert result["metrics"]["test"]["token_accuracy"] > 0.8
    assert len((out / "predictions_test.tsv").read_text().splitlines()) == 201


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_give_the_result_of_one(run, tiny, tmp_path, sharded):
    # 33 test rows leave an incomplete batch, and one process with more batches than the other.
    arguments = [
        *("--train_file", write(tmp_path / "train.jsonl", rows(128, 0))),
        *("--validation_file", write(tmp_path / "validation.jsonl", rows(64, 1))),
        *("--test_file", write(tmp_path / "test.jsonl", rows(33, 2)), "--do_predict"),
        *("--loss", "strict_l", "--num_train_epochs", "2"),
        *("--max_length", "48", "--max_new_tokens", "8"),
        *("--learning_rate", "1e-3", "--per_device_train_batch_size"),
    ]
    expected, one = run(*arguments, "16", "--per_device_eval_batch_size", "32", name="one")
    model = ("--model_name_or_path", tiny, "--output_dir", "two")
    flags = (*model, *arguments, "8", "--per_device_eval_batch_size", "16")
    if sharded:
        (tmp_path / "cpu_for_gpu.py").write_text(CPU_FOR_GPU)
        config = ("--config_file", str(RECIPES / "configs" / "fsdp2.yaml"))
        layers = ("--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer")
        launcher = (*ACCELERATE, *config, *layers, "--mixed_precision", "no", "cpu_for_gpu.py")
    else:
        flags += ("--use_cpu",)
        launcher = (*ACCELERATE, "--multi_gpu", "--num_processes", "2")
    launch(tmp_path, *flags, launcher=launcher)
    two = tmp_path / "two"
    result = json.loads((two / "result.json").read_text())
    assert result["training"]["world_size"] == 2
    for name, metrics in expected["metrics"].items():
        for key in ("token_accuracy", "exact_match", "perplexity"):
            assert result["metrics"][name][key] == pytest.approx(metrics[key], rel=1e-4)
    predictions = [(path / "predictions_test.tsv").read_text() for path in (one, two)]
    assert predictions[0] == predictions[1]
