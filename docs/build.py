"""Writes the generated tables, from the registry and from results, and the picture of the curves.

`python docs/build.py` writes; with `--check` it names what is stale and exits 1. A picture is
judged by the digest of its content in its metadata, so another matplotlib does not make it stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from hf_losses import get_spec, list_losses, markdown
from hf_losses.citation import linked
from hf_losses.compare.report.words import steps_to_most
from hf_losses.compare.statistics.speed import TimeToBaseline
from hf_losses.losses.plots import digest, plot_losses
from hf_losses.losses.table import as_markdown
from hf_losses.metrics.tasks import METRICS

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ("docs/losses.svg", "docs/losses.png")
DOCUMENTS = (
    "README.md",
    "docs/compare.md",
    "docs/findings.md",
    "docs/gpu.md",
    "docs/losses.md",
    "docs/results.md",
    "docs/speed.md",
    "docs/swap.md",
    "docs/which_loss.md",
)
RESULTS = ROOT / "results"


def tables() -> dict[str, dict[str, str]]:
    """The generated tables by document and by the name in their markers."""
    fashion = (RESULTS / "fashion_mnist_one_epoch" / "table.md").read_text(encoding="utf-8")
    return {
        "README.md": {"losses_in_short": losses_in_short()},
        "docs/compare.md": {"verdicts": verdicts(), "decided": decided()},
        "docs/findings.md": {
            "which_loss": confirmed("which_loss", "score"),
            "same_rate": confirmed("same_rate", "score"),
            "overall": (RESULTS / "which_loss" / "overall.md").read_text(encoding="utf-8").strip(),
            "label_noise": confirmed("label_noise", "accuracy"),
        },
        "docs/gpu.md": {"gpu": gpu(), "gpu_linear": gpu_linear()},
        "docs/losses.md": {"losses": as_markdown(list_losses())},
        "docs/results.md": {
            "fashion_mnist": fashion.strip(),
            "glue_baseline": glue_baseline(),
            "glue_defaults": glue_defaults(),
            "imbalanced": confirmed("imbalanced", "macro F1"),
            "precision": precision(),
            "precision_time": precision_time(),
            "precision_tags": confirmed("precision", "score"),
            "untuned": confirmed("untuned", "accuracy"),
        },
        "docs/speed.md": {"speed": speed()},
        "docs/swap.md": {
            "official_scripts": official_scripts(),
            "official_tests": official_tests(),
        },
        "docs/which_loss.md": {"which_loss_when": which_loss_when()},
    }


def losses_in_short() -> str:
    """Name, kind and formula of every loss."""
    specs = map(get_spec, list_losses())
    rows = [[f"`{spec.name}`", spec.kind, f"`{spec.full_formula}`"] for spec in specs]
    return markdown.table(["name", "kind", "loss"], rows)


def which_loss_when() -> str:
    """What every loss is for and where it fails, by its record."""
    specs = map(get_spec, list_losses())
    rows = [
        [f"`{spec.name}` ({spec.kind})", linked(spec.use), linked(spec.avoid)] for spec in specs
    ]
    return markdown.table(["loss", "what for", "where it fails"], rows)


def confirmed(group: str, metric: str) -> str:
    """What the comparisons in a folder of `results` confirmed, in their last stage.

    Args:
        group: Name of the folder.
        metric: What readers call the metric of the comparisons.
    """
    header = ["data", "loss", f"{metric} ± sd", "difference [interval]", "p (adj.)", "verdict"]
    header += ["ECE", "steps to 95 %"]
    rows: list[list[str]] = []
    for path in sorted(RESULTS.glob(f"{group}/*/results.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        stage = content["statistics"]["stages"][-1]
        link = f"[{path.parent.name}](../results/{group}/{path.parent.name}/table.md)"
        for entry in stage["losses"]:
            comparison = entry["comparison"]
            cells = ["–", "–", "baseline"]
            if comparison and comparison["interval"]:
                low, high = comparison["interval"]
                limits = f"{comparison['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
                cells = [limits, f"{comparison['p_adjusted']:.2g}", comparison["verdict"]]
            elif comparison:  # A run has failed.
                cells = [f"{comparison['difference']:+.4f}", "–", comparison["verdict"]]
            mean = f"{entry['mean']:.4f} ± {entry['sd']:.4f}"
            ece = "–" if entry["ece"] is None else f"{entry['ece']:.3f}"
            most = entry["time_to_most"]
            steps = steps_to_most(most and TimeToBaseline(**most), comparison is None)
            rows.append([link, f"`{entry['loss']}`", mean, *cells, ece, steps])
    if all(row[-1] == "–" for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return markdown.table(header, rows).replace("-0.", "−0.")


def glue_baseline() -> str:
    """The recipe's scores on GLUE beside published ones."""
    folder = RESULTS / "glue_baseline"
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    published = json.loads((folder / "published.json").read_text(encoding="utf-8"))
    plain = json.loads((folder / "plain_loop.json").read_text(encoding="utf-8"))
    header = ["task", "metric", "MiniLM by the recipe ± sd", "by a plain loop of PyTorch"]
    header += ["learning rate", "rows, epochs"]
    header += [f"[{name}]({model['source']})" for name, model in published.items()]
    rows = []
    for task, entry in content.items():
        for metric, values in entry["metrics"].items():
            if metric not in METRICS[task]:
                continue
            cells = [model.get(task, {}).get(metric) for model in published.values()]
            rows.append(
                [
                    f"`{task}`",
                    metric,
                    f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f}",
                    _by_plain_loop(plain.get(task, {}), metric),
                    f"{entry['learning_rate']:g}",
                    f"{entry['rows']['train']:,}, {entry['epochs']:g}",
                    *("–" if score is None else f"{100 * score:.1f}" for score in cells),
                ]
            )
    return markdown.table(header, rows)


def glue_defaults() -> str:
    """Other settings of the recipe beside its defaults."""
    rows = [
        [
            f"`{task}`, {stored['precision']}",
            stored["metric"],
            setting,
            f"{_mean_sd(entry['scores'], 3)} ({len(entry['scores'])} seeds)",
            _difference(entry, 3) if "difference" in entry else "–",
        ]
        for task, stored in _read("glue_baseline", "defaults.json").items()
        for setting, entry in stored["settings"].items()
    ]
    header = ["task, precision", "metric", "setting", "score ± sd", "difference [95 % interval]"]
    return markdown.table(header, rows)


def precision() -> str:
    """Time and scores in bf16 and float32, and with one thread a run or two."""
    stored = _read("precision", "results.json")
    rows = []
    for way, entry in stored["ways"].items():
        against = f"{way} / {way.replace('bf16', 'float32')}"
        compared = stored["comparisons"].get(against)
        rows.append(
            [
                way + (", two runs at a time" if "1 thread" in way else ""),
                f"{median(entry['seconds_per_run']):.0f}",
                _mean_sd(entry["accuracy"], 4),
                _difference(compared["accuracy"], 4) if compared else "–",
                _mean_sd(entry["cross_entropy"], 4),
                _difference(compared["cross_entropy"], 4) if compared else "–",
            ]
        )
    to_float32 = "difference to float32 [95 % interval]"
    head = ["way", "seconds a run", "accuracy ± sd", to_float32, "NLL ± sd", to_float32]
    return markdown.table(head, rows)


def precision_time() -> str:
    """Time of a training that tags words, in bf16 and float32."""
    rows = []
    for way, entry in _read("precision", "wnut_17", "time.json")["ways"].items():
        seconds = entry["seconds_per_run"]
        every = ", ".join(f"{one:.1f}" for one in seconds)
        rows.append([f"{way}, two runs at a time", f"{median(seconds):.1f}", every])
    return markdown.table(
        ["way", "seconds a run", "by pair of seeds"], rows, numbers=["seconds a run"]
    )


def _read(*parts: str) -> Any:
    return json.loads(RESULTS.joinpath(*parts).read_text(encoding="utf-8"))


def _mean_sd(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def _difference(entry: dict[str, Any], digits: int) -> str:
    low, high = entry["interval"]
    text = f"{entry['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return text.replace("-", "−")


def _by_plain_loop(entry: dict[str, Any], metric: str) -> str:
    if entry.get("metric") != metric:
        return "–"
    cells = []
    for precision, scores in sorted(entry["scores"].items()):
        values = [100 * value for _, value in sorted(scores.items())]
        if len(values) < 3:
            seeds = f"seed{'s' * (len(values) > 1)} {', '.join(sorted(scores))}"
            text = ", ".join(f"{value:.1f}" for value in values)
        else:
            seeds = f"{len(values)} seeds"
            text = f"{fmean(values):.1f} ± {stdev(values):.1f}"
        cells.append(f"{text} ({precision}, {seeds})")
    return "; ".join(cells)


def verdicts() -> str:
    """The highest rates of false verdicts in each group of simulated comparisons."""
    groups = {
        "one look": "",
        "seeds added as the report advises, up to 3 looks": "added as advised",
        "seeds added one by one, up to 8 looks": "added one by one",
        "skewed differences, skewness 1.0": "skewness 1.0",
        "skewed differences, skewness 1.75": "skewness 1.75",
        "skewed differences, skewness 2.0": "skewness 2.0",
        "one run in ten of the loss alone fails": "one run in ten fails",
    }
    kinds = ("false_different", "false_equivalent", "naive")
    highest: dict[str, dict[str, float]] = {title: {} for title in groups}
    for name, rates in _simulated().items():
        title = next((title for title, part in groups.items() if part and part in name), "one look")
        for kind in kinds:
            if kind in rates:
                highest[title][kind] = max(highest[title].get(kind, 0.0), rates[kind])
    rows = [
        [title, *(f"{rates[kind]:.1%}" if kind in rates else "–" for kind in kinds)]
        for title, rates in highest.items()
    ]
    header = ["simulated", "false better or worse", "false equivalent", "with 5 % at every look"]
    return markdown.table(header, rows, numbers=header[1:])


def decided() -> str:
    """How often simulated comparisons decide, by true difference and number of seeds."""
    rows: dict[str, list[str]] = {}
    counts: dict[str, None] = {}
    for name, rates in _simulated().items():
        kind, *parts = name.split("; ")
        if kind == "decided":
            difference = parts[0].removeprefix("true difference ")
            verdict = "equivalent" if difference == "0.0 sd" else "better"
            counts[parts[1]] = None
            rows.setdefault(difference, [difference, verdict]).append(f"{rates[verdict]:.0%}")
    header = ["true difference", "verdict", *counts]
    return markdown.table(header, list(rows.values()), numbers=list(counts))


def _simulated() -> dict[str, dict[str, float]]:
    path = RESULTS / "verdicts" / "results.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["conditions"])


def speed() -> str:
    """Time and peak memory of the fused paths relative to the first peer of each case."""
    content = json.loads((RESULTS / "benchmarks" / "losses.json").read_text(encoding="utf-8"))
    hardware, versions, cases = content["hardware"], content["versions"], content["cases"]
    shapes = {case: entry for case, entry in cases.items() if "warm" in entry}
    large = {case: entry for case, entry in shapes.items() if "peak_bytes" in entry}
    counted = {
        case: entry["instructions"] for case, entry in cases.items() if "instructions" in entry
    }
    blocks = [
        f"Measured on {hardware['cpu']}, {hardware['threads']} threads, torch {versions['torch']}: "
        "forward and backward of the mean loss, medians, relative to `F.cross_entropy`; "
        "default allocator (warm allocator).",
        _matrix("time", shapes, _times),
        _matrix("peak memory", large, _peaks),
    ]
    header, rows = ["whole layers and steps", "time [quartiles]", "peak memory"], []
    for case, entry in cases.items():
        if case in shapes:
            continue
        peaks = entry.get("peak_bytes", {})
        first = next(iter(entry["default"]))
        for name, peer in entry["default"].items():
            low, high = peer["quartiles"]
            ratio = f"{peer['ratio']:.2f} [{low:.2f}, {high:.2f}]"
            peak = f"{peaks[name] / peaks[first]:.2f}" if name in peaks else "–"
            rows.append([f"{case}: {name}", ratio, peak])
    blocks.append(markdown.table(header, rows, numbers=header[1:]))
    for case, peers in counted.items():
        figures = ", ".join(f"{name} {number:,}" for name, number in peers.items())
        blocks.append(f"Instructions of one step at {case} (callgrind, one thread): {figures}.")
    return "\n\n".join(blocks)


def gpu() -> str:
    """Time and peak memory of losses, last layers and training steps on every GPU measured."""
    blocks = []
    for path in sorted((RESULTS / "benchmarks").glob("gpu_nvidia*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        versions = content["versions"]
        rows = []
        for case, ways in content["cases"].items():
            names = dict.fromkeys(name for peers in ways.values() for name in peers)
            for name in filter(_is_shown_of_gpu, names):
                cells = [_of_gpu(ways.get(way, {}).get(name)) for way in GPU_WAYS]
                rows.append([case, name, *cells])
        header = ["case", "peer", *GPU_WAYS.values()]
        blocks.append(
            f"{content['hardware']['gpu']}, driver {content['hardware']['driver']}, torch "
            f"{versions['torch']}, Triton {versions['triton']}, Liger {versions['liger-kernel']}: "
            "medians by CUDA events; peak memory beyond the inputs."
        )
        blocks.append(markdown.table(header, rows, numbers=header[2:]))
    return "\n\n".join(blocks)


GPU_WAYS = {"torch": "PyTorch's operations", "HF_LOSSES_TRITON=1": "kernels"}


def _is_shown_of_gpu(name: str) -> bool:
    """Not every naive formula, nor every loss that takes as long as another."""
    shown = ("F.", "Liger", "linear_loss", "Trainer", "LossTrainer", "SFTTrainer", "LossMixin")
    losses = ("liberal_exp", "liberal_exp, overwriting", "strict_l_full")
    return name in losses or (name.startswith(shown) and not name.startswith("F.linear + s"))


def _of_gpu(peer: dict[str, Any] | str | None) -> str:
    if not isinstance(peer, dict):
        return peer or "–"
    return f"{peer['milliseconds']:.2f} ms, {peer['peak_bytes'] / 1e6:,.0f} MB"


def gpu_linear() -> str:
    """`linear_loss` by the kernels with several numbers of rows per product."""
    rows = []
    for path in sorted((RESULTS / "benchmarks").glob("gpu_tuning_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for name, figure in content["figures"].items():
            if name.startswith("linear "):
                shape, together = name.removeprefix("linear ").split(", ")
                time = f"{figure['microseconds'] / 1e3:.1f} ms"
                rows.append([shape, together, time, f"{figure['peak_bytes'] / 1e6:,.0f} MB"])
    header = ["rows x classes x width", "together, at most", "time", "peak memory"]
    return markdown.table(header, rows, numbers=header[1:])


def _matrix(what: str, cases: dict[str, Any], cell: Callable[..., str]) -> str:
    """A table of peers by cases; losses that do the same work share a row."""
    measured = {name for entry in cases.values() for name in entry["default"]}
    alike = [name for name in list_losses() if name in measured and not get_spec(name).is_full]
    peers = {f"the {len(alike)} sparse losses": alike}
    for entry in cases.values():
        peers |= {name: [name] for name in list(entry["default"])[1:] if name not in alike}
    rows = []
    for title, names in peers.items():
        cells = [cell(entry, names) for entry in cases.values()]
        if any(cells):
            rows.append([title, *(one or "–" for one in cells)])
    return markdown.table([what, *cases], rows, numbers=cases)


def _times(case: dict[str, Any], names: Sequence[str]) -> str:
    default, warm = (
        _range([case[condition][name]["ratio"] for name in names if name in case[condition]])
        for condition in ("default", "warm")
    )
    return default and f"{default} ({warm})"


def _peaks(case: dict[str, Any], names: Sequence[str]) -> str:
    peaks, first = case["peak_bytes"], next(iter(case["default"]))
    return _range([peaks[name] / peaks[first] for name in names if name in peaks])


def _range(values: Sequence[float]) -> str:
    if not values:
        return ""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}–{high}"


def official_scripts() -> str:
    """Which of transformers' own training scripts run with another loss."""
    content = json.loads((RESULTS / "official" / "scripts.json").read_text(encoding="utf-8"))
    scripts: dict[str, list[dict[str, Any]]] = {}
    for run in content["runs"]:
        scripts.setdefault(run["script"], []).append(run)
    of_labels = [runs for runs in scripts.values() if not runs[0]["own"]]
    good = sum(not any(run["wrong"] for run in runs) for runs in of_labels)
    summary = (
        f"transformers {content['versions']['transformers']}: {good} of the {len(of_labels)} "
        "scripts whose loss is one of logits and labels run with every model tried."
    )
    rows = []
    for script, runs in scripts.items():
        cells = {_outcome(run): [] for run in runs}
        for run in runs:
            cells[_outcome(run)].append(run["model"])
        for outcome, models in cells.items():
            rows.append([f"`{script}`", ", ".join(models), outcome])
    return f"{summary}\n\n{markdown.table(['script', 'models', 'outcome'], rows)}"


def _outcome(run: dict[str, Any]) -> str:
    stock, ours = run["stock"], run["ours"]
    if stock["outcome"] != "runs" and ours["outcome"] != "refused":
        outcome = f"does not run without us either: {_text(stock['why'])}"
    elif ours["outcome"] == "runs":
        outcome = f"runs, but {run['wrong']}" if run["wrong"] else "runs"
    elif run["own"]:
        outcome = f"{ours['outcome']}: its loss is {run['own']}"
    else:
        outcome = f"{ours['outcome']}: {_text(ours['why'])}"
    return " ".join([outcome, *(f"({repair})" for repair in run["repairs"])])


def official_tests() -> str:
    """Counts of the trainers' own tests, with and without a trainer of ours, and what differs."""
    content = json.loads((RESULTS / "official" / "tests.json").read_text(encoding="utf-8"))
    kinds = ["passed", "failed", "skipped"]
    rows, different, lacking = [], [], []
    for suite in content["suites"]:
        package = f"{suite['package']} {content['versions'][suite['package']]}"
        for side, title in (("stock", suite["trainer"]), ("ours", suite["ours_is"])):
            counts = [str(suite[side].get(kind, 0)) for kind in kinds]
            rows.append([f"{package}: `{suite['file']}`", f"`{title}`", *counts])
        lacking.append(f"{suite['need_the_hub']} of those that fail with `{suite['trainer']}`")
        for one in suite["differences"]:
            why = one["allowed"] or f"**not meant**: {_text(one['message'])}"
            different.append([f"`{one['test']}`", one["stock"], one["ours"], why])
    blocks = [
        markdown.table(["tests", "trainer", *kinds], rows, numbers=kinds),
        f"{' and '.join(lacking)} ask for what only the Hub has.",
        markdown.table(["differs", "before", "with ours", "because"], different),
    ]
    return "\n\n".join(blocks)


def _text(message: str) -> str:
    return message.replace("|", "\\|").replace("<", "&lt;")


def document(name: str) -> str:
    """A document with the tables as they are now."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for marker, table in tables()[name].items():
        first, last = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        before, begin, rest = text.partition(first)
        _, end, after = rest.partition(last)
        if not (begin and end):
            raise SystemExit(f"{name} must hold {first} and, below it, {last}")
        text = f"{before}{first}\n\n{table}\n\n{last}{after}"
    return text


def stale() -> list[str]:
    """The files that no longer show the registry or the results."""
    shown = digest(list_losses(task="classification")).encode()
    files = [name for name in PICTURES if not _holds(ROOT / name, shown)]
    files += [n for n in DOCUMENTS if (ROOT / n).read_text(encoding="utf-8") != document(n)]
    return files


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and content in path.read_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Writes, or with `--check` compares."""
    parser = argparse.ArgumentParser(description="Generate the tables and the picture.")
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    if parser.parse_args(argv).check:
        files = stale()
        for name in files:
            print(f"stale: {name} (run `make docs`)", file=sys.stderr)
        return int(bool(files))
    for name in PICTURES:
        plot_losses(list_losses(task="classification"), ROOT / name)
    for name in DOCUMENTS:
        (ROOT / name).write_text(document(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
