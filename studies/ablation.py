"""What is each choice of the recipes worth?

Each row of results/ablation.md is a script's recipe with one change, in a short training. What theory expects: the norm
matters most to plain SGD; shifts, cutout and dropout show their worth only in long trainings, where there is something
to be gained against overfitting. Meyes et al. 2019, "Ablation Studies in Artificial Neural Networks".
"""

import argparse
import statistics
import sys

from studies import tried
from studies.study import SEEDS, VALIDATION, accuracies, validation_cells
from studies.trainings import add_options, pooled, print_missing, train_missing
from support.runs import markdown
from support.storage import RunError

FLAGS = "--epochs 6 --no-test"
SGD = "--optimizer SGD --max-lr 0.2 --aux-lr 0.2 --weight-decay 0.0005"
CHANGES = {  # of each script: what a change is -> its flags
    "bn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "filters keep a mean of zero": "--zero-mean",
        "no moving average of the weights": "--ema 0",
        "rates fall by a line": "--decay-power 1",
        "half the rates": "--max-lr 0.02 --aux-lr 0.25",
        "twice the rates": "--max-lr 0.08 --aux-lr 1",
        "no skip connections": "--connections none",
        "ReLU": "--activation ReLU",
        "batches of 64, rates lower by the root of 2": "--batch-size 64 --max-lr 0.028 --aux-lr 0.35",
        "batches of 256, rates higher by the root of 2": "--batch-size 256 --max-lr 0.057 --aux-lr 0.7",
        "shifts as large in the last epoch as in the first": "--final-crop 4",
        "no cutout": "--cutout 0",
        "no shifts": "--crop 0",
        "no flips": "--no-flip",
    },
    "gn": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "the rates of bn.py": "--max-lr 0.04 --aux-lr 0.5",
        "filters may have any mean": "--no-zero-mean",
        "no dropout": "--dropout 0",
        "2 groups": "--groups 2",
        "8 groups": "--groups 8",
    },
    "ln": {
        "SGD for the filters too, rates 0.2, weight decay 0.0005": SGD,
        "the rates of bn.py": "--max-lr 0.04 --aux-lr 0.5",
        "filters may have any mean": "--no-zero-mean",
        "dropout of 0.05, as GN": "--dropout 0.05",
    },
}


def trainings():
    """(variant, change, seed) -> (variant, flags); a recipe itself, trained with several seeds, has no change."""
    plain = {(variant, None, seed): (variant, f"{FLAGS} --seed {seed}") for variant in CHANGES for seed in SEEDS}
    return plain | {(variant, change, 0): (variant, f"{FLAGS} {flags}")
                    for variant, changes in CHANGES.items() for change, flags in changes.items()}


def page():
    """The text of results/ablation.md; None if a training is missing."""
    groups = pooled("ablation", trainings())
    if not groups:
        return None
    parts = ["# What each choice is worth\n", (
        "Written by `make ablation` from studies/ablation.jsonl. Each row is the script's recipe with one "
        f"change, trained with `{FLAGS}`: validation accuracy, its difference from the recipe's mean in "
        f"points, and validation loss. The recipe itself is trained with seeds {', '.join(map(str, SEEDS))} "
        "(mean ± sample standard deviation), a change with seed 0 alone: a difference below twice that deviation "
        "tells little. Nor do trainings this short tell much of what works against overfitting, as shifts and "
        "cutout: the rows of 20 epochs in the last table do.\n")]
    for variant, changes in CHANGES.items():
        recipe = groups[variant, None]
        rows = [[f"the recipe of {variant}.py", *validation_cells(recipe), ""]]
        for change in changes:
            group = groups[variant, change]
            difference = statistics.mean(accuracies(group)) - statistics.mean(accuracies(recipe))
            rows.append([change, *validation_cells(group),
                         "diverged" if group[0]["diverged"] else f"{difference:+.2f}"])
        parts += [f"## {variant}\n", markdown(["", *VALIDATION, "difference"], rows, "---:")]
    return "\n".join([*parts, tried.section()])


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m studies.ablation", description=__doc__.partition("\n")[0])
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        if options.list:
            print_missing("ablation", trainings())
        else:
            train_missing("ablation", trainings(), options.jobs)
    except RunError as error:
        sys.exit(f"ablation: {error}")


if __name__ == "__main__":
    main()
