"""docs/swap.md, executed against the real packages: whose loss is in force before and after."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertModel, PreTrainedTokenizerFast, TrainingArguments

from hf_losses import get_loss, get_spec

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {
    part.partition("\n")[0]: re.findall(r"```(diff|python)\n(.*?)```", part, re.DOTALL)
    for part in (ROOT / "docs" / "swap.md").read_text(encoding="utf-8").split("\n## ")
}

pytestmark = [
    # trl 1.16 still asks transformers by the old name.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    # setfit 1.2 still asks sentence-transformers by the old name, and pins memory without a GPU.
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]


def need(package):
    reason = f"{package} is not installed: pip install 'hf-losses[integrations]'"
    return pytest.importorskip(package, reason=reason)


# ---- Running what the page says, and looking at the gradients ------------------------------------


def sides(section, index=0):
    """What stands before and after a diff, as code."""
    _, diff = SECTIONS[section][index]
    lines = diff.splitlines()
    return ["\n".join(line[1:] for line in lines if line[:1] != other) for other in "+-"]


def run(code, **names):
    exec(code, names)
    return names


@pytest.fixture
def steps():
    """Of every optimizer step the gradients, by parameter, whoever makes the step."""
    seen = []

    def look(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append({p: p.grad.clone() for p in parameters if p.grad is not None})

    handle = register_optimizer_step_pre_hook(look)
    yield seen
    handle.remove()


def of_formula(name, p, **params):
    """The loss as the registry states it in words, differentiated by autograd."""
    spec = get_spec(name)
    return eval(spec.formula, vars(torch) | spec.resolve(params) | {"p": p})


def by_hand(name, logits, labels, **params):
    """The mean over all items of a step, from probabilities."""
    if logits.shape == labels.shape:
        p = torch.where(labels == 1, logits.sigmoid(), (-logits).sigmoid())
    else:
        kept = labels != -100
        p = logits[kept].softmax(-1).gather(-1, labels[kept].unsqueeze(-1))
    return of_formula(name, p, **params).mean()


def difference(step, loss):
    """Relative, between the gradients of a step and those of a loss by hand."""
    gradients = torch.autograd.grad(loss, list(step), retain_graph=True)
    ours, theirs = (torch.cat([g.flatten() for g in of]) for of in (step.values(), gradients))
    return ((ours - theirs).norm() / theirs.norm()).item()


def check(step, logits, labels, changed, name, **params):
    """Cross-entropy's gradient before the change, the named loss's and not that one after it."""
    before = difference(step, by_hand("cross_entropy", logits, labels))
    after = difference(step, by_hand(name, logits, labels, **params))
    assert (after if changed else before) < 1e-5
    assert (before if changed else after) > 0.05


both = pytest.mark.parametrize("changed", [False, True], ids=["before", "after"])
# Learning rate 0: the model after the training is the model of its first step.
STILL = {"learning_rate": 0.0, "max_grad_norm": 0.0, "max_steps": 1}
QUIET = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(4, tiny.VOCABULARY))]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="$A",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        eos_token="[SEP]",
        model_max_length=32,
    )


def words(*numbers):
    return " ".join(f"w{number}" for number in numbers)


def test_every_example_of_the_page_is_run_here():
    assert {section: len(blocks) for section, blocks in SECTIONS.items() if blocks} == {
        "Trainer": 1,
        "The stock Trainer": 1,
        "TRL": 2,
        "CrossEncoder": 2,
        "SetFit": 1,
        "PyTorch": 1,
        "Accelerate": 2,
    }


# ---- transformers --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("section", "loss"), [("Trainer", "liberal_exp"), ("The stock Trainer", "strict_l")]
)
def test_trainer(section, loss, changed, steps, tmp_path):
    model, data = tiny.bert(), tiny.texts(8)
    args = TrainingArguments(tmp_path, **STILL, **QUIET)
    run(sides(section)[changed], model=model, args=args, data=data)
    logits = model(torch.stack([row["input_ids"] for row in data])).logits
    check(steps[0], logits, torch.tensor([row["labels"] for row in data]), changed, loss)


# ---- TRL -----------------------------------------------------------------------------------------

PROMPTS = [(5, 6, 7), (13,), (5, 13), (5, 6, 17, 11), (9, 30), (31, 32, 33, 34), (8,), (40, 41)]
ANSWERS = [(8, 9), (8, 9, 12, 11, 24), (9,), (8, 9, 34), (41,), (20, 21, 22), (23,), (24, 25)]


@both
@pytest.mark.parametrize(
    ("settings", "peft_config"),
    [
        ({}, None),
        ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 3}, None),
        ({"padding_free": True, "max_length": None}, None),
        (
            {
                "packing": True,
                "max_length": 12,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 4,
            },
            None,
        ),
        ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, LoraConfig()),
    ],
    ids=["padded", "accumulated", "padding_free", "packed", "lora"],
)
def test_sft(settings, peft_config, changed, steps, tmp_path):
    trl = need("trl")
    rows = [
        {"prompt": words(*prompt), "completion": " " + words(*answer)}
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    args = trl.SFTConfig(str(tmp_path), bf16=False, **(STILL | QUIET | settings))
    ran = run(
        sides("TRL")[changed],
        model=tiny.causal_lm(),
        args=args,
        data=Dataset.from_list(rows),
        tokenizer=tokenizer(),
        peft_config=peft_config,
    )
    # Each row for itself, unpadded and unpacked: what is learnt is the answer and its end.
    model, logits, labels = ran["trainer"].model.eval(), [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([*prompt, *answer, 3])
        logits.append(model(ids[None]).logits[0, len(prompt) - 1 : -1])
        labels.append(ids[len(prompt) :])
    assert len(steps) == 1
    assert any("lora" in name for name, _ in model.named_parameters()) == bool(peft_config)
    check(steps[0], torch.cat(logits), torch.cat(labels), changed, "strict_l")


def test_sft_log_has_the_baseline_and_not_what_trl_computes_with_its_loss(tmp_path):
    trl = need("trl")
    rows = Dataset.from_list([{"text": words(*numbers)} for numbers in (PROMPTS[0], PROMPTS[3])])
    trainer = run(
        sides("TRL")[1],
        model=tiny.causal_lm(),
        args=trl.SFTConfig(str(tmp_path), bf16=False, logging_steps=1, **STILL, **QUIET),
        data=rows,
        tokenizer=tokenizer(),
        peft_config=None,
    )["trainer"]
    trainer.evaluate(rows)
    seen = {key for line in trainer.state.log_history for key in line}
    assert {"loss", "eval_loss", "eval_cross_entropy"} <= seen
    assert not any("entropy" in key for key in seen - {"eval_cross_entropy"})
    assert not seen & {"mean_token_accuracy", "num_tokens"}


def test_sft_with_another_loss_of_its_own_is_an_error(tmp_path):
    trl = need("trl")
    with pytest.raises(ValueError, match=r"loss_type='dft' asks .*SFTTrainer for another loss"):
        run(
            sides("TRL")[1],
            model=tiny.causal_lm(),
            args=trl.SFTConfig(str(tmp_path), bf16=False, loss_type="dft", **STILL, **QUIET),
            data=Dataset.from_list([{"text": words(*PROMPTS[0])}]),
            tokenizer=tokenizer(),
            peft_config=None,
        )


def test_the_loss_is_chosen_on_trls_command_line(monkeypatch, tmp_path):
    need("trl")
    command = "sft.py --loss strict_m_power --use_cpu --bf16 false --packing --output_dir".split()
    command += [str(tmp_path), "--loss_kwargs", '{"alpha": 0.3}']
    monkeypatch.setattr(sys, "argv", command)
    _, code = SECTIONS["TRL"][1]
    # A dataclass asks for the module it is in.
    args = run(code, __name__=__name__)["args"]
    assert (args.loss, args.loss_kwargs, args.packing) == ("strict_m_power", {"alpha": 0.3}, True)


# ---- sentence-transformers -----------------------------------------------------------------------


@pytest.fixture
def cross_encoder(tmp_path):
    """Makes a `CrossEncoder` of so many outputs."""
    package = need("sentence_transformers.cross_encoder")

    def make(num_labels):
        tiny.bert(num_labels=num_labels).save_pretrained(tmp_path / "model")
        tokenizer().save_pretrained(tmp_path / "model")
        return package.CrossEncoder(str(tmp_path / "model"), device="cpu")

    return make


def pairs(labels):
    return Dataset.from_list(
        [
            {"one": words(5 + i, 9), "other": words(*range(12, 13 + i)), "label": label}
            for i, label in enumerate(labels)
        ]
    )


def pair_logits(model, data):
    batch = model.tokenizer(list(data["one"]), list(data["other"]), padding=True)
    return model[0].auto_model(**batch.convert_to_tensors("pt")).logits


def train(code, model, data, tmp_path, **settings):
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

    args = CrossEncoderTrainingArguments(str(tmp_path / "out"), **(STILL | QUIET | settings))
    return run(code, model=model, reranker=model, args=args, data=data, pairs=data)


@both
@pytest.mark.parametrize("accumulated", [1, 2])
def test_cross_encoder_of_classes(accumulated, changed, steps, tmp_path, cross_encoder):
    model, data = cross_encoder(3), pairs([0, 2, 1, 1, 0, 2, 2, 1])
    settings = {
        "per_device_train_batch_size": 8 // accumulated,
        "gradient_accumulation_steps": accumulated,
    }
    train(sides("CrossEncoder")[changed], model, data, tmp_path, **settings)
    logits, labels = pair_logits(model, data), torch.tensor(data["label"])
    assert len(steps) == 1
    check(steps[0], logits, labels, changed, "strict_m_power", alpha=0.3)


@both
def test_reranker(changed, steps, tmp_path, cross_encoder):
    model, data = cross_encoder(1), pairs([0, 1, 1, 1, 0, 1, 0, 1])
    train(sides("CrossEncoder", 1)[changed], model, data, tmp_path)
    logits, labels = pair_logits(model, data).squeeze(-1), torch.tensor(data["label"])
    check(steps[0], logits, labels, changed, "liberal_exp")


def test_cross_encoders_own_model_card_says_what_it_was_trained_with(tmp_path, cross_encoder):
    model = cross_encoder(3)
    train(sides("CrossEncoder")[1], model, pairs([0, 2, 1]), tmp_path, max_steps=1)
    model.save_pretrained(str(tmp_path / "saved"))
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    loss = "Loss: <code>hf_losses.cross_encoder.CrossEncoderLoss</code> with these parameters:"
    config = re.search(re.escape(loss) + r"\s+```json(.*?)```", card.text, re.DOTALL)[1]
    assert get_loss(**json.loads(config)).config == {"name": "strict_m_power", "alpha": 0.3}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (paper,) = re.findall(r"```bibtex\n(.*?)\n```", readme, re.DOTALL)
    heading, _, cited = card.text.partition("#### CrossEncoderLoss\n```bibtex\n")
    assert heading
    assert paper in cited
    assert "note   = {strict\\_m\\_power: Noel et al. 2023" in cited
    assert "loss:CrossEncoderLoss" in card.data.tags


def test_cross_encoder_loss_cites_the_paper_only_for_what_is_from_it(cross_encoder):
    from hf_losses.cross_encoder import CrossEncoderLoss

    model = cross_encoder(1)
    assert "noel2023alternate" in CrossEncoderLoss(model, "smae").citation
    huber = CrossEncoderLoss(model, "huber", delta=2.0)
    assert "Huber 1964" in huber.citation
    assert "noel2023alternate" not in huber.citation
    assert huber.get_config_dict() == {"name": "huber", "delta": 2.0}


@pytest.mark.parametrize(
    ("outputs", "loss", "labels", "stock"),
    [
        (1, "cross_entropy", torch.tensor([1, 0]), F.binary_cross_entropy_with_logits),
        (1, "cross_entropy", torch.tensor([[0.9], [0.2]]), F.binary_cross_entropy_with_logits),
        (1, "mse", torch.tensor([0.9, -3.0]), F.mse_loss),
        (3, "mse", torch.tensor([[0.9, 0.0, 1.0], [0.2, 3.0, -1.0]]), F.mse_loss),
        (3, "cross_entropy", torch.tensor([[2], [0]]), F.cross_entropy),
        # As the collator hands over columns of lists.
        (3, "cross_entropy", [*torch.tensor([[0.5, 0.5, 0.0], [0, 0, 1]])], F.cross_entropy),
    ],
    ids=["yes_no", "probability", "number", "numbers", "classes_in_a_column", "soft"],
)
def test_cross_encoder_loss_takes_the_labels_that_there_are(
    outputs, loss, labels, stock, cross_encoder
):
    from hf_losses.cross_encoder import CrossEncoderLoss

    model, data = cross_encoder(outputs), pairs([0, 0])
    value = CrossEncoderLoss(model, loss)([list(data["one"]), list(data["other"])], labels)
    logits = pair_logits(model, data)
    target = torch.stack(labels) if isinstance(labels, list) else labels
    if stock is not F.cross_entropy:
        target = target.reshape(logits.shape).float()
    elif target.shape == (2, 1):
        target = target[:, 0]
    torch.testing.assert_close(value, stock(logits, target))


def test_cross_encoder_loss_passes_several_yes_or_no(cross_encoder):
    from hf_losses.cross_encoder import CrossEncoderLoss

    model, data = cross_encoder(3), pairs([0, 0])
    loss = CrossEncoderLoss(model, "strict_l", problem_type="multi_label_classification")
    labels = torch.tensor([[1, 0, 1], [0, 0, 1]])
    value = loss([list(data["one"]), list(data["other"])], labels)
    torch.testing.assert_close(value, by_hand("strict_l", pair_logits(model, data), labels))


def test_cross_encoder_loss_refuses_what_does_not_fit(cross_encoder, monkeypatch):
    from hf_losses.cross_encoder import CrossEncoderLoss

    model = cross_encoder(1)
    for message, call in {
        "needs a CrossEncoder, got a Linear": partial(CrossEncoderLoss, torch.nn.Linear(1, 1)),
        "unknown loss 'liberal_ex'": partial(CrossEncoderLoss, model, "liberal_ex"),
        "takes a mean": partial(CrossEncoderLoss, model, reduction="sum"),
        "num_labels=1: leave problem_type out": partial(
            CrossEncoderLoss, model, problem_type="single_label_classification"
        ),
        "weight has 2 entries, one per class, but the model has num_labels=1": partial(
            CrossEncoderLoss, model, weight=[1, 5]
        ),
        "number per class, .* got 'balanced'": partial(CrossEncoderLoss, model, weight="balanced"),
        "two columns .* has 3": partial(CrossEncoderLoss(model), [["a"]] * 3, torch.ones(1)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setitem(sys.modules, "sentence_transformers.cross_encoder", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-losses\[integrations\]'"):
        CrossEncoderLoss(model)


# ---- SetFit --------------------------------------------------------------------------------------


@both
def test_setfit(changed, steps, tmp_path):
    setfit = need("setfit")
    body = tmp_path / "body"
    tiny.bert(BertModel).save_pretrained(body)
    tokenizer().save_pretrained(body)
    labels = [0, 1, 2, 0, 1, 2]
    texts = [words(5 + i, *range(20, 21 + i)) for i in range(len(labels))]
    args = setfit.TrainingArguments(
        str(tmp_path),
        batch_size=(4, 6),
        num_epochs=1,
        max_steps=1,
        body_learning_rate=0.0,
        head_learning_rate=0.0,
        report_to="none",
        save_strategy="no",
        show_progress_bar=False,
    )
    model = run(
        sides("SetFit")[changed],
        body=str(body),
        args=args,
        data=Dataset.from_dict({"text": texts, "label": labels}),
    )["model"]
    head = set(model.model_head.parameters())
    of_head = [step for step in steps if head <= step.keys()]
    assert 0 < len(of_head) < len(steps)  # The first phase trains the body alone, on pairs.
    logits = model.model_head(model.model_body.encode(texts, convert_to_tensor=True).clone())[0]
    check(of_head[0], logits, torch.tensor(labels), changed, "liberal_exp")

    if changed:
        for loss in (type(get_loss("liberal_exp")), torch.nn.CrossEntropyLoss):
            model.save_pretrained(str(tmp_path / "saved"))
            again = setfit.SetFitModel.from_pretrained(str(tmp_path / "saved"))
            torch.testing.assert_close(again.predict_proba(texts), model.predict_proba(texts))
            assert type(again.model_head.get_loss_fn()) is loss
            model.model_head.__dict__.pop("get_loss_fn", None)


# ---- Plain loops ---------------------------------------------------------------------------------


def loop(code, rows, batch_size, labels):
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(6, tiny.CLASSES), torch.randn(rows, 6)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size)
    run(code, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.0), loader=loader)
    return model(inputs)


LABELS = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0])


@both
def test_pytorch(changed, steps):
    logits = loop(sides("PyTorch")[changed], 8, 4, LABELS)
    assert len(steps) == 2
    check(steps[0], logits[:4], LABELS[:4], changed, "strict_m_power", alpha=0.3)


@both
def test_accelerate(changed, steps):
    logits = loop(sides("Accelerate")[changed], 8, 4, LABELS)
    assert len(steps) == 1
    check(steps[0], logits, LABELS, changed, "liberal_exp")


def test_accelerate_with_unequal_micro_batches(steps):
    labels = LABELS.clone()
    labels[[1, 2, 3]] = -100
    labels = torch.cat([labels, LABELS[:3]])
    _, code = SECTIONS["Accelerate"][1]
    logits = loop(code, 11, 4, labels)
    assert len(steps) == 2
    check(steps[0], logits[:8], labels[:8], True, "liberal_exp")
    check(steps[1], logits[8:], labels[8:], True, "liberal_exp")  # One micro-batch, of 3 rows.
    # The mean of the means of the first two is another gradient.
    means = (
        by_hand("liberal_exp", *part)
        for part in ((logits[:4], labels[:4]), (logits[4:8], labels[4:8]))
    )
    assert difference(steps[0], sum(means) / 2) > 0.05


@pytest.mark.slow
def test_accelerate_with_unequal_micro_batches_on_two_processes(tmp_path):
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, 6), torch.cat([LABELS, LABELS])
    labels[[0, 1, 2, 13]] = -100
    weight = torch.nn.Parameter(torch.randn(tiny.CLASSES, 6))
    _, code = SECTIONS["Accelerate"][1]
    torch.save([code, inputs, labels, weight], tmp_path / "given.pt")
    script = """
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

accelerator = Accelerator(cpu=True)
code, inputs, labels, weight = torch.load("given.pt", weights_only=False)
model = torch.nn.Linear(*weight.shape[::-1], bias=False)
model.weight = weight
optimizer = torch.optim.SGD(model.parameters(), 0.0)
steps = []
optimizer.register_step_pre_hook(lambda *_: steps.append(weight.grad.clone()))
loader = DataLoader(TensorDataset(inputs, labels), 4)
exec(code, {"model": model, "optimizer": optimizer, "loader": loader})
torch.save([steps, accelerator.num_processes], f"{accelerator.process_index}.pt")
accelerator.end_training()
"""
    (tmp_path / "loop.py").write_text(script, encoding="utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, "loop.py"], cwd=tmp_path, check=True)
    for rank in range(2):
        (gradient,), processes = torch.load(tmp_path / f"{rank}.pt")
        assert processes == 2
        check({weight: gradient}, inputs @ weight.T, labels, True, "liberal_exp")
