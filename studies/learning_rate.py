"""How high the learning rate may be.

Ioffe and Szegedy 2015, "Batch Normalization", promise that it "enables higher learning rates": the output does not
depend on the scale of filters, so a step that makes them large does no harm. Batch normalization cancels the scale of
each filter, group and layer normalization only that of all filters of a group or a layer together (Ba et al. 2016,
table 1). Bjorck et al. 2018, "Understanding Batch Normalization", see higher learning rates as its main advantage.

The rate here is that of the filters (all convolutions except c11) under plain SGD, without momentum, warm-up,
learning-rate decay, weight decay, EMA and dropout. The learning rate of all other parameters is 0.03 throughout.
Without normalization, filters have LeCun initialization, variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp").
"""

import statistics

from studies import stats
from studies.study import LABELS, NO_NORM, SEEDS, VARIANTS, accuracies, bold_if, markdown, plot_line
from support import plots

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
CHANCE = 10  # percent
FLAGS = ("--train-images 10000 --epochs 3 --no-test --dropout 0 --ema-decay 0 --optimizer SGD --momentum 0 "
         "--warmup-fraction 0 --decay-power 0 --weight-decay 0 --other-lr 0.03")
SETTING = (f"10,000 training images, 3 epochs of plain SGD at a constant rate, {len(SEEDS)} seeds; bands: one standard "
           "deviation;\ncrosses: rates at which a run diverged (its loss was not finite); their height has no meaning")


def plan():
    return {(line, rate, seed): ("bn" if line == NO_NORM else line, f"{FLAGS}{' --no-norm' * (line == NO_NORM)} "
                                 f"--hidden-lr {rate} --seed {seed}")
            for line in LABELS for rate in RATES for seed in SEEDS}


def diverged(group):
    """Return how many of a cell's runs diverged."""
    return sum(metrics["diverged"] for metrics in group)


def best(results, line):
    """Return the rate with the highest mean accuracy of those at which no run diverges."""
    return max((rate for rate in RATES if not diverged(results[line, rate])),
               key=lambda rate: statistics.mean(accuracies(results[line, rate])))


def findings(results):
    lost = {key: diverged(group) for key, group in results.items()}
    cells = {key: accuracies(group) for key, group in results.items()}
    last, low = RATES[-1], best(results, NO_NORM)
    falls = {line: {(line, best(results, line)): 1, (line, last): -1} for line in VARIANTS}
    gn, ln, bn = (stats.welch(cells, falls[line]).size(1) for line in ("gn", "ln", "bn"))
    more = {line: stats.welch(cells, falls[line] | {key: -weight for key, weight in falls["bn"].items()})
            for line in ("gn", "ln")}
    tests = stats.holm(more | {NO_NORM: stats.welch(cells, {("bn", low): 1, (NO_NORM, low): -1})})
    limit = min((rate for rate in RATES if lost[NO_NORM, rate]), default=last)
    return [
        (f"At the highest learning rate tried, {last:g} for all convolutions except c11, networks are less "
         f"accurate than at their best rate: by {bn} percentage points with batch normalization, {gn} with group and "
         f"{ln} with layer normalization. Without normalization, some or all runs diverge at {limit:g} and above.",
         all(tests[line].significant and tests[line].estimate > 0 for line in more) and limit < last and
         not any(lost[line, rate] for line in VARIANTS for rate in RATES) and
         all(lost[NO_NORM, rate] for rate in RATES if rate >= limit)),
        (f"Batch normalization helps at low rates, too: at {low:g}, the best rate of networks without normalization, "
         f"it is {tests[NO_NORM].size(1)} percentage points more accurate than they are.",
         tests[NO_NORM].significant and tests[NO_NORM].estimate > 0),
    ]


def table(results):
    rows = []
    for line in LABELS:
        rows.append([LABELS[line]])
        top = best(results, line)
        for rate in RATES:
            lost, group = diverged(results[line, rate]), results[line, rate]
            text = f"{lost} of {len(group)} diverged" if lost else plots.mean_and_sd(accuracies(group), "{:.1f}")
            rows[-1].append(bold_if(rate == top, text))
    head = ["validation accuracy, %, at a rate of", *(f"{rate:g}" for rate in RATES)]
    return (f"{markdown(head, rows, '---:')}\nBold: the best mean of its row, among rates at which no run "
            f"diverged. Chance is {CHANCE} %. Tests: Welch's, since standard deviations differ widely.\n")


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    for place, line in enumerate(LABELS):
        whole = [rate for rate in RATES if not diverged(results[line, rate])]
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
