"""Wall time of a comparison of 24 short runs on one node and on two, each with one CPU.

    python results/cluster/run.py

All nodes are raylets on this one machine (Ray's `cluster_utils.Cluster`). Three rounds alternate
between one node and two, since other work may run on the machine; of the ratios of their times the
median counts. Writes results.json here.
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

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster

HERE = Path(__file__).parent
ROUNDS = 3
LOSSES, SEEDS = ["cross_entropy", "dft"], 12
NAMES = {1: "one node", 2: "two nodes"}


def seconds(nodes, folder):
    """Wall time of the whole command, with its report, and of its runs one after the other."""
    cluster = Cluster(True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=1)
    command = [sys.executable, "-m", "hf_losses", "compare", "--losses", *LOSSES]
    command += ["--seeds", str(SEEDS), "--cluster", cluster.address, "--output_dir", str(folder)]
    begin = time.perf_counter()
    subprocess.run([*command, "--", str(HERE / "script.py")], check=True)
    wall = time.perf_counter() - begin
    cluster.shutdown()
    runs = json.loads((folder / "results.json").read_text())["runs"]
    assert [run["status"] for run in runs] == ["finished"] * len(LOSSES) * SEEDS
    return {"wall": round(wall, 1), "runs": round(sum(run["wall_seconds"] for run in runs), 1)}


rounds = []
for number in range(ROUNDS):
    with tempfile.TemporaryDirectory() as folder:
        times = {
            NAMES[nodes]: seconds(nodes, Path(folder, str(nodes)))
            for nodes in ((1, 2), (2, 1))[number % 2]
        }
        rounds.append(times | {"load": [round(load, 1) for load in os.getloadavg()]})
        print(rounds[-1], flush=True)
ratios = [times[NAMES[1]]["wall"] / times[NAMES[2]]["wall"] for times in rounds]
result = {
    "what": "seconds of `hf-losses compare`, 24 runs, nodes with one CPU each on one machine",
    "median_ratio": round(statistics.median(ratios), 2),
    "ratios": [round(ratio, 2) for ratio in ratios],
    "rounds": rounds,
    "cores": os.cpu_count(),
    "versions": {"python": platform.python_version(), "ray": ray.__version__},
}
(HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
