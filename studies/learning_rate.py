"""How high the learning rate may be.

Ioffe and Szegedy 2015, "Batch Normalization", promise that it "enables higher learning rates": the output does not
depend on the scale of filters, so a step that makes them large does no harm. Batch normalization cancels the scale of
each filter, group and layer normalization only that of all filters of a group or a layer together (Ba et al. 2016,
table 1). Bjorck et al. 2018, "Understanding Batch Normalization", see higher learning rates as its main advantage.

The rate here is that of the filters under plain SGD, without momentum, warm-up, learning-rate decay, weight decay and
EMA. The learning rate of all other parameters is 0.03 throughout. Without normalization, filters start with variance
1 / fan_in (LeCun et al. 1998, "Efficient BackProp").
"""

import statistics

from studies.study import LABELS, NO_NORM, SEEDS, accuracies, bold_if, markdown, plot_line
from support import plots
from support.plots import mean_and_sd

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
CHANCE, TRAINED = 10, 0.8  # percent; a run has trained if it reaches this fraction of the best mean of its line
FLAGS = ("--train-images 10000 --epochs 3 --no-test --dropout 0 --ema-decay 0 --optimizer SGD --momentum 0 "
         "--warmup-fraction 0 --decay-power 0 --weight-decay 0 --aux-lr 0.03")
SETTING = ("10,000 training images, 3 epochs of plain SGD at a constant rate, 2 seeds; bands: one standard deviation;\n"
           "crosses: rates at which a run diverged (its loss was not finite)")


def plan():
    return {(line, rate, seed): ("bn" if line == NO_NORM else line, f"{FLAGS}{' --no-norm' * (line == NO_NORM)} "
                                 f"--max-lr {rate} --seed {seed}")
            for line in LABELS for rate in RATES for seed in SEEDS[:2]}


def diverged(results, line, rate):
    """Return how many runs of a cell diverged."""
    return sum(metrics["diverged"] for metrics in results[line, rate])


def best(results, line):
    """Return the rate with the highest mean accuracy of those at which no run diverges, and that accuracy."""
    means = {rate: statistics.mean(accuracies(results[line, rate])) for rate in RATES
             if not diverged(results, line, rate)}
    return max(means.items(), key=lambda item: item[1])


def highest(results, line):
    """Return the highest rate at which no run diverges and all have trained."""
    _, accuracy = best(results, line)
    return max(rate for rate in RATES if not diverged(results, line, rate)
               and min(accuracies(results[line, rate])) > TRAINED * accuracy)


def findings(results):
    limits = {line: highest(results, line) for line in LABELS}
    rate, without = best(results, NO_NORM)
    there = statistics.mean(accuracies(results["bn", rate]))
    return [
        (f"The highest rate at which all runs trained is {limits['bn']:g} or more with batch normalization, "
         f"{limits['gn']:g} with group and {limits['ln']:g} with layer normalization, {limits[NO_NORM]:g} without.",
         limits["bn"] == RATES[-1] > limits["gn"] >= limits["ln"] > limits[NO_NORM]),
        (f"High rates are not the only advantage of batch normalization: at {rate:g}, the best rate without "
         f"normalization, it reaches {there:.1f} %, against {without:.1f} %.", there > without),
    ]


def table(results):
    rows = []
    for line in LABELS:
        rows.append([LABELS[line]])
        for rate in RATES:
            lost = diverged(results, line, rate)
            reached = mean_and_sd(accuracies(results[line, rate]), "{:.1f}")
            text = f"{lost} of {len(results[line, rate])} diverged" if lost else reached
            rows[-1].append(bold_if(rate == highest(results, line), text))
    head = ["validation accuracy, %, at a rate of", *(f"{rate:g}" for rate in RATES)]
    return (markdown(head, rows, "---:") + f"\nBold: the highest rate at which no run diverged and each reached more "
            f"than {TRAINED:g} times the best mean accuracy of its row. Chance is {CHANCE} %.\n")


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    for place, line in enumerate(LABELS):
        whole = [rate for rate in RATES if not diverged(results, line, rate)]
        plot_line(ax, line, whole, [accuracies(results[line, rate]) for rate in whole], marker="o", markersize=3)
        lost = [rate for rate in RATES if rate not in whole]
        ax.plot(lost, [2 + 1.8 * place] * len(lost), "x", color=plots.color_of(line))  # a row of crosses per line
    ax.axhline(CHANCE, color="#bbbbbb", linewidth=0.8)
    ax.text(RATES[3], CHANCE + 0.5, "chance", fontsize=8, color="#777777")
    ax.set_xscale("log")
    ax.grid(alpha=0.3)
    ax.set(xlabel="learning rate of the filters (plain SGD)", ylabel="validation accuracy, %", ylim=(0, None))
    ax.legend()
    return fig
