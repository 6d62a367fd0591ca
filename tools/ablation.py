"""What each choice of the recipes is worth: short trainings with one change each. Run as `python -m tools.ablation`.

Writes results/ablation.md from the runs in results/studies/ablation/, and those that led to the recipe, in tried/.
"""

import statistics
import sys

import common
from tools.report import markdown, percent
from tools.storage import RunError, write_file
from tools.studies import finished, train

ABLATION_SEEDS, ABLATION_FLAGS = (0, 1, 2), "--epochs 8 --no-test"
SGD = "--optimizer SGD --max-lr 0.2 --other-lr 0.2 --weight-decay 0.0005"
ABLATION = {  # what a change is -> its flags
    "bn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "filters keep a mean of zero": "--zero-mean",
        "no moving average of the weights": "--ema 0",
        "half the rates": "--max-lr 0.015 --other-lr 0.15",
        "twice the rates": "--max-lr 0.06 --other-lr 0.6",
        "no additions": "--additions ''",
        "ReLU": "--activation ReLU",
        "batches of 64, rates lower by the root of 2": "--batch-size 64 --max-lr 0.021 --other-lr 0.21",
        "batches of 256, rates higher by the root of 2": "--batch-size 256 --max-lr 0.042 --other-lr 0.42",
        "shifts of up to 2 pixels": "--crop 2",
        "widths 16 16 16 16 32 32 32 32 32 32, additions around all but C5":
            "--widths 16,16,16,16,32,32,32,32,32,32 --additions 'C2 c3 C4 C6 c7 C8 C9 C10'",
        "widths of 24, the last 64, additions around all but C10":
            "--widths 24,24,24,24,24,24,24,24,24,64 --additions 'C2 c3 C4 C5 C6 c7 C8 C9'",
        "no shifts": "--crop 0",
        "no flips": "--no-flip",
    },
    "gn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "filters may have any mean": "--no-zero-mean",
        "no dropout": "--dropout 0",
        "2 groups": "--groups 2",
        "8 groups": "--groups 8",
    },
    "ln": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
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
]


def ablation_runs():
    """(variant, change, flags) of every run; the recipes themselves, of which there are several, have no change."""
    for variant, changes in ABLATION.items():
        for seed in ABLATION_SEEDS:
            yield variant, None, f"{ABLATION_FLAGS} --seed {seed}"
        for change, flags in changes.items():
            yield variant, change, f"{ABLATION_FLAGS} {flags}"


def ablation_page():
    """results/ablation.md; None if a run is missing."""
    runs = [(variant, change, finished("ablation", variant, flags)) for variant, change, flags in ablation_runs()]
    if not all(metrics for _, _, metrics in runs):
        return None
    parts = ["# What each choice is worth\n", (
        "Written by `make ablation` from the runs in studies/ablation/. Each row is the script's recipe with one "
        f"change, trained with `{ABLATION_FLAGS}`: validation accuracy, and its difference from the recipe's mean in "
        f"points. The recipe itself is trained with seeds {', '.join(map(str, ABLATION_SEEDS))} (mean ± sample "
        "standard deviation), a change with seed 0 alone: a difference below twice that deviation tells little.\n")]
    for variant in ABLATION:
        base = [100 * m["val_accuracy"] for v, change, m in runs if v == variant and change is None]
        rows = [["", "multiply-adds, M", "validation accuracy, %", "difference"], ["---", "---:", "---:", "---:"]]
        for v, change, metrics in runs:
            if v == variant and (change or metrics["seed"] == ABLATION_SEEDS[0]):
                values = [metrics["val_accuracy"]] if change else [value / 100 for value in base]
                rows.append([change or f"the recipe of {variant}.py", f"{metrics['multiply_adds'] / 1e6:.1f}",
                             "diverged" if metrics["diverged"] else percent(values),
                             f"{100 * metrics['val_accuracy'] - statistics.mean(base):+.2f}"
                             if change and not metrics["diverged"] else ""])
        parts += [f"## {variant}\n", *markdown(rows), ""]
    return "\n".join(parts) + "\n" + tried()


def tried():
    """The section on what was dropped, from the saved numbers of those runs."""
    rows = [["", "multiply-adds, M", "epochs", "validation accuracy, %", "instead of, %"], ["---", *["---:"] * 4]]
    for what, *names in TRIED:
        new, old = (common.read_run(common.RESULTS / "studies" / "tried" / name)[0] for name in names)
        rows.append([what, f"{new['multiply_adds'] / 1e6:.1f}", str(new["epochs"]),
                     *(f"{100 * m['val_accuracy']:.2f}" for m in (new, old))])
    return "\n".join([
        "## Tried and dropped\n", "BN on the way to the recipe, one training each, validation accuracy; differences of "
        "less than half a point are noise. \"Rates\" are those of the filters and of everything else.\n",
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
