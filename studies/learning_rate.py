"""How high may the learning rate be?

Ioffe and Szegedy 2015, "Batch Normalization", promise that it "enables higher learning rates": however large a step
makes a filter, the norm undoes its length. That holds for every norm, so all three should bear higher rates than no
norm; Bjorck et al. 2018, "Understanding Batch Normalization", find in that the main part of batch norm's advantage.
"""

import statistics

from studies import study
from studies.study import LINES, NO_NORM, SEEDS, Study, accuracies, draw_lines, emphasized
from support import pictures
from support.runs import markdown, mean_and_sd

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SHARE = 0.8  # of the best accuracy that a line has at any rate: more than that counts as still trained
FLAGS = "--limit 10000 --epochs 3 --no-test --dropout 0 --ema 0 --optimizer SGD --no-zero-mean"
TRAININGS = {
    (line, rate, seed): ("bn" if line == NO_NORM else line, f"{FLAGS} {'--norm none' * (line == NO_NORM)} "
                         f"--max-lr {rate} --aux-lr {rate} --seed {seed}")
    for line in LINES for rate in RATES for seed in SEEDS[:2]}


def draw(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    draw_lines(axes, found, accuracies)
    axes.set_xscale("log")
    axes.set(xlabel="peak learning rate (SGD)", ylabel="validation accuracy, %")
    axes.legend()
    return picture


def highest_stable(found, line):
    """The highest rate at which no run diverges, and mean accuracy is more than SHARE of the line's best."""
    means = {rate: statistics.mean(accuracies(found[line, rate])) for rate in RATES}
    whole = [rate for rate in RATES if not any(metrics["diverged"] for metrics in found[line, rate])]
    return max(rate for rate in whole if means[rate] > SHARE * max(means.values()))


def finding(found):
    return "Highest stable rate: " + ", ".join(f"{LINES[line]} {highest_stable(found, line):g}" for line in LINES)


def cell(found, line, rate):
    diverged = sum(metrics["diverged"] for metrics in found[line, rate])
    text = f"{diverged} of {len(found[line, rate])} diverged"
    if not diverged:
        text = mean_and_sd(accuracies(found[line, rate]))
    return emphasized(text, rate == highest_stable(found, line))


def table(found):
    rows = [[LINES[line], *(cell(found, line, rate) for rate in RATES)] for line in LINES]
    return (markdown(["validation accuracy, %, at a rate of", *(f"{rate:g}" for rate in RATES)], rows, "---:") +
            "\nBold: the highest stable rate, at which no run diverges and accuracy is more than "
            f"{SHARE:g} times the line's best.\n")


STUDY = Study(
    "learning_rate", __doc__,
    "10,000 training images, 3 epochs of plain SGD, 2 seeds; crosses: diverged, drawn at chance",
    finding, table, draw, trainings=TRAININGS)

if __name__ == "__main__":
    study.main(STUDY)
