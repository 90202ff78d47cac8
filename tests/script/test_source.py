"""Which scripts are refused before they start, because they train in a loop of their own."""

import pytest

from hf_losses.script.source import starts_processes, starts_training, trains_without_trainer

LOOP = """
import argparse, torch
from accelerate import Accelerator
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification
model.eval()
accelerator.backward(loss)
"""
DOCUMENTED = '"""Fine-tuning without the Trainer, in a loop of its own."""' + LOOP
TORCH = "import torch\n"

# By name: the script, and the files beside it.
OWN_LOOP = {
    "loop": (DOCUMENTED, {}),
    "helper": (LOOP + "from utils_qa import score\n", {"utils_qa.py": "import numpy as np\n"}),
    "helper_trains": ("import loop\nloop.main()\n", {"loop.py": LOOP}),
    "package": (
        TORCH + "from tools.data import read\n",
        {"tools/__init__.py": "from . import data\n", "tools/data.py": "def read(): ...\n"},
    ),
    "attribute": (TORCH + "seed = getattr(args, 'seed', None)\n", {}),
    "circle": (TORCH + "import a\n", {"a.py": "import b\n", "b.py": "import a\n"}),
}
MAY_HAVE_ONE = {
    "imported": TORCH + "from transformers import Trainer\n",
    "attribute": TORCH + "import transformers\ntransformers.Trainer(model)\n",
    "renamed": TORCH + "from transformers import Seq2SeqTrainer as T\n",
    "deep": TORCH + "def main():\n    from transformers import Trainer as T\n",
    "text": TORCH + "import transformers\ngetattr(transformers, 'Trainer')(model)\n",
    "getattr": TORCH + "import transformers\ngetattr(transformers, args.trainer)(model)\n",
    "importlib": TORCH + "import importlib\nimportlib.import_module(args.code).main()\n",
    "import": TORCH + "__import__(args.code).main()\n",
    "runs": TORCH + "import runpy\nrunpy.run_path('train.py')\n",
    "executes": TORCH + "exec(open('train.py').read())\n",
    "library": TORCH + "from sentence_transformers import CrossEncoder\nmodel.fit(data)\n",
    "config": TORCH + "import hydra\nhydra.utils.instantiate(cfg.trainer)\n",
    "no_torch": "import os, sys\nprint(sys.argv)\n",
    "syntax": TORCH + "x = = 3\n",
}
MAY_HAVE_ONE_BESIDE = {
    "module": (TORCH + "import train\n", {"train.py": "from transformers import Trainer\n"}),
    "module_of_module": (
        TORCH + "import a\n",
        {"a.py": "import b\n", "b.py": "import transformers.trainer as t\nt.Trainer\n"},
    ),
    "package": (
        TORCH + "import tools\n",
        {"tools/__init__.py": "from .b import run\n", "tools/b.py": "from trl import SFTTrainer\n"},
    ),
    "upwards": (
        TORCH + "import tools.b\n",
        {"tools/b/__init__.py": "from ..a import T\n", "tools/a.py": "from x import Trainer as T"},
    ),
    "namespace": (
        TORCH + "import tools.sub.b\n",
        {"tools/sub/b.py": "from transformers import Trainer\n"},
    ),
    "shadowed": (TORCH + "import tqdm\n", {"tqdm.py": "from transformers import Trainer\n"}),
    "config_folder": (TORCH + "import hydra\n", {"hydra/config.yaml": ""}),
    "elsewhere": (TORCH + "import sys\nsys.path.append('src')\nimport mine\n", {"src/mine.py": ""}),
}


def finds_own_loop(folder, script, beside):
    for name, text in ({"script.py": script} | beside).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return trains_without_trainer(folder / "script.py", folder)


@pytest.mark.parametrize("name", OWN_LOOP)
def test_a_loop_of_its_own_is_seen(tmp_path, name):
    assert finds_own_loop(tmp_path, *OWN_LOOP[name])


@pytest.mark.parametrize("name", MAY_HAVE_ONE)
def test_what_may_have_a_trainer_is_run(tmp_path, name):
    assert not finds_own_loop(tmp_path, MAY_HAVE_ONE[name], {})


@pytest.mark.parametrize("name", MAY_HAVE_ONE_BESIDE)
def test_what_may_have_one_beside_it_is_run(tmp_path, name):
    assert not finds_own_loop(tmp_path, *MAY_HAVE_ONE_BESIDE[name])


@pytest.mark.parametrize(
    ("source", "function"),
    [
        ("import torch.multiprocessing as mp\nmp.spawn(main, nprocs=2)", "spawn"),
        (
            "from torch import multiprocessing\nmultiprocessing.start_processes(main)",
            "start_processes",
        ),
        ("from accelerate import notebook_launcher\nnotebook_launcher(main)", "notebook_launcher"),
        ("import multiprocessing\nmultiprocessing.spawn(main)", None),
        ("import torch.multiprocessing as mp\nmp.set_start_method('spawn')", None),
        ("x = = 3", None),
    ],
)
def test_processes_of_the_script_s_own_are_seen(tmp_path, source, function):
    script = tmp_path / "script.py"
    script.write_text(source)
    assert starts_processes(script) == function


@pytest.mark.parametrize(
    ("command", "started"),
    [
        (["/x/python3", "-u", "train.py", "--lr", "1"], "train.py"),
        (["python", "-m", "torch.distributed.run", "train.py"], "torch.distributed.run"),
        ([b"/usr/bin/torchrun", "train.py"], "torchrun"),
        (["accelerate", "launch", "train.py"], "accelerate"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], None),
        (["python", "/x/torch/_inductor/compile_worker/__main__.py"], None),
        (["python", "-m", "pip", "list"], None),
        (["python", "-m", "hf_losses", "run", "train.py"], None),
        (["torchrun", "-m", "hf_losses", "run", "train.py"], None),
        (["accelerate", "env"], None),
        (["git", "status"], None),
        ("python train.py", None),
        ([], None),
    ],
)
def test_what_starts_a_training_of_its_own_is_known(command, started):
    assert starts_training(command) == started
