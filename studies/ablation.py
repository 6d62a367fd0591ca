"""What each choice of the recipe is worth.

Each row is the recipe of the scripts with one change (Meyes et al. 2019, "Ablation Studies in Artificial Neural
Networks"); where SGD replaces Muon, learning rates and weight decay (0.0005) change as well. Runs of 10 epochs on
10,000 images say little about what works against overfitting, so augmentation and dropout are not among the changes.
Dropout, groups and skip connections have studies of their own, and learning rates were compared in full runs
(results/tried.md).
"""

import statistics

from studies import stats
from studies.study import LABELS, SEEDS, SHORT, VARIANTS, accuracies, bold_if, markdown
from support import plots
from support.plots import mean_and_sd

RECIPE, RELU = "the recipe", "ReLU instead of Hardswish"
SETTING = ("10,000 training images, 10 epochs; differences from the recipe, averaged over the three normalizations;\n"
           f"{len(SEEDS)} seeds of the recipe, 1 of each change; bars: 95 % confidence intervals")
CHANGES = {  # change -> flags
    "SGD instead of Muon, both learning rates 0.2": "--optimizer SGD --hidden-lr 0.2 --other-lr 0.2",
    "SGD instead of Muon, both learning rates 0.05": "--optimizer SGD --hidden-lr 0.05 --other-lr 0.05",
    "linear instead of quadratic learning-rate decay": "--decay-power 1",
    "no EMA of the weights": "--ema-decay 0",
    RELU: "--activation ReLU",
    "SiLU instead of Hardswish": "--activation SiLU",
}


def plan():
    recipes = {(variant, RECIPE, seed): (variant, f"{SHORT} --seed {seed}")
               for variant in VARIANTS for seed in SEEDS}
    return recipes | {(variant, change, 0): (variant, f"{SHORT} {flags} --seed 0")
                      for variant in VARIANTS for change, flags in CHANGES.items()}


def effects(results):
    """Return the accuracies of each cell, and {change: difference from the recipe}, corrected for all changes."""
    cells = {key: accuracies(group) for key, group in results.items()}
    return cells, stats.main_effects(cells, RECIPE)


def findings(results):
    cells, tests = effects(results)
    change, relu = max(list(CHANGES)[:2], key=lambda change: tests[change].estimate), tests[RELU]
    sgd, lost = tests[change], {variant: statistics.mean(cells[variant, RECIPE]) -
                                statistics.mean(cells[variant, change]) for variant in VARIANTS}
    return [
        (f"With SGD instead of Muon, at the better of two learning rates, validation accuracy is {sgd.size()} "
         f"percentage points lower, averaged over the three normalizations (batch {lost['bn']:.1f}, group "
         f"{lost['gn']:.1f}, layer {lost['ln']:.1f}).", sgd.significant and sgd.estimate < 0),
        (f"With ReLU instead of Hardswish, it is {relu.size()} lower.", relu.significant and relu.estimate < 0),
        ("No other change makes a significant difference in runs this short.",
         not any(test.significant for change, test in tests.items() if change != RELU and "SGD" not in change)),
    ]


def table(results):
    cells, tests = effects(results)
    texts = {change: bold_if(test.significant, test.text()) for change, test in tests.items()}
    rows = [[row, *(mean_and_sd(cells[variant, row]) for variant in VARIANTS), texts.get(row, "")]
            for row in (RECIPE, *CHANGES)]
    head = ["validation accuracy, %", *(LABELS[variant] for variant in VARIANTS), "difference, averaged"]
    return (markdown(head, rows, "---:") + f"\nThe recipe was run with {len(SEEDS)} seeds, each change with one. Bold: "
            "significant, compared with the recipe.\n")


def plot(results):
    fig, ax = plots.new_axes(9, 3.6, 1)
    for place, test in enumerate(effects(results)[1][change] for change in CHANGES):
        ax.errorbar(test.estimate, place, xerr=test.estimate - test.low, fmt="o", capsize=3, color="#444444")
    ax.set_yticks(range(len(CHANGES)), CHANGES)
    ax.invert_yaxis()
    ax.axvline(0, color="#999999", linewidth=0.8)
    ax.set(xlabel="difference of validation accuracy, percentage points")
    return fig
