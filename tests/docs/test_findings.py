"""What `docs/findings.md` and the README say of the comparisons follows from their files."""

import json
import math
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
COUNTS += ["eleven", "twelve"]
LIBERAL = ("gce", "liberal_exp", "dft", "liberal_parabolic", "liberal_circle", "liberal_cosine")
STRICT = ("strict_m", "strict_l", "strict_m_full", "strict_l_full", "strict_m_power")


def read(path):
    return json.loads((ROOT / "results" / path).read_text(encoding="utf-8"))


def entry(path, loss, stage=-1):
    """What a stage of a comparison found for a loss, whose name flags may follow."""
    losses = read(f"{path}/results.json")["statistics"]["stages"][stage]["losses"]
    return next(found for found in losses if found["loss"].split()[0] == loss)


def difference(path, loss, stage=-1):
    return entry(path, loss, stage)["comparison"]["difference"]


def points(path, *losses, stage=-1, sign=1):
    """By how much losses are ahead or, with sign -1, behind, in hundredths."""
    sizes = [100 * sign * difference(path, loss, stage) for loss in losses]
    assert min(sizes) > 0
    texts = [f"{size:.1f}" for size in sizes]
    return texts[0] if len(texts) == 1 else texts


def behind(path, *losses, stage=-1):
    return points(path, *losses, stage=stage, sign=-1)


def ahead(path, loss):
    """On how many seeds a loss is better, as a word."""
    return COUNTS[sum(one > 0 for one in entry(path, loss)["comparison"]["differences"].values())]


def span(values, style, by=1.0):
    return f"{by * min(values):{style}} to {by * max(values):{style}}".replace("-", "−")


def ratio(path, loss):
    return entry(path, loss)["time_to_most"]["ratio"]


def limits(path, loss):
    return entry(path, loss)["time_to_most"]["ratio_interval"]


def more_seeds(path, loss):
    return entry(path, loss)["comparison"]["outlook"]["seeds"]


WNUT, BANKING, SST2 = "which_loss/wnut_17", "which_loss/banking77", "which_loss/sst2"
COLA, CIFAR = "which_loss/cola", "which_loss/cifar10"
LONG_WNUT, LONG_BANKING = "same_rate/wnut_17_6_epochs", "same_rate/banking77_10_epochs"
NOISE_20, NOISE_40 = "label_noise/sst2_0.2", "label_noise/sst2_0.4"


def short_and_long():
    focal = points(WNUT, "focal"), points(BANKING, "focal")
    yield f"by {focal[0]} points of F1 and {focal[1]} points of accuracy"
    lost = behind(LONG_WNUT, "focal"), behind(LONG_BANKING, "focal")
    yield f"undecided on both, {lost[0]} and {lost[1]} points behind"
    both = points(WNUT, "strict_m", "strict_m_full")
    yield f"`strict_m` and `strict_m_full` are better by {both[0]} and {both[1]} points of F1"
    yield f"also in a training of twice the length, by {points(LONG_WNUT, 'strict_m')})"
    twice = [entry(LONG_WNUT, loss)["mean"] for loss in ("cross_entropy", "strict_m", "focal")]
    yield (
        f"to {twice[0]:.2f} on WNUT-17 and `strict_m` from 0.36 to {twice[1]:.2f}, while `focal` "
        f"falls from 0.36 to {twice[2]:.2f}"
    )
    two = ratio(LONG_WNUT, "strict_m"), ratio(LONG_WNUT, "focal")
    yield f"(`strict_m` {two[0]:.2f}, `focal` {two[1]:.2f}, counted in quarters"
    yield f"to {100 * entry(LONG_BANKING, 'cross_entropy')['mean']:.0f} % in ten epochs"


def on_banking77():
    lost = behind(BANKING, "strict_m", "strict_m_full", stage=0)
    yield f"but were {lost[0]} and {lost[1]} behind on banking77, over two seeds"
    of_two = [points(BANKING, loss) for loss in ("focal", "strict_l_full")]
    assert ahead(BANKING, "focal") == ahead(BANKING, "strict_l_full")
    yield (
        f"by {of_two[0]} and {of_two[1]} points of accuracy, each on {ahead(BANKING, 'focal')} of "
        "the twelve seeds"
    )
    screened = [-difference(BANKING, loss, 0) for loss in LIBERAL]
    yield f"The liberal losses but `poly1` were {span(screened, '.0f', 100)} points behind"


def on_wnut_17():
    three = ("focal", "strict_m", "strict_m_full")
    sizes = [points(WNUT, loss) for loss in three]
    assert {ahead(WNUT, loss) for loss in three} == {"twelve"}
    yield f"by {sizes[0]}, {sizes[1]} and {sizes[2]} points of F1, each on all twelve seeds"
    yield f"value in {span([ratio(WNUT, loss) for loss in three], '.2f')} of its steps"
    nll = {loss: f"{entry(WNUT, loss)['cross_entropy']:.2f}" for loss in ("cross_entropy", *three)}
    assert nll["strict_m"] == nll["strict_m_full"]
    yield (
        f"higher with `focal` ({nll['focal']}) than with cross-entropy ({nll['cross_entropy']}), "
        f"and lower with the two others ({nll['strict_m']})"
    )


def on_cola():
    three = ("strict_l", "focal", "strict_l_full")
    sizes, wins = [points(COLA, loss) for loss in three], [ahead(COLA, loss) for loss in three]
    seeds = [more_seeds(COLA, loss) for loss in three]
    yield (
        f"{sizes[0]}, {sizes[1]} and {sizes[2]} points of the Matthews correlation ahead, on "
        f"{wins[0]}, {wins[1]} and {wins[2]} of the twelve seeds: {seeds[0]}, {seeds[1]} and "
        f"{seeds[2]} more seeds"
    )
    yield f"On CoLA ({points(COLA, 'focal')} points ahead) and on the images it is undecided"
    yield f"({span(entry(COLA, 'cross_entropy')['values'].values(), '.2f')}; one of the two"
    first, second = entry(COLA, "cross_entropy", 0)["values"].values()
    yield f"a correlation of {second:.2f}, the other {first:.2f})".replace("-", "−")
    sd = entry(COLA, "cross_entropy")["sd"]
    seed = next(iter(entry(COLA, "cross_entropy", 0)["values"]))
    lost = [(first - entry(COLA, loss, 0)["values"][seed]) / sd for loss in (*STRICT, "focal")]
    yield f"losses and `focal` are {span(lost, '.1f')} standard deviations behind"
    yield f"confirmed are {span([difference(COLA, loss) / sd for loss in three], '.1f')} ahead"
    without = {
        of_loss["loss"]: fmean(
            value for data, value in of_loss["differences"].items() if data != "cola"
        )
        for of_loss in read("which_loss/overall.json")["losses"]
        if of_loss["differences"]
    }
    yield (
        f"losses are {span([without[loss] for loss in STRICT], '.1f')}, and that of `focal` is "
        f"{without['focal']:+.1f}"
    )


def on_images():
    yield (
        f"`poly1` is worse by {behind(CIFAR, 'poly1')} points and `strict_m_power` by "
        f"{behind(CIFAR, 'strict_m_power')}; `focal` is undecided, {behind(CIFAR, 'focal')} points "
        "behind"
    )
    focal, poly1 = limits(CIFAR, "focal"), limits(CIFAR, "poly1")
    least, most = limits(CIFAR, "strict_m_power")
    assert most is None
    misses = 12 - entry(CIFAR, "strict_m_power")["time_to_most"]["reached"]
    yield (
        f"with {focal[0]:.2f} to {focal[1]:.2f} times the steps of cross-entropy to 95 % of the "
        f"latter's best value, and so is `strict_m_power` (lower limit {least:.2f}; "
        f"{COUNTS[misses]} of its twelve runs do not get there); `poly1` is undecided "
        f"({poly1[0]:.2f} to {poly1[1]:.2f}"
    )
    others = [name for name in (*LIBERAL, *STRICT, "focal", "poly1")]
    assert all(difference(CIFAR, name, 0) < 0 for name in others)
    yield f"by {span([-difference(CIFAR, name, 0) for name in others], '.1f', 100)} points. Of"


def on_sst2():
    yield f"On SST-2 `strict_l` is, by {points(SST2, 'strict_l')}, and undecided at the same rate"
    yield f"about {more_seeds('same_rate/sst2', 'strict_l')} more seeds would show such a"
    better = [difference(SST2, loss) for loss in ("focal", "strict_l")]
    yield f"better than cross-entropy on SST-2, by {span(better, '.1f', 100)} points of accuracy"


def with_wrong_labels():
    three = ("gce", "dft", "liberal_exp")
    yield f"by {span([difference(NOISE_40, loss) for loss in three], '.1f', 100)} points: `gce`"
    assert {ahead(NOISE_40, loss) for loss in ("gce", "liberal_exp")} == {"twelve"}
    yield f"every one of the twelve seeds, `dft` on {ahead(NOISE_40, 'dft')}."
    confirmed = [
        run for run in read(f"{NOISE_40}/results.json")["runs"] if run["stage"] == "confirm"
    ]
    right = {
        loss: [
            fmean(counts)
            for counts in zip(
                *(
                    run["predictions"]["classes"]["right"]
                    for run in confirmed
                    if run["loss"] == loss
                ),
                strict=True,
            )
        ]
        for loss in ("cross_entropy", *three)
    }
    negative, positive = right["cross_entropy"]
    yield f"those that are ({span([right[loss][1] - positive for loss in three], '.0f')} of 444)"
    yield f"the others ({span([negative - right[loss][0] for loss in three], '.0f')} of 428)"
    fewer = COUNTS[12 - COUNTS.index(ahead(NOISE_20, "focal"))]
    yield f"by {behind(NOISE_20, 'focal')} points, on {fewer} of twelve seeds"
    two = points(NOISE_20, "liberal_exp", "gce")
    yield f"`liberal_exp` and `gce` are undecided, {two[0]} and {two[1]} points ahead"
    ece = {name: entry(NOISE_20, name)["ece"] for name in ("liberal_exp", "gce", "focal")}
    own = entry(NOISE_20, "cross_entropy")["ece"]
    yield f"is the smallest ({own:.2f}; {span(ece.values(), '.2f')} for the others)"


def over_all():
    content = read("which_loss/overall.json")
    yield f"half a critical difference (Nemenyi, {content['critical_difference']:.1f})"


@pytest.mark.parametrize(
    "claims",
    [
        *(short_and_long, on_banking77, on_wnut_17, on_cola, on_images, on_sst2),
        *(with_wrong_labels, over_all),
    ],
)
def test_the_page_says_what_the_files_say(claims):
    page = " ".join((ROOT / "docs" / "findings.md").read_text(encoding="utf-8").split())
    found = list(claims())
    assert [claim for claim in found if claim not in page] == []
    assert len(set(found)) == len(found) > 0


def test_the_readme_says_what_the_files_say():
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    f1 = [difference(WNUT, loss) for loss in ("focal", "strict_m", "strict_m_full")]
    of_banking = [difference(BANKING, loss) for loss in ("focal", "strict_l_full")]
    claims = [
        f"(by {span(f1, '.0f', 100)} points of F1; with twice the epochs",
        f"`strict_m` by {100 * difference(LONG_WNUT, 'strict_m'):.0f}, `focal` no longer)",
        f"on banking77 (by {100 * of_banking[0]:.0f} and {100 * of_banking[1]:.0f};",
    ]
    assert [claim for claim in claims if claim not in page] == []
    assert all(one > 0 for one in f1)


def test_the_verdicts_behind_what_the_readme_says():
    better = {
        path: {
            found["loss"]
            for found in read(f"{path}/results.json")["statistics"]["stages"][-1]["losses"]
            if found["comparison"] and found["comparison"]["verdict"] == "better"
        }
        for path in (WNUT, BANKING, SST2, COLA, CIFAR, NOISE_20, NOISE_40)
    }
    assert better == {
        WNUT: {"focal", "strict_m", "strict_m_full"},
        BANKING: {"focal", "strict_l_full"},
        SST2: {"strict_l", "focal"},
        COLA: set(),
        CIFAR: set(),
        NOISE_20: set(),
        NOISE_40: {"gce", "dft", "liberal_exp"},
    }
    faster = {
        (path, found["loss"])
        for path in (WNUT, LONG_WNUT, BANKING, LONG_BANKING, SST2, "same_rate/sst2", COLA, CIFAR)
        for found in read(f"{path}/results.json")["statistics"]["stages"][-1]["losses"]
        if found["comparison"] and (limits(path, found["loss"])[1] or math.inf) < 1
    }
    assert faster == {
        *((WNUT, loss) for loss in better[WNUT]),
        *((LONG_WNUT, loss) for loss in ("strict_m", "focal")),
    }
