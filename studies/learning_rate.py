"""How high the learning rate may be.

Ioffe and Szegedy 2015, "Batch Normalization", promise that it "enables higher learning rates": normalization undoes the
scale of filters. Batch norm undoes that of each filter, group norm and layer norm only that of all filters of a group
or a layer together (Ba et al. 2016, table 1). Bjorck et al. 2018, "Understanding Batch Normalization", see the main
advantage of batch norm in that. The rate here drives c11 and the affine parameters, too, which no normalization
protects; and the weights that "no norm" starts from suit neither it nor high rates.
"""

import statistics

from studies.study import LABELS, NO_NORM, SEEDS, accuracies, bold_if, markdown, plot_lines
from support import plots
from support.plots import mean_and_sd

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
FRACTION = 0.8  # of a line's best accuracy: more than that counts as still trained
FLAGS = ("--train-images 10000 --epochs 3 --no-test --dropout 0 --ema-decay 0 --optimizer SGD --momentum 0 "
         "--warmup-fraction 0 --decay-power 0 --weight-decay 0 --aux-lr 0.03")
SETTING = "10,000 images, 3 epochs of plain SGD at a constant rate, 3 seeds"


def plan():
    return {(line, rate, seed): ("bn" if line == NO_NORM else line, f"{FLAGS} {'--no-norm ' * (line == NO_NORM)}"
                                 f"--max-lr {rate} --seed {seed}")
            for line in LABELS for rate in RATES for seed in SEEDS}


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    plot_lines(ax, results, accuracies)
    ax.set_xscale("log")
    ax.set(xlabel="peak learning rate (SGD)", ylabel="validation accuracy, %")
    ax.legend()
    return fig


def highest_stable(results, line):
    """Return the highest rate at which no run diverges and mean accuracy is more than FRACTION of the line's best."""
    means = {rate: statistics.mean(accuracies(results[line, rate])) for rate in RATES}
    finite = [rate for rate in RATES if not any(metrics["diverged"] for metrics in results[line, rate])]
    return max(rate for rate in finite if means[rate] > FRACTION * max(means.values()))


def finding(results):
    return "Highest stable rate: " + ", ".join(f"{LABELS[line]} {highest_stable(results, line):g}" for line in LABELS)


def table(results):
    rows = [[LABELS[line]] for line in LABELS]
    for row, line in zip(rows, LABELS, strict=True):
        for rate in RATES:
            group = results[line, rate]
            diverged = sum(metrics["diverged"] for metrics in group)
            text = f"{diverged} of {len(group)} diverged" if diverged else mean_and_sd(accuracies(group))
            row.append(bold_if(rate == highest_stable(results, line), text))
    head = ["validation accuracy, %, at a learning rate of", *(f"{rate:g}" for rate in RATES)]
    return (markdown(head, rows, "---:") + "\nBold: the highest stable rate, at which no run diverges and accuracy is "
            f"more than {FRACTION:g} times the line's best.\n")
