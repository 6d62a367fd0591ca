"""What each choice of the recipes is worth.

Each row of results/ablation.md is a script's recipe with one change, in a short run. What theory expects: normalization
matters most to plain SGD; translation, cutout and dropout show their worth only in long runs, where there is more
overfitting to reduce. Meyes et al. 2019, "Ablation Studies in Artificial Neural Networks".
"""

import statistics
import sys

from studies import study
from studies.study import SEEDS, accuracies, losses, markdown
from support.plots import mean_and_sd, percent

VARIANTS, FLAGS = ("bn", "gn", "ln"), "--epochs 6 --no-test"
CHANGES = {  # change -> flags, for every script
    "SGD for the filters too, learning rates 0.2": "--optimizer SGD --max-lr 0.2 --aux-lr 0.2",
    "SGD for the filters too, learning rates 0.05": "--optimizer SGD --max-lr 0.05 --aux-lr 0.05",
    "half the learning rates": "--max-lr 0.015 --aux-lr 0.15",
    "twice the learning rates": "--max-lr 0.06 --aux-lr 0.6",
    "linear decay of the learning rates": "--decay-power 1",
    "no EMA of the weights": "--ema-decay 0",
    "ReLU": "--activation ReLU",
    "SiLU": "--activation SiLU",
}


def plan():
    """Return the runs, {(variant, change, seed): (variant, flags)}; the recipes themselves have the change None."""
    recipes = {(variant, None, seed): (variant, f"{FLAGS} --seed {seed}") for variant in VARIANTS for seed in SEEDS}
    return recipes | {(variant, change, 0): (variant, f"{FLAGS} {flags}")
                      for variant in VARIANTS for change, flags in CHANGES.items()}


def cells(group):
    """Return MACs, validation accuracy and loss of runs of one recipe, as texts."""
    return [f"{group[0]['macs'] / 1e6:.1f}", percent([run["val_accuracy"] for run in group]),
            mean_and_sd(losses(group), "{:.3f}")]


def page(note):
    """Return the text of results/ablation.md, or None if a run is missing. `note` says of which recipes it is."""
    groups = study.by_cell(sys.modules[__name__])
    if not groups:
        return None
    parts = ["# What each choice is worth\n", (
        "Written by `make ablation` from studies/ablation.jsonl. Each row is the script's recipe with one change, "
        f"trained with `{FLAGS}`: validation accuracy, its difference from the recipe's mean in percentage points, and "
        f"validation loss. The recipe itself is trained with seeds {', '.join(map(str, SEEDS))} (mean ± standard "
        "deviation), a change with seed 0 alone: a difference below twice that deviation says little. Short runs say "
        "little about regularization, such as translation and cutout. The rows of SGD in gn and ln also drop centered "
        "filters, and their learning rate is not the best for SGD: they do not show what Muon is worth. "
        f"[tried.md](tried.md) lists what else was tried.{note}\n")]
    head = ["", "MACs, M", "validation accuracy, %", "validation loss", "difference"]
    for variant, changes in CHANGES.items():
        recipe = groups[variant, None]
        rows = [[f"the recipe of {variant}.py", *cells(recipe), ""]]
        for change in changes:
            group = groups[variant, change]
            difference = statistics.mean(accuracies(group)) - statistics.mean(accuracies(recipe))
            rows.append([change, *cells(group), "diverged" if group[0]["diverged"] else f"{difference:+.2f}"])
        parts += [f"## {variant}\n", markdown(head, rows, "---:")]
    return "\n".join(parts)
