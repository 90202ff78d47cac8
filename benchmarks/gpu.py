"""Time and memory on a GPU: the losses alone, with the last layer, and whole training steps.

    python benchmarks/gpu.py results/benchmarks [--cases CASE …] [--ways WAY …]

Time: forward and backward of the mean loss by CUDA events, every peer in turns, medians and
quartiles. Memory: the peak of what PyTorch's allocator hands out beyond the inputs. Every case runs
in two ways, each in a process of its own: with PyTorch's operations (`HF_LOSSES_TRITON=0`), and
with the kernels, where of the others only Liger's kernels and the one to which all are relative are
measured. Liger's are peers where `liger_kernel` is installed. The case `sft` is dynamic
fine-tuning: a step of TRL's `SFTTrainer` by TRL and by us, and Liger's fused last layer with token
scaling in no trainer; what could not run has the reason in its place. Weights are random; nothing
is downloaded. Writes gpu_CARD.json. `--tiny` shrinks every case, and needs no GPU with
`--device cpu`: it shows that the script runs, and measures nothing of interest.
"""

import argparse
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from losses import in_turns, naive_l_full, naive_m_full, naive_sparse, seconds_of
from torch.nn import functional as F

from hf_losses import get_loss, linear_loss, list_losses

SHAPES = ((4096, 32000), (8192, 128256), (32, 2), (16384, 50257))
WIDTHS = {32000: 2048, 128256: 4096, 50257: 768}  # Of the hidden states, by classes.
DTYPES = ("bfloat16", "float32")
STEPS = ("bert-base", "llama")
CASES = (
    *(f"{rows}x{classes}-{dtype}" for rows, classes in SHAPES for dtype in DTYPES),
    *(f"linear-{r}x{c}-{dtype}" for r, c in SHAPES if c in WIDTHS for dtype in DTYPES),
    *STEPS,
    "sft",
)
LOSSES = list_losses(task="classification")
EVERY_LOSS = ("4096x32000-bfloat16", "32x2-bfloat16")
FEW = ("cross_entropy", "liberal_exp", "strict_l", "strict_l_full")  # They hold what the others do.
TRL_DFT = "SFTTrainer, loss_type='dft'"
REFERENCE = {"F.cross_entropy", "F.linear + F.cross_entropy", "Trainer", TRL_DFT}
# Triton of ours changes nothing there. Liger's are measured again: they are what it must beat.
FOREIGN = ("F.c", "F.linear + F.", "F.linear_c", "naive", "torch.compile", "Trainer", "SFTTrainer")
WAYS = {"torch": "torch", "triton": "HF_LOSSES_TRITON=1"}
ROUNDS = 9  # Fewest.
SECONDS = 0.1  # Of measuring per peer.
HAS_LIGER = importlib.util.find_spec("liger_kernel") is not None
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "intermediate_size": 5632,
}
TINY = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def of_logits(rows, classes, dtype, device, tiny, losses=FEW):
    """Peers by name: functions that compute a gradient of logits from nothing."""
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(rows, classes, device=device, dtype=dtype, generator=generator)
    target = torch.randint(0, classes, (rows,), device=device, generator=generator)
    compiled = torch.compile(naive_sparse, backend="eager" if tiny else "inductor", dynamic=False)
    peers = {
        "F.cross_entropy": F.cross_entropy,
        "F.cross_entropy of float32": lambda z, y: F.cross_entropy(z.float(), y),
        "naive liberal_exp": naive_sparse,
        "naive strict_m_full": naive_m_full,
        "naive strict_l_full": naive_l_full,
        "torch.compile of naive liberal_exp": compiled,
    }
    in_place = {"liberal_exp, overwriting": get_loss("liberal_exp", overwrite_logits=True)}
    if HAS_LIGER and not tiny:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        in_place["Liger cross-entropy"] = LigerCrossEntropyLoss()  # It overwrites the logits.
    peers |= {name: get_loss(name) for name in losses}
    spare = logits.clone()

    def step(loss, z):
        return lambda: loss(z.detach().requires_grad_(), target).backward()

    return {name: step(loss, logits) for name, loss in peers.items()} | {
        name: step(loss, spare) for name, loss in in_place.items()
    }


def of_hidden(rows, classes, dtype, device, tiny):
    """The last layer and the loss."""
    generator = torch.Generator(device).manual_seed(0)
    make = functools.partial(torch.randn, device=device, dtype=dtype, generator=generator)
    width = 16 if tiny else WIDTHS[classes]
    hidden, weight = make(rows, width), make(classes, width) * width**-0.5
    target = torch.randint(0, classes, (rows,), device=device, generator=generator)
    peers = {"F.linear + F.cross_entropy": lambda h, w: F.cross_entropy(F.linear(h, w), target)}
    if hasattr(F, "linear_cross_entropy"):  # Since PyTorch 2.13.
        peers["F.linear_cross_entropy"] = lambda h, w: F.linear_cross_entropy(h, w, target)
    if HAS_LIGER and not tiny:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        for label, options in {"": {}, ", float32 sums": {"accum_dtype": torch.float32}}.items():
            liger = LigerFusedLinearCrossEntropyLoss(**options)
            name = f"Liger fused linear cross-entropy{label}"
            peers[name] = lambda h, w, liger=liger: liger(w, h, target)
    for name in ("cross_entropy", "liberal_exp", "strict_l_full"):
        loss = get_loss(name)
        peers[f"F.linear + {name}"] = lambda h, w, loss=loss: loss(F.linear(h, w), target)
        peers[f"linear_loss {name}"] = lambda h, w, loss=loss: linear_loss(h, w, target, loss=loss)

    def step(loss):
        return lambda: loss(
            hidden.detach().requires_grad_(), weight.detach().requires_grad_()
        ).backward()

    return {name: step(loss) for name, loss in peers.items()}


def of_trainings(case, device, tiny):
    """Whole trainings of ten steps in bfloat16."""
    from training_steps import trainings
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    if case == "bert-base":
        model = BertForSequenceClassification(BertConfig(**(TINY if tiny else {})))
        length, more = 128, {}
    else:
        model = LlamaForCausalLM(LlamaConfig(**(TINY if tiny else LLAMA)))
        length = 1024
        more = {
            "LossTrainer, cross_entropy": {"loss": "cross_entropy"},
            "LossTrainer, liberal_exp, fused_linear": {
                "loss": "liberal_exp",
                "fused_linear": True,
            },
        }
    length, batch = (8, 2) if tiny else (length, 32 if case == "bert-base" else 8)
    ids = torch.randint(1, 1000, (4 * batch, length), generator=torch.Generator().manual_seed(0))
    labels = ids if case == "llama" else ids[:, 0] % 2
    rows = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    return trainings(
        model,
        rows,
        more=more,
        steps=2 if tiny else 10,
        batch=batch,
        bf16=not tiny,
        use_cpu=device == "cpu",
    )


def of_sft(device, tiny):
    """A step of dynamic fine-tuning in bfloat16, forward and backward; else why it cannot run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**(TINY if tiny else LLAMA))
    batch, length = (2, 8) if tiny else (8, 1024)
    if importlib.util.find_spec("trl") is None:
        peers = {TRL_DFT: "trl is not installed"}
    else:
        from training_steps import of_sft as trainers

        peers = trainers(config, batch, length, device, torch.bfloat16)
    name = "Liger fused linear cross-entropy, token scaling"
    if not HAS_LIGER:
        return peers | {name: "liger-kernel is not installed"}
    if device == "cpu":
        return peers | {name: "Liger's kernels need a GPU"}
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(use_token_scaling=True)
    model = LlamaForCausalLM(config).to(device, torch.bfloat16).train()
    ids = torch.randint(3, config.vocab_size, (batch, length), device=device)

    def run():
        model.zero_grad(set_to_none=True)
        hidden = model.model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        hidden = hidden[:, :-1].flatten(0, 1)
        loss(model.lm_head.weight, hidden, ids[:, 1:].flatten()).backward()

    return peers | {name: run}


def peers_of(case, device, tiny):
    if case == "sft":
        return of_sft(device, tiny)
    if case in STEPS:
        return of_trainings(case, device, tiny)
    shape, dtype = case.removeprefix("linear-").split("-")
    rows, classes = map(int, shape.split("x"))
    if tiny:
        rows, classes = min(rows, 8), min(classes, 40)
    common = rows, classes, getattr(torch, dtype), device, tiny
    if case.startswith("linear-"):
        return of_hidden(*common)
    return of_logits(*common, LOSSES if case in EVERY_LOSS else FEW)


def seconds_by_events(run, times=1):
    """Seconds of one of so many runs on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def peak_bytes(run):
    gc.collect()  # A trainer and its optimizer refer to each other.
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(case, device, tiny, triton):
    """Time and memory of every peer; null, or in words why, for one that did not run."""
    peers = peers_of(case, device, tiny)
    if triton:
        peers = {n: r for n, r in peers.items() if n in REFERENCE or not n.startswith(FOREIGN)}
    peak, fit = {}, {}
    absent = {name: why for name, why in peers.items() if isinstance(why, str)}
    for name, run in peers.items():
        if name in absent:
            continue
        try:
            run()  # Compiles.
            peak[name] = peak_bytes(run) if device == "cuda" else None
            fit[name] = run
        except torch.OutOfMemoryError:
            continue  # Reported as null.
        except Exception as error:  # One peer that fails must not take the others' figures along.
            absent[name] = f"{type(error).__name__}: {error}"
    clock = seconds_by_events if device == "cuda" else seconds_of
    budget, fewest = (0.0, 2) if tiny else (SECONDS, ROUNDS)
    times = in_turns(fit, fewest=fewest, clock=clock, budget=budget) if fit else {}
    return {n: times[n] | {"peak_bytes": peak[n]} if n in fit else absent.get(n) for n in peers}


def child(way):
    """Measures in a process of its own, which knows from the start whether to use Triton."""
    environment = os.environ | {"HF_LOSSES_TRITON": str(int(way == "triton"))}
    command = [sys.executable, *sys.argv, "--child", way]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith('{"case"'):  # Trainers print lines of their own.
                yield json.loads(line)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)


def machine(device):
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "triton", "liger-kernel", "transformers", "trl", "hf-losses"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    if device == "cpu":
        return {"hardware": {"gpu": None}, "versions": versions}
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch finds no GPU here, and this measures one")
    facts = torch.cuda.get_device_properties(0)
    hardware = {"gpu": facts.name, "memory_bytes": facts.total_memory, "driver": None}
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
        output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
        hardware["driver"] = output.splitlines()[0]
    return {"hardware": hardware, "versions": versions}


def file_name(stem, facts):
    card = re.sub(r"\W+", "_", facts["hardware"]["gpu"] or "none").lower()
    return f"{stem}_{card}.json"


def main(options):
    facts = machine(options.device)
    path = Path(options.folder) / file_name("gpu", facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    cases = {}
    if (options.cases != CASES or len(options.ways) < len(WAYS)) and path.exists():
        cases = json.loads(path.read_text())["cases"]
    for name in options.ways:
        way = WAYS[name]
        for result in child(name):
            case, peers = result["case"], result["peers"]
            cases.setdefault(case, {})[way] = peers
            ratios = {n: p["ratio"] if isinstance(p, dict) else p for n, p in peers.items()}
            print(case, way, ratios, flush=True)
            cases = {name: cases[name] for name in CASES if name in cases}
            # After every case: a later one may fail.
            path.write_text(json.dumps(facts | {"cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=tuple(WAYS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--child", choices=WAYS)
    options = parser.parse_args()
    if options.child is None:
        main(options)
    else:
        for case in options.cases:
            triton = options.child == "triton"
            peers = measure(case, options.device, options.tiny, triton)
            print(json.dumps({"case": case, "peers": peers}), flush=True)
            torch._dynamo.reset()
