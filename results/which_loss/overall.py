"""What the comparisons in this folder show together, over all data sets.

    python results/which_loss/overall.py

reads NAME/results.json and writes overall.json, overall.md and over_tasks.png. All losses were
screened on the same seeds, so ranks and mean differences are those of the screening, counted in the
standard deviation that another seed makes to cross_entropy among the confirming seeds. Verdicts and
the speed of learning are those of the losses that were confirmed.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

from hf_losses.compare.report.pictures.over_tasks import draw
from hf_losses.compare.results import Results, finished_trials, read_results
from hf_losses.compare.statistics.summary import Statistics, statistics
from hf_losses.compare.statistics.tasks import OverTasks, over_tasks
from hf_losses.files import write_bytes, write_json
from hf_losses.markdown import table

HERE = Path(__file__).resolve().parent
RATE = "learning_rate"


def screening(results: Results) -> Results:
    """The screening of all losses, as a comparison of its own."""
    runs = [replace(run, stage="main") for run in results.runs if run.stage == "screen"]
    plan = replace(
        results.plan, seeds=results.plan.screen, screen=None, confirm=None, top=None, added=[]
    )
    return replace(results, plan=plan, runs=runs)


def overall(folder: Path) -> tuple[dict[str, Any], OverTasks]:
    """What all comparisons show.

    Args:
        folder: The folder that holds a folder for each.

    Returns:
        The content of `overall.json`, and what the picture shows.
    """
    compared, shown = {}, {}
    for path in sorted(folder.glob("*/results.json")):
        results = read_results(path.parent)
        of_data = statistics(results)
        if not _is_complete(of_data):
            print(f"{path.parent} is left out: it has not ended")
            continue
        compared[path.parent.name], shown[path.parent.name] = results, of_data
    units = {name: _baseline(of_data).sd for name, of_data in shown.items()}
    screened = {name: screening(results) for name, results in compared.items()}
    _, summary = over_tasks(screened, units)
    data = {
        name: {
            "metric": results.metric and results.metric.name,
            "set": results.metric and results.metric.set,
            "model": results.model,
            "baseline": _baseline(shown[name]).mean,
            "sd": units[name],
            "seeds": {"screen": results.plan.screen, "confirm": results.plan.tested_seeds},
        }
        for name, results in compared.items()
    }
    losses = [
        asdict(entry)
        | {"verdicts": _verdicts(entry.loss, shown), "speed": _speed(entry.loss, shown)}
        | _learning_rates(entry.loss, summary.baseline, compared, shown)
        | {"at_edge": _at_edge(entry.loss, shown)}
        | {"leaving_one_out": _leaving_one_out(entry.differences)}
        for entry in summary.losses
    ]
    content = {"baseline": summary.baseline, "data": data, "losses": losses}
    content |= {
        name: getattr(summary, name)
        for name in ("confidence", "resamples", "friedman_p", "critical_difference")
    }
    return content, summary


def _is_complete(of_data: Statistics) -> bool:
    last = of_data.stages[-1] if of_data.stages else None
    return last is not None and last.stage == "confirm" and not any(e.missing for e in last.losses)


def _baseline(of_data: Statistics) -> Any:
    return next(entry for entry in of_data.stages[-1].losses if entry.comparison is None)


def _verdicts(loss: str, shown: dict[str, Statistics]) -> dict[str, str]:
    """The verdict on each data set where the loss was confirmed."""
    return {
        name: entry.comparison.verdict
        for name, of_data in shown.items()
        for entry in of_data.stages[-1].losses
        if entry.loss == loss and entry.comparison
    }


def _speed(loss: str, shown: dict[str, Statistics]) -> dict[str, Any]:
    """Steps to most of the baseline's best value, relative to its own, where confirmed."""
    return {
        name: {
            key: getattr(entry.time_to_most, key)
            for key in ("ratio", "ratio_interval", "reached", "runs")
        }
        for name, of_data in shown.items()
        for entry in of_data.stages[-1].losses
        if entry.loss == loss and entry.comparison and entry.time_to_most
    }


def _learning_rates(
    loss: str, baseline: str, compared: dict[str, Results], shown: dict[str, Statistics]
) -> dict[str, Any]:
    """The tuned learning rates, and their geometric mean relative to the baseline's.

    Left out of the mean is a data set where one of the two lies at the edge of what was tried, or
    where the loss learned nothing: all its trials have one score.
    """
    tuned = {
        name: {key: results.tuned[key].parameters[RATE] for key in (loss, baseline)}
        for name, results in compared.items()
        if loss in results.tuned and baseline in results.tuned
    }
    unknown = {*_at_edge(loss, shown), *_at_edge(baseline, shown)}
    unknown |= {
        name
        for name, results in compared.items()
        if len({trial.mean for trial in finished_trials(results.plan, loss, results.runs)}) == 1
    }
    ratios = [rates[loss] / rates[baseline] for name, rates in tuned.items() if name not in unknown]
    return {
        "learning_rates": {name: rates[loss] for name, rates in tuned.items()},
        "relative_learning_rate": geometric_mean(ratios) if ratios else None,
    }


def _at_edge(loss: str, shown: dict[str, Statistics]) -> list[str]:
    """The data sets on which the best learning rate lies at the edge of those that were tried."""
    return [
        name
        for name, of_data in shown.items()
        if any(tuned.loss == loss and RATE in tuned.at_edge for tuned in of_data.tuned)
    ]


def _leaving_one_out(differences: dict[str, float] | None) -> list[float] | None:
    """The lowest and highest mean difference over all data sets but one."""
    if not differences or len(differences) < 2:
        return None
    others = [
        fmean(value for name, value in differences.items() if name != left_out)
        for left_out in differences
    ]
    return [min(others), max(others)]


def as_markdown(content: dict[str, Any]) -> str:
    """The tables of `overall.md`: differences and ranks, and learning rates."""
    data = list(content["data"])
    rows = []
    for entry in content["losses"]:
        mean, without = "–", "–"
        if entry["difference"] is not None:
            without = " to ".join(map(_signed, entry["leaving_one_out"] or [])) or "–"
            low, high = entry["interval"]
            mean = f"{_signed(entry['difference'])} [{_signed(low)}, {_signed(high)}]"
        cells = []
        for name in data:
            difference = (entry["differences"] or {}).get(name)
            verdict = entry["verdicts"].get(name)
            cells.append(_signed(difference) + (f" **{verdict}**" if verdict else ""))
        rank = "–" if entry["rank"] is None else f"{entry['rank']:.1f}"
        rows.append([f"`{entry['loss']}`", rank, mean, without, *cells])
    header = ["loss", "rank", "mean difference [interval]", "leaving one out", *data]
    tuned = [
        [
            f"`{entry['loss']}`",
            _factor(entry["relative_learning_rate"]),
            *(
                f"{rates[name]:.1e}" + " (edge)" * (name in entry["at_edge"])
                if name in rates
                else "–"
                for name in data
            ),
        ]
        for entry in content["losses"]
        if (rates := entry["learning_rates"])
    ]
    of_rates = ["loss", "relative", *data]
    blocks = [
        f"Differences to `{content['baseline']}` in standard deviations of a seed, on the seeds of "
        "the screening; in bold the verdict on fresh seeds, where the loss was confirmed. The "
        "intervals, at 95 %, speak of other seeds on these data (stratified bootstrap); with few "
        "seeds they are too short, and no verdict rests on them. Leaving one out: the mean "
        "differences over all data sets but one, the lowest to the highest. The ranks differ "
        f"(Friedman, p = {content['friedman_p']:.1e}).",
        table(header, rows, numbers=header[1:]),
        f"Tuned learning rates, and their geometric mean relative to that of "
        f"`{content['baseline']}` over the data where neither is at the edge and the loss learned "
        "something; *edge*: the lowest or highest of those that were tried, beyond which a better "
        "one may lie.",
        table(of_rates, tuned, numbers=of_rates[1:]),
    ]
    return "\n\n".join(blocks) + "\n"


def _factor(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 1) + 0.0:+.1f}".replace("-", "−")


if __name__ == "__main__":
    content, summary = overall(HERE)
    write_json(HERE / "overall.json", content)
    write_bytes(HERE / "overall.md", as_markdown(content).encode())
    draw(summary, HERE)
