"""`hf-losses compare --cluster`: the same results on two nodes of a Ray cluster, whatever dies."""

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from comparing import refused, runs_still, wait_for

import hf_losses
from hf_losses.cli.main import main
from hf_losses.compare.engines import nodes, task
from hf_losses.compare.plan import make_plan

ROOT = Path(hf_losses.__file__).parents[1]
SCRIPT = str(Path(__file__).with_name("cluster_script.py"))
LOSSES = ["cross_entropy", "strict_l"]


def command(folder, *flags, losses=LOSSES, seeds=2, script=SCRIPT, script_flags=()):
    """The command line of a comparison, after `hf-losses`."""
    script_flags = script_flags or ("--starts", f"{folder}.starts")
    return [
        *("compare", "--losses", *losses, "--seeds", str(seeds), *flags),
        *("--output_dir", str(folder), "--", script, *script_flags),
    ]


def results(folder):
    """The results without run times and without what only names the command."""
    comparison = json.loads((folder / "results.json").read_text())
    del comparison["plan"]["arguments"]
    for run in comparison["runs"]:
        del run["wall_seconds"]
    return comparison


def starts(folder):
    """Run, process and output folder of every start of the script."""
    path = Path(f"{folder}.starts")
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def records(folder):
    return list(folder.glob("runs/*/seed-*.json"))


def start(arguments):
    """Starts `hf-losses` with these arguments as a separate process."""
    return subprocess.Popen(
        [sys.executable, "-m", "hf_losses", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


# ---- What a node must have -----------------------------------------------------------------------


@pytest.fixture
def needs(tmp_path, monkeypatch):
    """Needs that this machine meets, and that see the comparison's folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text("abc")
    (tmp_path / "script.py").write_text("print(1)")
    (tmp_path / "mark").write_text("12")
    return nodes.Needs(
        version=hf_losses.__version__,
        directory=str(tmp_path),
        script="script.py",
        script_hash=nodes.file_hash("script.py"),
        sizes=nodes.local_sizes(["data", "data/train.tsv", "0.1", "", "no file"]),
        program=Path(sys.executable).name,
        mark=str(tmp_path / "mark"),
        mark_text="12",
    )


def test_a_node_with_everything_is_taken(needs):
    assert needs.sizes == {"data": None, "data/train.tsv": 3}
    assert nodes.check_node(needs) == ("", True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "9.9"}, f"has hf_losses {hf_losses.__version__}, not 9.9 as here"),
        ({"directory": "/no/such/folder"}, "lacks the working directory /no/such/folder, which"),
        ({"script": "train.py"}, "lacks the script {}/train.py"),
        ({"script_hash": "0"}, "has another version of the script {}/script.py"),
        ({"sizes": {"data/test.tsv": 4}}, "lacks {}/data/test.tsv"),
        ({"sizes": {"data/train.tsv": 4}}, "another version of {}/data/train.tsv, of 3 bytes"),
        ({"program": "acelerate"}, "cannot start the script: there is no program 'acelerate'"),
    ],
)
def test_what_a_node_lacks_is_named(needs, tmp_path, change, says):
    lacking, shared = nodes.check_node(replace(needs, **change))
    assert says.format(tmp_path) in lacking
    assert shared


def test_a_node_without_the_package_is_named(needs, tmp_path, monkeypatch):
    (tmp_path / "hf_losses.py").write_text("import no_such_package")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    lacking, _ = nodes.check_node(needs)
    assert lacking.startswith("cannot import hf_losses (ModuleNotFoundError: No module named 'no_")


def test_another_folder_of_the_same_name_is_not_shared(needs):
    assert nodes.check_node(replace(needs, mark_text="13")) == ("", False)
    assert nodes.check_node(replace(needs, mark="/no/such/file")) == ("", False)


def test_the_result_returns_even_if_other_files_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(task, "MOST", 20)
    (tmp_path / "sub").mkdir()
    for name, size in {"result.json": 12, "sub/small": 5, "large": 10}.items():
        (tmp_path / name).write_text("x" * size)
    files, left_out = task.pack(tmp_path)
    assert {name: len(content) for name, content in files.items()} == {
        "result.json": 12,
        "sub/small": 5,
    }
    assert left_out == ["large"]
    assert task.pack(tmp_path / "missing") == ({}, [])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--cpus_per_run", "2"), "--cpus_per_run and --gpus_per_run are for --cluster"),
        (("--cluster", "auto", "--cpus_per_run", "0"), "--cpus_per_run must be at least 1, got 0"),
        (("--cluster", "auto", "--gpus_per_run", "1.5"), "or less than 1, got 1.5"),
        (("--cluster", "auto", "--gpus_per_run", "-1"), "or less than 1, got -1"),
    ],
)
def test_flags_that_do_not_fit_a_cluster(tmp_path, capfd, flags, says):
    assert says in refused(command(tmp_path / "x", *flags), capfd)
    assert not (tmp_path / "x").exists()


def test_ray_is_an_extra(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(command(tmp_path / "x", "--cluster", "auto"), capfd)
    assert "--cluster needs Ray: pip install 'hf-losses[cluster]'" in message


# ---- Two nodes -----------------------------------------------------------------------------------


def two_nodes(head_cpus=1, **options):
    """A cluster of two nodes on this machine: the head and another one."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options |= {"include_dashboard": False, "num_cpus": head_cpus}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    cluster.add_node(num_cpus=1)
    return cluster


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = two_nodes()
        yield cluster
        cluster.shutdown()


def on_nodes(cluster, *flags):
    return ("--cluster", cluster.address, *flags)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The results of the same comparison without a cluster, with one core for each run."""
    folder = tmp_path_factory.mktemp("local") / "x"
    flags = ["--starts", f"{folder}.starts", "--fail", "strict_l:2"]
    assert main(command(folder, "--jobs", str(os.cpu_count()), script_flags=flags)) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared disk", "no shared disk"])
def test_the_results_are_those_of_this_machine(
    cluster, local, tmp_path, monkeypatch, capfd, shared
):
    folder = tmp_path / "x"
    if not shared:  # The nodes find other words in the file than this machine says it wrote.
        whole = nodes.Needs
        monkeypatch.setattr(nodes, "Needs", lambda **needs: whole(**needs | {"mark_text": "?"}))
    flags = ["--starts", f"{folder}.starts", "--fail", "strict_l:2"]
    assert main(command(folder, *on_nodes(cluster), script_flags=flags)) == 0
    assert results(folder) == results(local)
    assert [run["status"] for run in results(folder)["runs"]].count("failed") == 1
    assert len(starts(folder)) == 4  # The script that failed is not started again.
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(local) for path in local.rglob("*") if path.is_file()}
    for name in ("cross_entropy/seed-1.log", "strict_l/seed-2.log"):
        log = (folder / "runs" / name).read_text()
        assert log.splitlines()[0].endswith("begins with OMP_NUM_THREADS=1")
    inside = [Path(path).is_relative_to(folder) for _, _, path in starts(folder)]
    assert inside == [shared] * 4
    assert not any(Path(path).exists() for _, _, path in starts(folder))
    disk = "which share the disk" if shared else "which do not share the disk"
    assert f"Nodes: 2, {disk}. Room for runs at a time: 2 (CPUs" in capfd.readouterr().out


@pytest.mark.slow
def test_several_tasks_go_through_the_same_cluster(cluster, tmp_path):
    values = {}
    for name, flags in {"here": (), "there": on_nodes(cluster)}.items():
        folder = tmp_path / name
        grid = f"starts={folder}.first,{folder}.second"
        words = command(folder, *flags, "--tasks", grid, script_flags=("--fail", "strict_l:2"))
        assert main(words) == 0
        tasks = json.loads((folder / "results.json").read_text())["tasks"].values()
        values[name] = [[run["value"] for run in task["runs"]] for task in tasks]
        assert not [*folder.glob("tasks/*/runs/*/*/model.safetensors")]
    assert values["here"] == values["there"]
    assert [len(of_task) for of_task in values["there"]] == [4, 4]


@pytest.mark.slow
def test_nodes_without_the_package_or_room_are_refused(cluster, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "x"
    message = refused(command(folder, *on_nodes(cluster, "--cpus_per_run", "3")), capfd)
    assert "no node has what a run takes (--cpus_per_run 3, --gpus_per_run 0): " in message
    assert message.count("has CPUs: 1, GPUs: 0") == 2
    assert not folder.exists()
    with monkeypatch.context() as patch:
        patch.setattr(hf_losses, "__version__", "9.9")
        message = refused(command(folder, *on_nodes(cluster)), capfd)
    for node in cluster.list_all_nodes():
        assert f"({node.node_id[:6]}) has hf_losses {hf_losses.__version__}, not 9.9" in message
    assert not folder.exists()  # No run began: the corrected command takes the same folder.
    whole = nodes.Needs
    monkeypatch.setattr(nodes, "Needs", lambda **needs: whole(**needs | {"mark_text": "?"}))
    message = refused(command(folder, *on_nodes(cluster, "--keep_models")), capfd)
    assert "--keep_models needs a disk that all nodes share" in message
    assert "there is no Ray cluster at 127.0.0.1:1 (" in refused(
        command(folder, "--cluster", "127.0.0.1:1"), capfd
    )
    assert "is for Ray's client" in refused(command(folder, "--cluster", "ray://x:10001"), capfd)


@pytest.mark.slow
def test_a_loss_that_the_script_refuses_is_left_out(cluster, tmp_path, capfd):
    folder = tmp_path / "x"
    losses = [*LOSSES, "liberal_exp --wait_for"]
    message = refused(command(folder, *on_nodes(cluster), losses=losses, seeds=3), capfd)
    assert (
        "liberal_exp --wait_for: cluster_script.py: error: argument --wait_for: expected" in message
    )
    assert len(records(folder)) == 6
    assert len([*folder.glob("runs/*/*.log")]) == 6 + 1


def waiting(folder):
    """Flags of a script whose runs wait for a seed's file, and the function that writes it."""
    gate = folder.with_name("gate")

    def go_on(*seeds):
        for seed in seeds:
            gate.with_suffix(f".{seed}").touch()

    return ["--starts", f"{folder}.starts", "--wait_for", str(gate)], go_on


@pytest.mark.slow
def test_interrupted_nothing_goes_on_and_the_same_command_continues(cluster, tmp_path, capfd):
    folder = tmp_path / "x"
    flags, go_on = waiting(folder)
    go_on(1)
    process = start(command(folder, *on_nodes(cluster), script_flags=flags))
    wait_for(lambda: len(records(folder)) == 2 and len(starts(folder)) == 4)
    log = folder / "runs" / "cross_entropy" / "seed-2.log"
    wait_for(lambda: log.exists() and "begins with" in log.read_text())  # While it goes on.
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "The same command continues" in err
    assert "Traceback" not in err
    assert not any(runs_still(int(pid)) for _, pid, _ in starts(folder))
    assert not {".cluster", ".attempts"} & {path.name for path in folder.iterdir()}
    go_on(2)  # Here without a cluster, which the results do not depend on.
    assert main(command(folder, "--jobs", "2", script_flags=flags)) == 0
    assert "2 finished runs are kept from before" in capfd.readouterr().out
    assert len(records(folder)) == 4


# ---- What dies -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_node_that_dies_loses_nothing(cluster, local, tmp_path):
    """Its run begins again on another node; what is left of it ends and leaves no trace."""
    folder = tmp_path / "x"
    flags, go_on = waiting(folder)
    flags += ["--fail", "strict_l:2"]
    mortal = cluster.add_node(num_cpus=2)
    process = start(command(folder, *on_nodes(cluster), script_flags=flags))
    wait_for(lambda: len(starts(folder)) == 4)
    raylet = mortal.all_processes["raylet"][0].process.pid
    lost = [
        int(pid)
        for _, pid, _ in starts(folder)
        if raylet in {parent.pid for parent in psutil.Process(int(pid)).parents()}
    ]
    assert len(lost) == 2
    cluster.remove_node(mortal, allow_graceful=False)
    wait_for(lambda: not any(map(runs_still, lost)))
    go_on(1, 2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, (out, err)
    assert out.count(", since its node died or") == 2
    assert len(starts(folder)) == 4 + 2
    assert results(folder) == results(local)


@pytest.mark.slow
def test_the_head_may_die_and_be_started_again(local, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tmp_path / "x"
    flags, go_on = waiting(folder)
    flags += ["--fail", "strict_l:2"]
    go_on(1)
    first = two_nodes()
    process = start(command(folder, *on_nodes(first), script_flags=flags))
    wait_for(lambda: len(records(folder)) == 2 and len(starts(folder)) == 4)
    before = {path: path.stat().st_mtime_ns for path in records(folder)}
    port = int(first.address.rpartition(":")[2])
    # Its processes by SIGKILL; the other node's are still there until they miss it.
    first.remove_node(first.head_node, allow_graceful=False)
    first.shutdown()
    wait_for(lambda: not any(runs_still(int(pid)) for _, pid, _ in starts(folder)))
    go_on(2)
    second = two_nodes(gcs_server_port=port)
    try:
        out, err = process.communicate(timeout=120)
    finally:
        second.shutdown()
    assert process.returncode == 0, (out, err)
    assert "the head is back; 2 runs start again" in out, (out, err)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(folder) == results(local)


# ---- A recipe ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_recipe_trains_on_a_cluster_as_on_one_machine(cluster, tmp_path, monkeypatch):
    recipe = str(ROOT / "recipes" / "image_classification.py")
    flags = ["--config_overrides", "hidden_size=16,num_hidden_layers=1", "--use_cpu"]
    flags += ["--max_train_samples", "64", "--max_eval_samples", "32", "--max_steps", "2"]
    flags += ["--dataloader_num_workers", "0"]
    options = {"seeds": 1, "script": recipe, "script_flags": flags}
    assert main(command(tmp_path / "x", *on_nodes(cluster), **options)) == 0
    (metrics,) = [r["metrics"] for r in results(tmp_path / "x")["runs"] if r["loss"] == "strict_l"]
    # In this process, which has one thread as the cluster's runs have.
    monkeypatch.syspath_prepend(ROOT / "recipes")
    alone = ["--loss", "strict_l", "--seed", "1", "--output_dir", str(tmp_path / "y")]
    module = importlib.import_module("image_classification")
    module.main([*flags, *alone, "--disable_tqdm", "true"])
    assert metrics == json.loads((tmp_path / "y" / "result.json").read_text())["metrics"]


def test_a_run_has_the_threads_and_gpus_that_it_was_given():
    plan = replace(make_plan(SCRIPT, [], LOSSES, seeds=1), threads=32)
    launched = replace(plan, launcher=["accelerate", "launch"])
    assert task.environment(plan, 0)["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in task.environment(plan, 0.5)
    assert task.environment(launched, 4)["OMP_NUM_THREADS"] == "8"
    assert task.environment(plan, 4)["OMP_NUM_THREADS"] == "32"
