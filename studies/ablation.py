"""What Muon, Hardswish, EMA and quadratic learning-rate decay are worth.

Each row is the recipe of bn.py, gn.py and ln.py with one change (Meyes et al. 2019, "Ablation Studies in Artificial
Neural Networks"). SGD has the Nesterov momentum of Muon, 0.9, the same learning rate for all parameters, a weight decay
of 0.0005 for all convolutions except c11, and does not rescale weights. Runs of 10 epochs on 10,000 images say little
about what works against overfitting, so augmentation and dropout are not among the changes. Learning rates and linear
decay were tried in full runs, too; there, linear decay made no significant difference (results/tried.md).
"""

from studies import stats
from studies.study import LABELS, SEEDS, SHORT, VARIANTS, accuracies, bold_if, markdown
from support import plots

RECIPE = "the recipe"
SETTING = f"10,000 training images, 10 epochs, {len(SEEDS)} seeds; means over normalizations, 95 % confidence intervals"
CHANGES = {  # change -> flags
    "SGD with a learning rate of 0.2 instead of Muon": " --optimizer SGD --hidden-lr 0.2 --other-lr 0.2",
    "SGD with a learning rate of 0.05 instead of Muon": " --optimizer SGD --hidden-lr 0.05 --other-lr 0.05",
    "linear instead of quadratic learning-rate decay": " --decay-power 1",
    "no EMA of the weights": " --ema-decay 0",
    "ReLU instead of Hardswish": " --activation ReLU",
    "SiLU instead of Hardswish": " --activation SiLU",
}


def plan():
    return {(variant, change, seed): (variant, f"{SHORT}{flags} --seed {seed}")
            for seed in SEEDS for variant in VARIANTS for change, flags in {RECIPE: "", **CHANGES}.items()}


def effects(results):
    """Return the accuracies of each cell, and {change: difference from the recipe}, corrected for all changes."""
    cells = {key: accuracies(group) for key, group in results.items()}
    return cells, stats.main_effects(cells, RECIPE)


def findings(results):
    cells, tests = effects(results)
    alike = stats.interaction({key: values for key, values in cells.items() if "SGD" not in key[1]}) > stats.LEVEL
    best = max(list(CHANGES)[:2], key=lambda change: tests[change].estimate)
    single = stats.against(cells, RECIPE)
    bn, gn, ln = sgd = [single[variant, best] for variant in VARIANTS]
    linear, ema, relu, silu = [tests[change] for change in list(CHANGES)[2:]]
    return [
        (f"With SGD instead of Muon, at the better of two learning rates, validation accuracy is {bn.size(1)} "
         f"percentage points lower with batch, {gn.size(1)} with group and {ln.size(1)} with layer normalization.",
         stats.interaction(cells) < stats.LEVEL and all(test.significant and test.estimate < 0 for test in sgd)),
        (f"Averaged over the normalizations, ReLU instead of Hardswish lowers it by {relu.size()} percentage points, "
         f"and linear instead of quadratic learning-rate decay raises it by {linear.size()}.",
         alike and relu.significant and linear.significant and relu.estimate < 0 < linear.estimate),
        ("SiLU instead of Hardswish, or no EMA, makes no significant difference.",
         not ema.significant and not silu.significant),
    ]


def table(results):
    cells, tests = effects(results)
    texts = {change: bold_if(test.significant, test.text()) for change, test in tests.items()}
    rows = [[row, *(plots.mean_and_sd(cells[variant, row]) for variant in VARIANTS), texts.get(row, "")]
            for row in (RECIPE, *CHANGES)]
    head = ["validation accuracy, %", *(LABELS[variant] for variant in VARIANTS), "difference, averaged"]
    return f"{markdown(head, rows, '---:')}\nBold: averaged differences that are significant.\n"


def plot(results):
    fig, ax = plots.new_axes(9, 3.6, 1)
    for place, test in enumerate(effects(results)[1][change] for change in CHANGES):
        ax.errorbar(test.estimate, place, xerr=test.estimate - test.low, fmt="o", capsize=3, color="#444444")
    ax.set_yticks(range(len(CHANGES)), CHANGES)
    ax.invert_yaxis()
    ax.axvline(0, color="#999999", linewidth=0.8)
    ax.set(xlabel="mean difference of validation accuracy from the recipe, percentage points")
    return fig
