"""Time and memory of the losses beside `F.cross_entropy`, naive formulas and the fused last layer.

    python benchmarks/losses.py results/benchmarks [SHAPE …]

Time: forward and backward of the mean loss, every peer in turns, medians and quartiles of one
process per shape, for logits once with the default allocator and once warm (freed memory is kept,
so that fresh pages cost nothing). Memory: the peak of what a process holds beyond logits (or hidden
states and weight) and labels, one process per peer. Writes losses.json and losses.png there.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.utils import logging

from hf_losses import LossTrainer, LossTrainingArguments, get_loss, linear_loss, list_losses

WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": "0"}
SHAPES = {
    "32x2": (32, 2, "float32"),
    "256x1000": (256, 1000, "float32"),
    "4096x128": (4096, 128, "float32"),
    "2048x32000": (2048, 32000, "float32"),
    "2048x32000-bf16": (2048, 32000, "bfloat16"),
    "1024x128256": (1024, 128256, "float32"),
}
LINEAR = {"linear": (2048, 576, 49152)}
CAUSAL = {"causal-lm-step": 32000}
TRAINERS = ("bert-tiny", "bert-minilm", "vit-tiny")
SECONDS = 1.0  # Of measuring per peer and condition; twenty give narrower quartiles.
ROUNDS = (3, 60)  # Fewest and most.
# The other sparse losses hold what liberal_exp does.
TIME_ONLY = {
    *("naive strict_m_full", "naive strict_l_full"),
    *(n for n in list_losses(task="classification") if n.split("_")[-1] not in ("exp", "full")),
}
SLOW_ROUNDS = 2  # Of the naive full forms, which take ten times as long as the rest.


def probability(logits, target):
    return F.log_softmax(logits.float(), -1).gather(-1, target.unsqueeze(-1)).squeeze(-1).exp()


def naive_sparse(logits, target):
    """liberal_exp as it stands in the table of formulas."""
    return (torch.exp(1 - probability(logits, target)) - 1).mean()


def naive_full(logits, target, of_wrong, of_true):
    p = F.softmax(logits.float(), -1)
    own = p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    wrong = of_wrong(p)
    wrong = wrong.sum(-1) - wrong.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return (of_true(own) + wrong).mean()


def naive_m_full(logits, target):
    return naive_full(logits, target, lambda q: q / (1 - q), lambda p: 1 / p - 1)


def naive_l_full(logits, target):
    return naive_full(
        logits,
        target,
        lambda q: 1 / (1 - q * q).sqrt() - 1,
        lambda p: 1 / (p * (2 - p)).sqrt() - 1,
    )


def of_logits(rows, classes, dtype):
    """Peers by name: functions that compute a gradient from nothing."""
    torch.manual_seed(0)
    logits = torch.randn(rows, classes).to(getattr(torch, dtype))
    target = torch.randint(0, classes, (rows,))
    losses = list_losses(task="classification")
    peers = {"F.cross_entropy": F.cross_entropy, "naive liberal_exp": naive_sparse}
    peers |= {"naive strict_m_full": naive_m_full, "naive strict_l_full": naive_l_full}
    peers |= {name: get_loss(name) for name in losses}
    if logits.numel() > 10**6:
        over = get_loss("liberal_exp", overwrite_logits=True)
        peers["liberal_exp, overwriting"] = over

    def step(loss):
        def run():
            loss(logits.detach().requires_grad_(), target).backward()

        return run

    return {name: step(loss) for name, loss in peers.items()}


def of_hidden(rows, width, classes):
    """The last layer and the loss."""
    torch.manual_seed(0)
    hidden = torch.randn(rows, width, requires_grad=True)
    weight = (0.05 * torch.randn(classes, width)).requires_grad_()
    target = torch.randint(0, classes, (rows,))
    own = get_loss("liberal_exp")
    peers = {
        "F.linear + F.cross_entropy": lambda: F.cross_entropy(F.linear(hidden, weight), target),
        "F.linear_cross_entropy": lambda: F.linear_cross_entropy(hidden, weight, target),
        "F.linear + liberal_exp": lambda: own(F.linear(hidden, weight), target),
        "linear_loss liberal_exp": lambda: linear_loss(hidden, weight, target, loss=own),
        "linear_loss cross_entropy": lambda: linear_loss(hidden, weight, target),
    }

    def step(loss):
        def run():
            hidden.grad = weight.grad = None
            loss().backward()

        return run

    return {name: step(loss) for name, loss in peers.items()}


def of_causal_lm(words):
    """A whole training step of a small causal language model, through the trainers."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=512,
    )
    torch.manual_seed(0)
    ids = torch.randint(0, words, (8, 128))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    count = torch.tensor(8 * 127)
    folder = tempfile.mkdtemp()

    def step(cls, arguments, **settings):
        model = LlamaForCausalLM(config).train()
        args = arguments(output_dir=folder, use_cpu=True, report_to=[], **settings)
        trainer = cls(model=model, args=args)

        def run():
            model.zero_grad(set_to_none=True)
            trainer.compute_loss(model, dict(batch), num_items_in_batch=count).backward()

        return run

    return {
        "built-in loss": step(Trainer, TrainingArguments),
        "liberal_exp": step(LossTrainer, LossTrainingArguments, loss="liberal_exp"),
        "liberal_exp, fused_linear": step(
            LossTrainer, LossTrainingArguments, loss="liberal_exp", fused_linear=True
        ),
    }


def of_trainers(name):
    """Ten optimizer steps of a whole training, stock and with another loss."""
    torch.manual_seed(0)
    ids, classes = torch.randint(0, 1000, (32, 32)), torch.randint(0, 2, (32,))
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, classes, strict=True)]
    if name == "vit-tiny":
        model = ViTForImageClassification(
            ViTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768, image_size=64)
        )
        pixels = torch.randn(32, 3, 64, 64)
        rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, classes, strict=True)]
    else:
        width, layers = {"bert-tiny": (128, 2), "bert-minilm": (384, 6)}[name]
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=1000,
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=width // 32,
                intermediate_size=4 * width,
            )
        )
    folder = tempfile.mkdtemp()

    def steps(cls, arguments, **settings):
        args = arguments(
            output_dir=folder,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            max_steps=10,
            per_device_train_batch_size=32,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            **settings,
        )
        return lambda: cls(model=model, args=args, train_dataset=rows).train()

    return {
        "Trainer": steps(Trainer, TrainingArguments),
        "Trainer again": steps(Trainer, TrainingArguments),
        "LossTrainer, liberal_exp": steps(LossTrainer, LossTrainingArguments, loss="liberal_exp"),
        "LossTrainer, strict_l_full": steps(
            LossTrainer, LossTrainingArguments, loss="strict_l_full"
        ),
    }


def peers_of(case):
    if case in SHAPES:
        return of_logits(*SHAPES[case])
    if case in LINEAR:
        return of_hidden(*LINEAR[case])
    if case in CAUSAL:
        return of_causal_lm(CAUSAL[case])
    return of_trainers(case)


def measure_time(case):
    """Milliseconds of every peer: median and quartiles, in turns."""
    peers = peers_of(case)
    single = {}
    for name, run in peers.items():
        if not name.startswith("naive strict"):
            run()
        start = time.perf_counter()
        run()
        single[name] = time.perf_counter() - start
    # What takes microseconds is timed many times at once.
    inner = {name: max(1, int(0.005 / seconds)) for name, seconds in single.items()}
    rounds = int(SECONDS * len(peers) / sum(single[n] * inner[n] for n in peers))
    seconds = {name: [] for name in peers}
    for turn in range(min(ROUNDS[1], max(ROUNDS[0], rounds))):
        for name, run in peers.items():
            if name.startswith("naive strict") and turn >= SLOW_ROUNDS:
                continue
            start = time.perf_counter()
            for _ in range(inner[name]):
                run()
            seconds[name].append((time.perf_counter() - start) / inner[name])
    reference = statistics.median(seconds[next(iter(peers))])
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(found), 4),
            "ratio": round(statistics.median(found) / reference, 3),
            "quartiles": [round(q / reference, 3) for q in statistics.quantiles(found, n=4)[::2]],
            "rounds": len(found),
        }
        for name, found in seconds.items()
    }


def measure_memory(case, name):
    """Bytes at the peak of one step beyond what was there before, after a step to warm up."""
    run = peers_of(case)[name]
    torch.randn(64, 64).requires_grad_().sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
    before = _memory("VmRSS")
    run()
    return _memory("VmHWM") - before


def _memory(key):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


def child(*words, warm=False):
    environment = os.environ | (WARM if warm else {})
    command = [sys.executable, __file__, "--child", *words]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def draw(results, path):
    from matplotlib.figure import Figure

    cases = [case for case in results["cases"] if case in SHAPES]
    figure = Figure(figsize=(9, 1 + 0.36 * sum(len(results["cases"][c]["warm"]) for c in cases)))
    heights = [len(results["cases"][case]["warm"]) for case in cases]
    panels = figure.subplots(len(cases), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        peers = list(results["cases"][case]["warm"])
        for offset, condition, color in ((-0.2, "default", "#9aa7b5"), (0.2, "warm", "#0b5fa5")):
            found = results["cases"][case][condition]
            places = [place + offset for place in range(len(peers))]
            axes.barh(places, [found[p]["ratio"] for p in peers], 0.38, color=color)
            for place, peer in zip(places, peers, strict=True):
                axes.plot(found[peer]["quartiles"], [place] * 2, color="#222222", lw=1)
        axes.axvline(1, color="#b3261e", lw=1)
        axes.set_yticks(range(len(peers)), peers, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 4)
        axes.set_title(f"{case}: time relative to {peers[0]}", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(
        "grey: default allocator; blue: warm; line: quartiles; naive full forms go beyond the edge"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(folder, *only):
    path = Path(folder) / "losses.json"
    results = json.loads(path.read_text()) if only and path.exists() else {"cases": {}}
    cases = only or (*SHAPES, *LINEAR, *CAUSAL, *TRAINERS)
    for case in cases:
        found = {"default": child(case)}
        if case in SHAPES:
            found["warm"] = child(case, warm=True)
        if case not in ("32x2", "256x1000", "4096x128", *TRAINERS):
            peers = [name for name in found["default"] if name not in TIME_ONLY]
            found["peak_bytes"] = {name: child(case, name) for name in peers}
        results["cases"][case] = found
        for condition in ("default", "warm"):
            if condition in found:
                ratios = {name: peer["ratio"] for name, peer in found[condition].items()}
                print(case, condition, ratios, flush=True)
        if "peak_bytes" in found:
            print(case, "peak MB", {n: round(b / 1e6) for n, b in found["peak_bytes"].items()})
        path.write_text(json.dumps(results | _machine(), indent=1) + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))


def _machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "hardware": {
            "cpu": cpu[0] if cpu else platform.processor(),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


if __name__ == "__main__":
    logging.set_verbosity_error()
    if sys.argv[1] == "--child":
        found = measure_memory(*sys.argv[2:]) if len(sys.argv) > 3 else measure_time(sys.argv[2])
        print("\n" + json.dumps(found))
    else:
        main(*sys.argv[1:])
