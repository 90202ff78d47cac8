"""What a comparison found, in words and formatted numbers: what every form of its report says."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_losses.compare.power import describe_design
from hf_losses.metrics.direction import lower_is_better

NOTHING = "–"
# Columns that hold words; the others hold numbers.
WORDS = ("loss", "verdict", "stage", "status", "reason")
# Title and note.
STAGES = {
    "main": ("Losses", ""),
    "screen": (
        "Screening",
        "These seeds only chose which losses were confirmed. The best of many look better than "
        "they are, so nothing is tested here.",
    ),
    "confirm": ("Confirmation", "Runs on fresh seeds, which had no part in the choice."),
}
COLUMNS = (
    "The difference is to the baseline with the same seed, and positive where the loss is better; "
    "its interval is a 95 % BCa bootstrap, shown from five seeds on and a little too narrow with "
    "few (with ten it holds the true mean in 91 % of comparisons). p is that of a sign-flip test, "
    "and Holm's correction "
    "allows for the number of losses. P(better) is the share of seeds with a better value. Steps "
    "and seconds of training are medians, until a run reaches what the baseline reaches at its "
    "best on the validation set; in brackets, how many runs get there. NLL and ECE, the expected "
    "calibration error, are means on the compared set. A tie is no proof that two losses are "
    "equal: the interval says which differences remain possible."
)


def view_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the table and the report say.

    Args:
        results: With `statistics`.

    Returns:
        Text by where it stands: `title`, `lead`, `found` and `design` (sentences in which names
        stand in backquotes), `stages` with their tables, `failed`, `tuned`, `command`, `versions`,
        `hardware`. A table is a list of rows, text by column.
    """
    plan, stages = results["plan"], results["statistics"]["stages"]
    digits = _digits(results)
    metric = results["metric"]
    others = len(plan["losses"]) - 1
    task = results["task"] or Path(plan["script"]).stem
    seeds = f"{plan['seeds']} seeds"
    if plan["screen"]:
        seeds = f"{plan['screen']} seeds to choose {plan['top']}, {plan['confirm']} to test them"
    direction = "lower" if plan["lower_is_better"] else "higher"
    return {
        "title": f"{task}: {others} loss{'es' * (others > 1)} against {plan['baseline']}",
        "lead": [
            f"model `{results['model'] or 'not told'}`",
            f"{metric['name']} on the {metric['set']} set ({direction} is better)"
            if metric
            else "no run has finished",
            seeds,
        ],
        "found": _found(results),
        "design": _design(results, digits),
        "stages": [
            {
                "title": STAGES[stage["stage"]][0],
                "note": STAGES[stage["stage"]][1],
                "rows": _rows(results, stage, digits),
                "seeds": [
                    {"seed": seed}
                    | {
                        entry["loss"]: "failed"
                        if seed in entry["failed"]
                        else _text(entry["values"].get(seed), digits)
                        for entry in stage["losses"]
                    }
                    for seed in map(str, stage["seeds"])
                ],
            }
            for stage in stages
        ],
        "failed": [
            {key: str(run[key]) for key in ("loss", "stage", "seed", "status", "reason")}
            for run in results["runs"]
            if run["status"] in ("failed", "diverged")
        ],
        "tuned": [
            {
                "loss": loss,
                **{name: f"{value:.4g}" for name, value in found["parameters"].items()},
                "validation": _text(found["value"], digits),
            }
            for loss, found in results["tuned"].items()
        ],
        "command": _command(plan, metric),
        "versions": ", ".join(f"{name} {value}" for name, value in results["versions"].items()),
        "hardware": _hardware(results),
    }


def _found(results: Mapping[str, Any]) -> list[str]:
    """What was found, in sentences; names of losses stand in backquotes."""
    if not any(run["status"] == "finished" for run in results["runs"]):
        return ["No run has finished, so nothing was found."]
    tested = [stage for stage in results["statistics"]["stages"] if stage["tested"]]
    if not tested:
        return ["Nothing is tested yet."]
    baseline = f"`{results['plan']['baseline']}`"
    by_verdict: dict[str, list[str]] = {}
    for entry in tested[0]["losses"]:
        if entry["comparison"]:
            by_verdict.setdefault(entry["comparison"]["verdict"], []).append(f"`{entry['loss']}`")
    found = []
    for verdict in ("better", "worse"):
        if losses := by_verdict.get(verdict):
            are = "are" if len(losses) > 1 else "is"
            found.append(f"{_listed(losses)} {are} {verdict} than {baseline}.")
    if losses := by_verdict.get("tie"):
        who = f"{_listed(losses)} cannot"
        if not found:
            complete = " that has all its seeds" if "incomplete" in by_verdict else ""
            who = f"No loss{complete} can"
        found.append(f"{who} be told from {baseline} with these seeds.")
    if losses := by_verdict.get("incomplete"):
        found.append(f"Not judged, since runs are missing: {_listed(losses)}.")
    return found


def _design(results: Mapping[str, Any], digits: str) -> list[str]:
    """What the design can show."""
    plan, given = results["plan"], results["statistics"]
    comparisons = plan["top"] or len(plan["losses"]) - 1
    sentences = [describe_design(comparisons, plan["confirm"] or plan["seeds"])]
    for stage in given["stages"]:
        if stage["tested"] and stage["detectable_difference"] is not None:
            sentences.append(
                "By the spread of these runs, a true difference of "
                f"{_text(stage['detectable_difference'], digits)} is found {given['power']:.0%} "
                "of the time, and larger ones more often."
            )
    return sentences


def _rows(
    results: Mapping[str, Any], stage: Mapping[str, Any], digits: str
) -> list[dict[str, str]]:
    """The table of a stage: text by column, without the columns that hold nothing."""
    metric = (results["metric"] or {}).get("name", "metric")
    rows = []
    for entry in stage["losses"]:
        found, time = entry["comparison"] or {}, entry["time_to_baseline"] or {}
        sd = entry["sd"]
        low, high = found.get("interval") or (None, None)
        limits = (
            "" if low is None else f" [{_text(low, '+' + digits)}, {_text(high, '+' + digits)}]"
        )
        reached = f" ({time['reached']}/{time['runs']})" if time else ""
        row = {
            "loss": entry["loss"],
            "verdict": _verdict(entry, stage) if stage["tested"] else NOTHING,
            f"{metric} ± sd": _text(entry["mean"], digits)
            + ("" if sd is None else f" ± {_text(sd, digits)}"),
            "difference [95 % interval]": _text(found.get("difference"), "+" + digits) + limits,
            "p": _p(found.get("p")),
            "p (Holm)": _p(found.get("p_holm")),
            "P(better)": _text(found.get("probability_better"), ".2f"),
            "steps": _text(time.get("steps"), "g") + reached,
            "seconds": _text(time.get("seconds"), ".1f"),
            "NLL": _text(entry["cross_entropy"], ".4f"),
            "ECE": _text(entry["ece"], ".4f"),
        }
        rows.append(row)
    kept = [column for column in rows[0] if any(row[column] != NOTHING for row in rows)]
    return [{column: row[column] for column in kept} for row in rows]


def _verdict(entry: Mapping[str, Any], stage: Mapping[str, Any]) -> str:
    """The verdict; of what lacks seeds, which and why."""
    lacks = [f"{len(entry[key])} {key}" for key in ("failed", "missing") if entry[key]]
    of_seeds = f" of {len(stage['seeds'])} seeds" if lacks else ""
    if entry["comparison"] is None:
        return "baseline" + (f": {', '.join(lacks)}{of_seeds}" if lacks else "")
    verdict = str(entry["comparison"]["verdict"])
    if verdict != "incomplete":
        return verdict
    return f"incomplete: {', '.join(lacks) + of_seeds if lacks else 'the baseline lacks seeds'}"


def _command(plan: Mapping[str, Any], metric: Mapping[str, str] | None) -> str:
    """The command that makes the same comparison; the folder is any."""
    words = ["hf-losses", "compare", "--losses", *plan["losses"], "--baseline", plan["baseline"]]
    for name in ("seeds", "screen", "confirm", "top", "metric"):
        if plan[name] is not None:
            words += [f"--{name}", str(plan[name])]
    if metric and plan["lower_is_better"] != lower_is_better(metric["name"]):
        words.append("--lower_is_better" if plan["lower_is_better"] else "--no-lower_is_better")
    if plan["tune"]:
        ranges = [f"{name}={low!r}:{high!r}" for name, (low, high) in plan["tune"].items()]
        words += ["--tune", *ranges, "--trials", str(plan["trials"])]
    if plan["launcher"]:
        words += ["--launcher", shlex.join(plan["launcher"])]
    words += ["--output_dir", "FOLDER", "--", plan["script"], *plan["arguments"]]
    return shlex.join(words)


def _hardware(results: Mapping[str, Any]) -> str:
    given = results["hardware"]
    parts = [str(given["gpu"])] if given.get("gpu") else []
    if given.get("cpu_count"):
        parts.append(f"{given['cpu_count']} CPU cores")
    text = ", ".join(parts)
    if not results.get("same_everywhere", True):
        text += "; runs differ in versions or hardware, and these are those of the first"
    return text.removeprefix("; ")


def _digits(results: Mapping[str, Any]) -> str:
    """How values of the metric are written: four decimals up to 1, fewer for large ones."""
    values = [run["value"] for run in results["runs"] if run["value"] is not None]
    largest = max(map(abs, values), default=1) or 1
    return f"z.{max(0, 4 - math.ceil(math.log10(largest)))}f"  # z: a zero has no sign.


def _text(value: float | None, style: str) -> str:
    return NOTHING if value is None else f"{value:{style}}".replace("-", "−")


def _p(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else _text(value, ".3g")


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
