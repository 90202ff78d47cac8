"""What `hf-losses compare` takes beyond the runs themselves.

    python benchmarks/compare_overhead.py results/benchmarks/compare_overhead.json

Compares two losses on three seeds with recipes/image_classification.py as it is (about a minute a
run), one at a time, and takes the seconds of the runs from those of the whole command: its start,
its looks at the processes, statistics, pictures and report.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import hf_losses

RECIPE = Path(__file__).parent.parent / "recipes" / "image_classification.py"


def main():
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hf_losses", "compare", "--jobs", "1", "--seeds", "3"]
        command += ["--losses", "cross_entropy", "liberal_exp", "--output_dir", f"{folder}/x"]
        start = time.perf_counter()
        subprocess.run([*command, "--", str(RECIPE), "--use_cpu"], check=True)
        whole = time.perf_counter() - start
        runs = json.loads(Path(folder, "x", "results.json").read_text())["runs"]
    of_runs = sum(run["wall_seconds"] for run in runs)
    report = {
        "runs": len(runs),
        "seconds_of_runs": round(of_runs, 2),
        "seconds_of_compare": round(whole, 2),
        "overhead_seconds": round(whole - of_runs, 2),
        "overhead": round((whole - of_runs) / of_runs, 5),
        "versions": {
            "hf-losses": hf_losses.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "hardware": {"cpu_count": os.cpu_count()},
    }
    target.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
