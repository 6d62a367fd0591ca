"""How many groups, from layer to instance normalization.

With one group, group normalization is layer normalization (ln.py differs in rounding alone); with one group per
channel, it is instance normalization. For a large network on ImageNet, Wu and He 2018, "Group Normalization", found 32
groups best among fixed numbers of groups, and 16 channels best among fixed sizes of groups; the extremes, a single
group and groups of a single channel, were worse. Instance normalization (Ulyanov et al. 2016) removes each channel's
mean over the image. Global average pooling uses channel means, so information may be lost.

Batch normalization and a network without normalization are shown, too. The latter starts from LeCun initialization,
variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp"). With normalization, the optimizer rescales the weights of
each convolution except c11 to their initial Frobenius norm after each step; without normalization, it does not. The
network without normalization is trained with three settings of learning rates: half, usual (bn.py) and double.
"""

import statistics

from studies import stats
from studies.study import LABELS, NO_NORM, SEEDS, SHORT, accuracies, bold_if, markdown, plot_line, plot_lines
from support import plots

GROUPS = {1: "1", 2: "2", 4: "4", 8: "8", "channels": "one per channel"}
REFERENCES = {  # line -> x -> flags of bn.py
    "bn": {None: ""},
    NO_NORM: {"half": " --no-norm --hidden-lr 0.015 --other-lr 0.15", "usual": " --no-norm",
              "double": " --no-norm --hidden-lr 0.06 --other-lr 0.6"},
}
SETTING = (f"10,000 training images, 10 epochs, {len(SEEDS)} seeds, no dropout; bands: one standard deviation;\n"
           "dashed: networks without groups, the one without normalization at its best learning rates")


def plan():
    cells = {("gn", groups): ("gn", f" --dropout 0 --groups {groups}") for groups in GROUPS}
    cells |= {(line, x): ("bn", flags) for line, rates in REFERENCES.items() for x, flags in rates.items()}
    return {(*cell, seed): (variant, f"{SHORT}{flags} --seed {seed}")
            for cell, (variant, flags) in cells.items() for seed in SEEDS}


def best_without(results):
    """Return the x of the best learning rates without normalization."""
    return max(REFERENCES[NO_NORM], key=lambda x: statistics.mean(accuracies(results[NO_NORM, x])))


def compared(results):
    """Return the accuracies of each cell, and their differences from 4 groups, corrected for all of them."""
    cells = {key: accuracies(group) for key, group in results.items()}
    return cells, stats.holm({key: stats.contrast(cells, {key: 1, ("gn", 4): -1}) for key in cells if key != ("gn", 4)})


def findings(results):
    _, tests = compared(results)
    instance, none, batch = tests["gn", "channels"], tests[NO_NORM, best_without(results)], tests["bn", None]
    return [
        ("The network without normalization, with the best of three settings of its learning rates, does not differ "
         "significantly in validation accuracy from that with group normalization (4 groups). Batch normalization is "
         f"{batch.size()} percentage points above group normalization.",
         not none.significant and batch.significant and batch.estimate > 0),
        ("With 1, 2 or 8 groups, accuracy does not differ significantly from that with 4.",
         not any(tests["gn", groups].significant for groups in (1, 2, 8))),
        (f"With instance normalization, it is {instance.size()} percentage points lower than with 4 groups.",
         instance.significant and instance.estimate < 0),
    ]


def table(results):
    cells, tests = compared(results)
    names = {("gn", groups): f"{label} group{'s' * (groups != 1)}" for groups, label in GROUPS.items()}
    names |= {(NO_NORM, x): f"no norm, {x} learning rates" for x in REFERENCES[NO_NORM]} | {("bn", None): LABELS["bn"]}
    rows = [[names[key].replace("channel groups", "channel"), bold_if(key in tests and tests[key].significant,
             plots.mean_and_sd(values)), tests[key].text() if key in tests else ""] for key, values in cells.items()]
    return (markdown(["normalization", "validation accuracy, %", "difference from 4 groups"], rows, "---:") +
            "\nBold: significant, compared with 4 groups.\n")


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    plot_lines(ax, {("gn", place): results["gn", groups] for place, groups in enumerate(GROUPS)}, accuracies)
    for line, x in ("bn", None), (NO_NORM, best_without(results)):
        plot_line(ax, line, [0, len(GROUPS) - 1], 2 * [accuracies(results[line, x])], linestyle="--")
    labels = GROUPS | {1: "1\n(layer norm)", "channels": "one per channel\n(instance norm)"}
    ax.set_xticks(range(len(GROUPS)), labels.values())
    ax.set(xlabel="number of groups", ylabel="validation accuracy, %")
    ax.legend()
    return fig
