"""Time and memory of the losses beside `F.cross_entropy`, naive formulas and the fused last layer.

    python benchmarks/losses.py results/benchmarks [SHAPE …]

Time: forward and backward of the mean loss, every peer in turns, medians and quartiles of one
process per shape, for logits once with the default allocator and once warm (freed memory is kept,
so that fresh pages cost nothing). Memory: the peak of what PyTorch's allocator hands out beyond
logits (or hidden states and weight) and labels, one process per peer. For the smallest shape, whose
times depend on the mood of the machine, instructions too, where valgrind is installed. Liger's
kernels are no peer here: they need a GPU. Writes losses.json and losses.png.
"""

import functools
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from hf_losses import get_loss, linear_loss, list_losses
from hf_losses.training.reports.machine import hardware

WARM = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": "0"}
SHAPES = {
    "32x2": (32, 2, "float32"),
    "256x1000": (256, 1000, "float32"),
    "4096x128": (4096, 128, "float32"),
    "2048x32000": (2048, 32000, "float32"),
    "2048x32000-bf16": (2048, 32000, "bfloat16"),
    "1024x128256": (1024, 128256, "float32"),
}
SMALL = ("32x2", "256x1000", "4096x128")  # Their memory does not matter.
LINEAR = {"linear": (2048, 576, 49152)}
STEPS = ("causal-lm-step", "sft-step", "bert-tiny", "bert-minilm", "vit-tiny")
SECONDS = 1.0  # Of measuring per peer and condition; twenty give narrower quartiles.
ROUNDS = (9, 60)  # Fewest and most.
STEP_ROUNDS = 15  # Of whole trainings, whose times spread more than the difference looked for.
# The other sparse losses hold what liberal_exp does.
TIME_ONLY = {
    *("naive strict_m_full", "naive strict_l_full"),
    *(n for n in list_losses(task="classification") if n.split("_")[-1] not in ("exp", "full")),
}
COUNTED = {"32x2": ("F.cross_entropy", "naive liberal_exp", "liberal_exp")}
RUNS = 20  # Whose instructions are counted.
SLOW_ROUNDS = 5  # Of the naive full forms, which take ten times as long as the rest.


def probability(logits, target):
    return F.log_softmax(logits.float(), -1).gather(-1, target.unsqueeze(-1)).squeeze(-1).exp()


def naive_sparse(logits, target):
    """liberal_exp as it stands in the table of formulas."""
    return (torch.exp(1 - probability(logits, target)) - 1).mean()


@functools.cache
def compiled():
    """Made when it is called first: the compiler alone takes seconds to import."""
    return torch.compile(naive_sparse)


def naive_full(logits, target, of_wrong, of_true):
    p = F.softmax(logits.float(), -1)
    p_true = p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    wrong = of_wrong(p)
    wrong = wrong.sum(-1) - wrong.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return (of_true(p_true) + wrong).mean()


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
    if shutil.which("c++"):
        peers["torch.compile of naive liberal_exp"] = lambda *inputs: compiled()(*inputs)
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
    liberal_exp = get_loss("liberal_exp")
    peers = {
        "F.linear + F.cross_entropy": lambda: F.cross_entropy(F.linear(hidden, weight), target),
    }
    if hasattr(F, "linear_cross_entropy"):  # Since PyTorch 2.13.
        peers["F.linear_cross_entropy"] = lambda: F.linear_cross_entropy(hidden, weight, target)
    peers |= {
        "F.linear + liberal_exp": lambda: liberal_exp(F.linear(hidden, weight), target),
        "linear_loss liberal_exp": lambda: linear_loss(hidden, weight, target, loss=liberal_exp),
        "linear_loss cross_entropy": lambda: linear_loss(hidden, weight, target),
    }

    def step(loss):
        def run():
            hidden.grad = weight.grad = None
            loss().backward()

        return run

    return {name: step(loss) for name, loss in peers.items()}


def peers_of(case):
    if case in SHAPES:
        return of_logits(*SHAPES[case])
    if case in LINEAR:
        return of_hidden(*LINEAR[case])
    import training_steps  # With transformers, which would take minutes where instructions count.

    return training_steps.peers_of(case)


def seconds_of(run, times=1):
    """Seconds of one of so many runs."""
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def measure_time(case):
    """Milliseconds of every peer of a case."""
    return in_turns(peers_of(case), fewest=STEP_ROUNDS if case in STEPS else ROUNDS[0])


def in_turns(peers, *, fewest, clock=seconds_of, budget=SECONDS):
    """Milliseconds of every peer: median and quartiles, in turns.

    `clock` returns the seconds of a run, as `seconds_of` does; `budget` are those for each peer.
    """
    single = {}
    for name, run in peers.items():
        if not name.startswith("naive strict"):
            run()
        single[name] = clock(run)
    # What takes microseconds is timed many times at once.
    inner = {name: max(1, int(0.005 / seconds)) for name, seconds in single.items()}
    rounds = int(budget * len(peers) / sum(single[n] * inner[n] for n in peers))
    seconds = {name: [] for name in peers}
    for turn in range(min(ROUNDS[1], max(fewest, rounds))):
        for name, run in peers.items():
            if name.startswith("naive strict") and turn >= SLOW_ROUNDS:
                continue
            if inner[name] > 1:
                run()  # What the peer before left in the caches is not this one's matter.
            seconds[name].append(clock(run, inner[name]))
    reference = statistics.median(seconds[next(iter(peers))])
    return {
        name: {
            "milliseconds": round(1e3 * statistics.median(times), 4),
            "ratio": round(statistics.median(times) / reference, 3),
            "quartiles": [
                round(q / reference, 3)
                for q in statistics.quantiles(times, n=4, method="inclusive")[::2]
            ],
            "rounds": len(times),
        }
        for name, times in seconds.items()
    }


def measure_memory(case, name):
    """Bytes that PyTorch holds at the peak of one step, beyond what it held before."""
    run = peers_of(case)[name]
    if name.startswith("torch.compile"):
        run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def count_instructions(case, name):
    """Instructions of one step on one thread, by callgrind."""
    setup = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from losses import peers_of
torch.set_num_threads(1)
run = peers_of({case!r})[{name!r}]
for _ in range({RUNS}): run()
"""
    timer = Timer("run()", setup=setup)
    return round(timer.collect_callgrind(RUNS, collect_baseline=False).counts() / RUNS)


def child(*words, warm=False):
    # Callgrind starts whatever is called python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path} | (WARM if warm else {})
    command = [sys.executable, __file__, "--child", *words]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(out.stdout.splitlines()[-1])


def draw(results, path):
    from matplotlib.figure import Figure

    cases = [case for case in results["cases"] if case in SHAPES]
    figure = Figure(figsize=(13, 4.4 * -(-len(cases) // 2)))
    grid = figure.subplots(-(-len(cases) // 2), 2, squeeze=False).flatten()
    for axes in grid[len(cases) :]:
        axes.remove()
    for axes, case in zip(grid, cases, strict=False):
        peers = list(results["cases"][case]["warm"])
        for shift, condition, color in ((-0.15, "default", "#7b8794"), (0.15, "warm", "#0b5fa5")):
            timings = [results["cases"][case][condition][peer] for peer in peers]
            places = [place + shift for place in range(len(peers))]
            low, high = zip(*(peer["quartiles"] for peer in timings), strict=True)
            axes.hlines(places, low, high, color=color, lw=1)
            label = f"{condition} allocator"
            axes.plot([p["ratio"] for p in timings], places, "o", color=color, ms=5, label=label)
        axes.axvline(1, color="#b3261e", lw=1)
        axes.set_yticks(range(len(peers)), peers, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.set_xlim(0.05, 30)
        ticks = (0.1, 0.3, 1, 3, 10, 30)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="x", color="#dddddd", lw=0.6)
        axes.set_title(f"{case}: time relative to {peers[0]}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(fontsize=8, frameon=False, loc="upper left")
    grid[len(cases) - 1].set_xlabel("median and quartiles; left of the line is faster")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main(folder, *only):
    path = Path(folder) / "losses.json"
    results = json.loads(path.read_text()) if only and path.exists() else {"cases": {}}
    cases = only or (*SHAPES, *LINEAR, *STEPS)
    for case in cases:
        measured = {"default": child("time", case)}
        if case in SHAPES:
            measured["warm"] = child("time", case, warm=True)
        if case in COUNTED and shutil.which("valgrind"):
            peers = COUNTED[case]
            measured["instructions"] = {name: child("instructions", case, name) for name in peers}
        if case not in (*SMALL, *STEPS[2:]):
            peers = [name for name in measured["default"] if name not in TIME_ONLY]
            measured["peak_bytes"] = {name: child("memory", case, name) for name in peers}
        results["cases"][case] = measured
        for condition in ("default", "warm"):
            if condition in measured:
                ratios = {name: peer["ratio"] for name, peer in measured[condition].items()}
                print(case, condition, ratios, flush=True)
        for what in ("instructions", "peak_bytes"):
            if what in measured:
                print(case, what, measured[what], flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results | _machine(), indent=1) + "\n", encoding="utf-8")
    draw(results, path.with_suffix(".png"))


def _machine():
    return {
        "hardware": hardware(torch.device("cpu")) | {"threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        what, *words = sys.argv[2:]
        measure = {
            "time": measure_time,
            "memory": measure_memory,
            "instructions": count_instructions,
        }
        print("\n" + json.dumps(measure[what](*words)))
    else:
        main(*sys.argv[1:])
