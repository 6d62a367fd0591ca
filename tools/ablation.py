"""What each choice of the recipes is worth: short trainings with one change each. Run as `python -m tools.ablation`.

Writes results/ablation.md from the runs in results/studies/ablation/, and those that led to the recipe, in tried/.
"""

import sys

import common
from tools.report import markdown, percent, spread
from tools.storage import RunError, write_file
from tools.studies import finished, gain, train

ABLATION_SEEDS, ABLATION_FLAGS = (0, 1, 2), "--epochs 6 --no-test"
SGD = "--optimizer SGD --max-lr 0.2 --other-lr 0.2 --weight-decay 0.0005"
ABLATION = {  # what a change is -> its flags
    "bn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "filters keep a mean of zero": "--zero-mean",
        "no moving average of the weights": "--ema 0",
        "rates fall by a line": "--power 1",
        "half the rates": "--max-lr 0.02 --other-lr 0.25",
        "twice the rates": "--max-lr 0.08 --other-lr 1",
        "no additions": "--additions ''",
        "additions around 3x3 convolutions only": "--additions 'C2 C4 C6 C8 C9 C10'",
        "ReLU": "--activation ReLU",
        "batches of 64, rates lower by the root of 2": "--batch-size 64 --max-lr 0.028 --other-lr 0.35",
        "batches of 256, rates higher by the root of 2": "--batch-size 256 --max-lr 0.057 --other-lr 0.7",
        "shifts as large in the last epoch as in the first": "--last-crop 4",
        "no cutout": "--cutout 0",
        "widths 16 16 32 32 32 32 24 24 24 24, additions around all but C1, c3 and c7":
            "--widths 16,16,32,32,32,32,24,24,24,24 --additions 'C2 C4 C5 C6 C8 C9 C10'",
        "no shifts": "--crop 0",
        "no flips": "--no-flip",
    },
    "gn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "the rates of bn.py": "--max-lr 0.04 --other-lr 0.5",
        "filters may have any mean": "--no-zero-mean",
        "no dropout": "--dropout 0",
        "2 groups": "--groups 2",
        "8 groups": "--groups 8",
    },
    "ln": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "the rates of bn.py": "--max-lr 0.04 --other-lr 0.5",
        "filters may have any mean": "--no-zero-mean",
        "dropout of 0.05, as GN": "--dropout 0.05",
    },
}
TRIED = [  # what was tried and dropped, its run in results/studies/tried, and the run to compare it with
    ("activation after the addition", "post", "rates-0.04-0.2"),
    ("norm and activation before each convolution, a stream without activations", "pre", "rates-0.02-0.2"),
    ("no activation behind c3 and c7", "linear", "rates-0.02-0.2"),
    ("batches of 64", "batch-64", "rates-0.04-0.2"),
    ("rates of 0.02 and 0.2 instead of 0.04 and 0.2", "rates-0.02-0.2", "rates-0.04-0.2"),
    ("rates of 0.04 and 0.5 instead of 0.04 and 0.2", "rates-0.04-0.5", "rates-0.04-0.2"),
    ("rates of 0.04 and 1 instead of 0.04 and 0.5", "rates-0.04-1", "rates-0.04-0.5"),
    ("momentum of 0.6, rates 0.08 and 0.8", "momentum-0.6", "rates-0.04-0.2"),
    ("more in the second stage: widths 16 16 32 32 32 32 24 24 24 24", "second-stage", "rates-0.02-0.2"),
    ("widths of 24, the last 64", "wide-end", "rates-0.02-0.2"),
    ("widths of 24 in the first two stages, additions around all but C8", "widths-24", "additions"),
    ("shifts of up to 4 pixels instead of 2", "crop-4-20", "crop-2-20"),
    ("widths 16 16 24 24 24 24 24 24 24 80 instead of 16 16 24 24 24 24 32 32 32 32", "wide-end-20", "widths-32-20"),
    ("with rates that fall by the square: peaks of 0.07 and 0.5 instead of 0.04 and 0.5",
     "square-rates-0.07-0.5", "square-8"),
    ("the same: peaks of 0.025 and 0.3", "square-rates-0.025-0.3", "square-8"),
    ("the same: peaks of 0.04 and 1", "square-rates-0.04-1", "square-8"),
    ("rates that fall by the cube instead of the square", "cube-8", "square-8"),
    ("more in the first two stages: widths 24 24 32 32 32 32 16 16 24 32", "early-8", "square-8"),
    ("widths of 24, the last three 32", "widths-24-32-8", "square-8"),
    ("widths of 16, then 24, then 32 32 48", "late-8", "square-8"),
    ("neither cutout nor shifts that shrink", "square-20", "shrink-cutout-half-20"),
    ("shifts that shrink, but no cutout", "shrink-20", "shrink-cutout-half-20"),
    ("cutout, but shifts that don't shrink", "cutout-half-20", "shrink-cutout-half-20"),
    ("cutout in all images instead of half", "shrink-cutout-20", "shrink-cutout-half-20"),
    ("LN: shifts that don't shrink", "ln-same-shifts-20", "ln-20"),
    ("LN: the same, and no cutout", "ln-no-cutout-20", "ln-20"),
    ("LN: rates of 0.04 and 0.5 instead of 0.03 and 0.3", "ln-20", "ln-rates-0.03-0.3-20"),
    ("LN: rates of 0.02 and 0.2 instead of 0.03 and 0.3", "ln-rates-0.02-0.2-20", "ln-rates-0.03-0.3-20"),
    ("GN: rates of 0.04 and 0.5 instead of 0.03 and 0.3", "gn-20", "gn-rates-0.03-0.3-20"),
    ("rates of 0.025 and 0.3 instead of 0.04 and 0.5, at full length", "rates-0.025-0.3-20", "bn-20"),
]
HEAD = "multiply-adds, M", "validation accuracy, %", "validation loss"


def ablation_runs():
    """(variant, change, flags) of every run; the recipes themselves, of which there are several, have no change."""
    for variant, changes in ABLATION.items():
        for seed in ABLATION_SEEDS:
            yield variant, None, f"{ABLATION_FLAGS} --seed {seed}"
        for change, flags in changes.items():
            yield variant, change, f"{ABLATION_FLAGS} {flags}"


def cells(group):
    """What HEAD names, of runs of equal recipe."""
    return [f"{group[0]['multiply_adds'] / 1e6:.1f}", percent([m["val_accuracy"] for m in group]),
            spread([m["val_loss"] for m in group], "{:.3f}")]


def ablation_page():
    """results/ablation.md; None if a run is missing."""
    groups = {}  # (variant, change) -> metrics of each seed
    for variant, change, flags in ablation_runs():
        metrics = finished("ablation", variant, flags)
        if not metrics:
            return None
        groups.setdefault((variant, change), []).append(metrics)
    parts = ["# What each choice is worth\n", (
        "Written by `make ablation` from the runs in studies/ablation/. Each row is the script's recipe with one "
        f"change, trained with `{ABLATION_FLAGS}`: validation accuracy, its difference from the recipe's mean in "
        f"points, and validation loss. The recipe itself is trained with seeds {', '.join(map(str, ABLATION_SEEDS))} "
        "(mean ± sample standard deviation), a change with seed 0 alone: a difference below twice that deviation "
        "tells little. Nor do trainings this short tell much of what works against overfitting, as shifts and "
        "cutout: the rows of 20 epochs in the last table do.\n")]
    for variant in ABLATION:
        base = groups[variant, None]
        rows = [["", *HEAD, "difference"], ["---", *["---:"] * 4], [f"the recipe of {variant}.py", *cells(base), ""]]
        for change in ABLATION[variant]:
            group = groups[variant, change]
            lost = group[0]["diverged"]
            rows.append([change, *cells(group), "diverged" if lost else f"{gain(base, group):+.2f}"])
        parts += [f"## {variant}\n", *markdown(rows), ""]
    return "\n".join(parts) + "\n" + tried()


def tried():
    """The section on what was dropped, from the saved numbers of those runs."""
    rows = [["", "epochs", *HEAD, "instead of, %", "instead of"], ["---", *["---:"] * 6]]
    for what, *names in TRIED:
        new, old = (common.read_run(common.RESULTS / "studies" / "tried" / name)[0] for name in names)
        rows.append([what, str(new["epochs"]), *cells([new]), *cells([old])[1:]])
    return "\n".join([
        "## Tried and dropped\n",
        "BN (GN or LN where it says so) on the way to the recipe, one training each; differences of less than half a "
        "point of accuracy, or 0.01 of loss, are noise. \"Rates\" are those of the filters and of everything else.\n",
        *markdown(rows), ""])


def pages():
    """The page of the ablation, if it is complete: path -> text."""
    text = ablation_page()
    return {common.RESULTS / "ablation.md": text} if text else {}


def main():
    try:
        for variant, _, flags in ablation_runs():
            train("ablation", variant, flags)
        for path, text in pages().items():
            write_file(path, text.encode())
    except (RunError, OSError) as error:
        sys.exit(f"ablation: {error}")


if __name__ == "__main__":
    main()
