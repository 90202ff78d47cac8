"""A script that `hf-losses compare` can run: it holds to the contract and takes next to no time."""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--loss", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--output_dir", type=Path, required=True)
parser.add_argument("--learning_rate", type=float, default=0.1)
parser.add_argument("--bonus", type=float, default=0.0)
parser.add_argument("--sleep", type=float, default=0.0)
parser.add_argument("--crash", nargs="*", default=[], help="losses, or LOSS:SEED")
parser.add_argument("--diverge", nargs="*", default=[])
parser.add_argument("--unless", type=Path, help="no crash if this file exists")
parser.add_argument("--result", help="instead of a result")
parser.add_argument("--child", action="store_true", help="sleep in a process of its own")
args = parser.parse_args()

if args.output_dir.exists():
    sys.exit("a run must begin with nothing")
if args.child:
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({args.sleep})"])
    print("child", child.pid, flush=True)
    child.wait()
else:
    time.sleep(args.sleep)
if {args.loss, f"{args.loss}:{args.seed}"} & {*args.crash} and not (
    args.unless and args.unless.exists()
):
    raise RuntimeError(f"{args.loss} does not like | seed {args.seed}")

# What the seed decides is the same for all losses; the best learning rate is 0.3 for all.
value = random.Random(args.seed).gauss(0.7, 0.05) + args.bonus
value += {"strict_l": 0.02, "liberal_exp": 0.05}.get(args.loss, 0.0)
value += random.Random(f"{args.loss} {args.seed}").gauss(0, 0.002)
value -= (args.learning_rate - 0.3) ** 2
if args.loss in args.diverge:
    value = float("nan")
args.output_dir.mkdir(parents=True)
(args.output_dir / "model.safetensors").write_text("weights")
(args.output_dir / "checkpoint-10").mkdir()
print(f"threads {os.environ.get('OMP_NUM_THREADS')}")
scores = {
    "validation": {"accuracy": value - 0.1, "cross_entropy": 1 - value},
    "test": {"accuracy": value, "cross_entropy": 1 - value, "ece": 0.1},
}
result = {
    "task": "toy",
    "model": "none",
    "metric": "accuracy",
    "metrics": scores,
    "history": [{"step": s, "accuracy": value * min(1, s / 80)} for s in range(20, 101, 20)],
    "training": {"global_step": 100, "runtime": args.sleep, "evaluation_runtime": 0.0},
    "versions": {"torch": "2"},
    "hardware": {"cpu_count": 2, "gpu": None},
}
(args.output_dir / "result.json").write_text(args.result or json.dumps(result))
