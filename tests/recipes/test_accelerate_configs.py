"""recipes/configs: read by the launcher itself, kept to their comments, and run on the CPU."""

import importlib.util
import json
import math
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import test_glue
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import (
    DeepSpeedPlugin,
    FullyShardedDataParallelPlugin,
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from test_glue import ACCELERATE, CPU_FOR_GPU, RECIPES, glue, result_of, rows, write
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, HfArgumentParser

from hf_losses import register_loss
from hf_losses.losses import registry

tiny, files = test_glue.tiny, test_glue.files
RECIPE, FLAGS = test_glue.RECIPE, test_glue.FLAGS

CONFIGS = RECIPES / "configs"
NAMES = sorted(path.stem for path in CONFIGS.iterdir())
DOCS = (RECIPES.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
README = (RECIPES.parent / "README.md").read_text(encoding="utf-8")
PARSER = launch_command_parser()


def path(name):
    return str(CONFIGS / f"{name}.yaml")


def text(name):
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


def header(name):
    """The comment that a file begins with, as one line."""
    lines = re.match(r"(#.*\n)+", text(name))[0].splitlines()
    return " ".join(line.removeprefix("# ") for line in lines)


def parse(name, *flags):
    """The launcher's arguments, from a file and the flags before the script."""
    arguments = PARSER.parse_args(["--config_file", path(name), *flags, "train.py"])
    return _validate_launch_command(arguments)[0]


@pytest.fixture
def worker_environment(monkeypatch):
    """Sets what the launcher would set for its workers; returns it."""

    def of(name, *flags):
        args = parse(name, "--main_process_port", "0", *flags)
        if args.use_deepspeed:
            # As launch_command has it.
            fields = load_config_from_file(path(name)).deepspeed_config
            args.deepspeed_fields_from_accelerate_config = ",".join(fields)
            environment = prepare_deepspeed_cmd_env(args)[1]
        elif args.use_fsdp or args.multi_gpu:
            environment = prepare_multi_gpu_env(args)
        else:
            environment = prepare_simple_launcher_cmd_env(args)[1]
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        return environment

    return of


# ---- What the files say -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_launcher_knows_every_key(name):
    load_config_from_file(path(name))  # Raises for an unknown key of the first level.
    known = vars(PARSER.parse_args(["train.py"]))
    for section in yaml.safe_load(text(name)).values():
        assert set(section if isinstance(section, dict) else ()) <= set(known)


# What a comment may promise, and what is then the case. What is the case, it must say.
PROMISES = {
    "One process": lambda args: args.num_processes == 1,
    "Two processes": lambda args: args.num_processes == 2,
    "16 processes": lambda args: args.num_processes == 16,
    "on one GPU": lambda args: args.gpu_ids == "0",
    "of one machine": lambda args: args.num_machines == 1 and args.num_processes > 1 and gpus(args),
    "of two machines": lambda args: args.num_machines == 2,
    "--machine_rank": lambda args: args.num_machines > 1,
    "(DDP)": lambda args: args.multi_gpu,
    "(FSDP2)": lambda args: args.use_fsdp and args.fsdp_version == 2,
    "(DeepSpeed ZeRO-2)": lambda args: args.use_deepspeed and args.zero_stage == 2,
    "(DeepSpeed ZeRO-3)": lambda args: args.use_deepspeed and args.zero_stage == 3,
    "`pip install deepspeed`": lambda args: args.use_deepspeed,
    "Needs nothing more": lambda args: not args.use_deepspeed,
    "in bfloat16": lambda args: args.mixed_precision == "bf16",
    "float32": lambda args: args.mixed_precision == "no",
    "--bf16": lambda args: gpus(args) and args.mixed_precision == "no",
    "--use_cpu": lambda args: not gpus(args),
}


def gpus(args):
    return Path(args.config_file).stem != "cpu_two"


@pytest.mark.parametrize("name", NAMES)
def test_the_comment_says_what_the_launcher_reads(name):
    args, comment = parse(name), header(name)
    assert {promise for promise in PROMISES if promise in comment} == {
        promise for promise, holds in PROMISES.items() if holds(args)
    }


def recipe_flags():
    """Of the recipe that all commands of the docs start."""
    parser = HfArgumentParser((glue.TextArguments, glue.ModelArguments, glue.GlueTrainingArguments))
    return set(parser._option_string_actions)


# Of clusters other programs are told, whose flags `tests/docs/test_blocks.py` reads.
LAUNCHING = re.sub(r"(?s)## A comparison on a cluster\n.*?(?=\n## )", "", DOCS)


@pytest.mark.parametrize("text", [*map(header, NAMES), LAUNCHING], ids=[*NAMES, "docs"])
def test_flags_in_comments_and_docs_exist(text):
    flags = set(re.findall(r"--\w+", text))
    assert flags - {"--cluster"} <= recipe_flags() | set(PARSER._option_string_actions)


COMMANDS = re.findall(r"accelerate launch --config_file[^\n`]*", DOCS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_in_the_docs_are_read_as_meant(command, monkeypatch):
    monkeypatch.chdir(RECIPES.parent)
    args = PARSER.parse_args(shlex.split(command.replace("ADDRESS", "10.0.0.1"))[2:])
    args = _validate_launch_command(args)[0]
    assert args.training_script == "recipes/glue.py"
    flags = {flag for flag in args.training_script_args if flag.startswith("--")}
    assert flags <= recipe_flags()
    # Flags of the recipe before its name would be the launcher's, and the other way round.
    assert ("--use_cpu" in flags) == (not gpus(args))
    assert ("--bf16" in flags) == args.use_deepspeed


def test_docs_name_every_file_and_no_other():
    of_docs, of_readme = (set(re.findall(r"configs/(\w+)\.yaml", t)) for t in (DOCS, README))
    commands = set(re.findall(r"configs/(\w+)\.yaml", " ".join(COMMANDS)))
    assert set(NAMES) == of_docs == commands
    assert of_readme <= set(NAMES)


def test_multi_gpu_is_cpu_two_but_for_the_precision():
    """Therefore the run of `cpu_two` below stands for both."""
    one, other = (vars(parse(name, "--mixed_precision", "no")) for name in ("multi_gpu", "cpu_two"))
    assert one.pop("config_file") != other.pop("config_file")
    assert one == other


def test_flags_of_the_launcher_override_the_file():
    layer = ("--fsdp_transformer_layer_cls_to_wrap", "ViTLayer")
    args = parse("fsdp2", "--num_processes", "8", "--mixed_precision", "no", *layer)
    assert (args.num_processes, args.mixed_precision) == (8, "no")
    assert args.fsdp_transformer_layer_cls_to_wrap == "ViTLayer"
    assert parse("one_gpu", "--gpu_ids", "3").gpu_ids == "3"


# ---- What the workers get -----------------------------------------------------------------------


def test_one_gpu_hides_the_others(worker_environment):
    environment = worker_environment("one_gpu")
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_machines_meet_at_the_address_of_the_first():
    args = parse("multi_node", "--machine_rank", "1", "--main_process_ip", "10.0.0.1")
    prepare_multi_gpu_env(args)  # Puts what torchrun takes into its argument.
    assert args.rdzv_endpoint == "10.0.0.1:29500"
    assert args.rdzv_backend == "static"
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)


def test_fsdp2_plugin(worker_environment):
    worker_environment("fsdp2")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["BertLayer"]
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading is False


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_plugin_leaves_the_rest_to_the_trainer(worker_environment, stage):
    environment = worker_environment(f"zero{stage}")
    plugin = DeepSpeedPlugin()
    zero = plugin.deepspeed_config["zero_optimization"]
    assert zero["stage"] == stage
    assert zero["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)
    sizes = {"train_batch_size", "train_micro_batch_size_per_gpu"}
    for key in (*sizes, "gradient_accumulation_steps", "gradient_clipping"):
        assert plugin.deepspeed_config[key] == "auto"
    # TrainingArguments sets the precision; that of the file alone would contradict them.
    plugin.set_mixed_precision(environment["ACCELERATE_MIXED_PRECISION"])
    assert plugin.deepspeed_config["bf16"] == plugin.deepspeed_config["fp16"] == {"enabled": False}


# ---- Precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "launcher", "cast", "weights", "head"),
    [
        (["--bf16"], "no", False, torch.float32, torch.bfloat16),
        ([], "bf16", False, torch.float32, torch.bfloat16),
        ([], "no", True, torch.bfloat16, torch.bfloat16),  # As DeepSpeed keeps them.
    ],
    ids=["argument", "launcher", "cast"],
)
def test_the_loss_is_computed_in_float32(
    run, files, monkeypatch, flags, launcher, cast, weights, head
):
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    seen, at_the_end = {"head": set(), "margin": set()}, {}

    @register_loss("spy", kind="neutral", formula="-log(p)", reference="nobody")
    def spy(m):
        seen["margin"].add(m.dtype)
        return -logsigmoid(m), -torch.sigmoid(-m)

    class Trainer(glue.LossTrainer):
        def __init__(self, model, **kwargs):
            if cast:
                model.to(weights)
            model.classifier.register_forward_hook(
                lambda module, inputs, logits: seen["head"].add(logits.dtype)
            )
            super().__init__(model=model, **kwargs)

        def create_model_card(self, *args, **kwargs):
            at_the_end.update({what: {*dtypes} for what, dtypes in seen.items()})
            super().create_model_card(*args, **kwargs)  # It draws the loss in float64.

    monkeypatch.setattr(glue, "LossTrainer", Trainer)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    _, out = run(*files, *flags, "--loss", "spy", "--logging_steps", "1")
    assert at_the_end == {"head": {head}, "margin": {torch.float32}}
    state = json.loads((out / "trainer_state.json").read_text())
    logged = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(logged) == 2
    assert all(map(math.isfinite, logged))
    saved = AutoModelForSequenceClassification.from_pretrained(out, dtype="auto")
    assert saved.dtype == weights


# ---- As users launch them, on the CPU -----------------------------------------------------------

NO_DEEPSPEED = importlib.util.find_spec("deepspeed") is None
needs_deepspeed = pytest.mark.skipif(NO_DEEPSPEED, reason="deepspeed is not installed")

# Processes, and what a recipe is told to run on the CPU. DeepSpeed does not start under --use_cpu.
ON_CPU = {
    "cpu_two": (2, ["--use_cpu"]),
    "multi_node": (2, ["--use_cpu", "--save_on_each_node", "true"]),
    "fsdp2": (2, []),
    "zero2": (2, ["--ddp_backend", "gloo"]),
    "zero3": (2, ["--ddp_backend", "gloo"]),
}


@pytest.fixture(scope="module")
def training(tiny, tmp_path_factory):
    """Arguments of a training that ends with the same weights, however its batches are cut."""
    folder = tmp_path_factory.mktemp("data")
    return [
        *("--train_file", write(folder / "train.csv", rows(128, 0))),
        *("--validation_file", write(folder / "validation.csv", rows(64, 1))),
        *("--model_name_or_path", tiny, "--loss", "strict_l", "--output_dir", "out"),
        *("--num_train_epochs", "2", "--train_sampling_strategy", "random"),
        *("--learning_rate", "1e-3"),
    ]


def state_of(folder):
    # A key bias does not change attention: Adam makes steps of its rounding noise.
    weights = AutoModelForSequenceClassification.from_pretrained(folder / "out").state_dict()
    return {key: value for key, value in weights.items() if not key.endswith("key.bias")}


@pytest.fixture(scope="module")
def in_one_process(training, tmp_path_factory):
    """Weights and results of a batch of 16 without a launcher."""
    folder = tmp_path_factory.mktemp("one")
    batch = ["--per_device_train_batch_size", "16", "--use_cpu", "--disable_tqdm", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "matplotlib.style", None)  # Without pictures.
        glue.main([*training, *batch])
    return folder, state_of(folder), result_of(folder)


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])


def disks(name, folder):
    """The working folder of every machine: without a shared disk, if there are several."""
    machines = load_config_from_file(path(name)).num_machines
    return [folder / f"disk{rank}" for rank in range(machines)] if machines > 1 else [folder]


def launch_all(name, processes, folder, arguments):
    """Starts what a user starts, on every machine, all of which are this one."""
    machines = load_config_from_file(path(name)).num_machines
    port = free_port() if machines > 1 else "0"
    script = [str(RECIPES / "glue.py")]
    if name == "fsdp2":
        (folder / "cpu_for_gpu.py").write_text(CPU_FOR_GPU)
        script.insert(0, "cpu_for_gpu.py")
    flags = ["--mixed_precision", "no", "--num_processes", str(processes)]
    flags += ["--main_process_port", port]
    started = []
    for rank in range(machines):
        if machines > 1:
            where = ["--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
        else:
            where = []
        command = [*ACCELERATE, "--config_file", path(name), *flags, *where, *script, *arguments]
        disk = disks(name, folder)[rank]
        disk.mkdir(exist_ok=True)
        with open(folder / f"log{rank}", "w") as log:
            process = subprocess.Popen(command, cwd=disk, stdout=log, stderr=subprocess.STDOUT)
        started.append((process, folder / f"log{rank}"))
    try:
        for process, log in started:
            assert process.wait(timeout=600) == 0, log.read_text()[-5000:]
    finally:
        for process, _ in started:
            process.terminate()
    return started[0][1].read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_deepspeed if name.startswith("zero") else ())
        for name in NAMES
        # On the CPU these are `cpu_two` (see above), and one process without a launcher.
        if name not in ("multi_gpu", "one_gpu")
    ],
)
def test_a_file_gives_the_result_of_one_process(training, in_one_process, name, tmp_path):
    processes, flags = ON_CPU[name]
    micro = ["--per_device_train_batch_size", str(8 // processes)]
    arguments = [*training, *flags, *micro, "--gradient_accumulation_steps", "2"]

    finished, weights, expected = in_one_process
    if name == "multi_node":  # A finished, longer run lies on every disk, and is replaced there.
        for disk in disks(name, tmp_path):
            shutil.copytree(finished / "out", disk / "out")
            (disk / "out/checkpoint-16").rename(disk / "out/checkpoint-48")
            (disk / "out/model.safetensors").write_bytes(b"of that run")

    def check():
        for disk in disks(name, tmp_path):
            result = result_of(disk)
            assert result["training"]["world_size"] == processes
            assert result["training"]["batch_size"] == 16
            assert result["training"]["global_step"] == 16
            last = max(int(p.name.split("-")[1]) for p in (disk / "out").glob("checkpoint-*"))
            assert last == 16
            validation = expected["metrics"]["validation"]
            assert result["metrics"]["validation"] == pytest.approx(validation, rel=1e-5)
            state = state_of(disk)
            assert state.keys() == weights.keys()
            for key, weight in weights.items():
                torch.testing.assert_close(state[key], weight, rtol=1e-4, atol=1e-6)

    shown = launch_all(name, processes, tmp_path, arguments)
    assert shown.count("Loss    ") == 1
    assert ("(replaces the run there)" in shown) == (name == "multi_node")
    check()
    # In one process, resuming is tested with every recipe; with DDP, by `multi_node`.
    if name == "cpu_two":
        return
    for disk in disks(name, tmp_path):
        shutil.rmtree(disk / "out" / "checkpoint-16")
        for lost in ("result.json", "model.safetensors"):
            (disk / "out" / lost).unlink()
    resume = [*arguments, "--resume_from_checkpoint", "true"]
    assert "from checkpoint-8" in launch_all(name, processes, tmp_path, resume)
    check()
