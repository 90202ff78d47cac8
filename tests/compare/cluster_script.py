"""A script for the tests of the cluster: it notes that it started, and where its output went."""

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--loss", required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--output_dir", type=Path, required=True)
parser.add_argument("--wait_for", type=Path, help="go on when this file exists, with .SEED")
parser.add_argument("--fail", default="", help="LOSS:SEED")
parser.add_argument("--starts", type=Path, required=True, help="file for a line for each start")
args = parser.parse_args()

with open(args.starts, "a") as starts:
    starts.write(f"{args.loss}:{args.seed} {os.getpid()} {args.output_dir}\n")
if args.output_dir.exists():
    sys.exit("a run must begin with nothing")
print(f"{args.loss} begins with OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}", flush=True)
while args.wait_for and not args.wait_for.with_suffix(f".{args.seed}").exists():
    time.sleep(0.05)
if f"{args.loss}:{args.seed}" == args.fail:
    raise RuntimeError("not this one")
args.output_dir.mkdir(parents=True)
(args.output_dir / "predictions_test.tsv").write_text("index\tprediction\tlabel\n")
(args.output_dir / "model.safetensors").write_text("weights")
value = random.Random(f"{args.loss} {args.seed}").gauss(0.7, 0.01)
result = {"metrics": {"test": {"accuracy": value}}, "metric": "accuracy"}
(args.output_dir / "result.json").write_text(json.dumps(result))
