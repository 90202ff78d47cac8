"""How official scripts and tests are run: on the CPU, without a network, repaired where needed."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from official.site import sitecustomize

ROOT = Path(__file__).parent.parent.parent
SITE = Path(sitecustomize.__file__).parent


def environment(folder, repairs=()):
    """Environment variables of a run.

    Args:
        folder: Whose folder `home` takes the place of the user's caches.
        repairs: Functions of `official/site/sitecustomize.py` by name.

    Returns:
        Dict for `subprocess.run`.
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", SITE))),
        "OFFICIAL_REPAIRS": " ".join(repairs),
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "HF_EVALUATE_OFFLINE": "1",
        "NLTK_DATA": str(folder / "nltk_data"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }


def repair_torchvision():
    """Repairs torchvision in this process where it does not import beside this build of torch.

    Returns:
        The names of the repairs that every other process needs.
    """
    check = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True)
    if b"torchvision::nms does not exist" not in check.stderr:
        return []
    sitecustomize.torchvision_operators()
    return ["torchvision_operators"]


def write_results(path, packages, **content):
    """Writes what was found, with the versions of what it was found with.

    Args:
        path: A file; its folder is made.
        packages: Names of installed packages.
        **content: What JSON can hold.
    """
    versions = {package: version(package) for package in packages}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"versions": versions} | content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
