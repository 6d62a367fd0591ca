"""How many groups, from layer norm to instance norm.

Group norm with one group is layer norm, with a group for each channel instance norm. Wu and He 2018, "Group
Normalization", found 32 groups, or 16 channels in each, best for a large network on ImageNet, and both ends of the
family worse. Instance norm (Ulyanov et al. 2016) takes from each channel its mean over an image, much of what global
average pooling would have seen of it, so it should fall far behind. No norm is handicapped: Muon keeps the norms of
filters, which only normalization justifies, and it has batch norm's learning rates.
"""

import statistics

from studies.study import LABELS, NO_NORM, MORE_SEEDS, accuracies, bold_if, differs, markdown, plot_line, plot_lines
from support import plots
from support.plots import mean_and_sd

GROUPS = {1: "1", 2: "2", 4: "4", 8: "8", "channels": "one per channel"}
REFERENCES = {  # line -> x -> flags of bn.py
    "bn": {None: ""},
    NO_NORM: {"half": "--no-norm --max-lr 0.015 --aux-lr 0.15", "usual": "--no-norm",
              "double": "--no-norm --max-lr 0.06 --aux-lr 0.6"},
}
FLAGS = "--train-images 15000 --epochs 10 --no-test --dropout 0"
SETTING = "15,000 training images, 10 epochs, 5 seeds, no dropout"


def plan():
    cells = {("gn", groups): ("gn", f"--groups {groups}") for groups in GROUPS}
    cells |= {(line, x): ("bn", flags) for line, rates in REFERENCES.items() for x, flags in rates.items()}
    return {(*cell, seed): (variant, f"{FLAGS} {flags} --seed {seed}")
            for cell, (variant, flags) in cells.items() for seed in MORE_SEEDS}


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    plot_lines(ax, {("gn", place): results["gn", groups] for place, groups in enumerate(GROUPS)}, accuracies)
    for line in REFERENCES:
        plot_line(ax, line, [0, len(GROUPS) - 1], 2 * [accuracies(results[line, None])], linestyle="--")
    labels = GROUPS | {1: "1\n(layer norm)", "channels": "one per channel\n(instance norm)"}
    ax.set_xticks(range(len(GROUPS)), labels.values())
    ax.set(xlabel="groups of channels", ylabel="validation accuracy, %")
    ax.legend()
    return fig


def best_groups(results):
    """Return the number of groups with the highest mean accuracy, and the accuracies there."""
    best = max(GROUPS, key=lambda groups: statistics.mean(accuracies(results["gn", groups])))
    return best, accuracies(results["gn", best])


def finding(results):
    _, best = best_groups(results)
    equal = [label for groups, label in GROUPS.items() if not differs(accuracies(results["gn", groups]), best)]
    text = f"Best numbers of groups, within the noise: {', '.join(equal)} ({mean_and_sd(best)} %)"
    return text + "".join(f"; {LABELS[line]} {mean_and_sd(accuracies(results[line, None]))} %" for line in REFERENCES)


def table(results):
    groups, best = best_groups(results)
    values = [accuracies(group) for group in results.values()]
    cells = [bold_if(differs(cell, best), mean_and_sd(cell)) for cell in values]
    head = ["groups", *GROUPS.values(), *(LABELS[line] for line in REFERENCES)]
    return (markdown(head, [["validation accuracy, %", *cells]], "---:") +
            f"\nBold: differs from the best, {GROUPS[groups]}, by more than twice the standard deviation.\n")
