"""Which normalization is best on the test images.

A difference of a few tenths of a percentage point can come from the seeds, or from the choice of 10,000 images; both
are in the intervals here. Variants are compared on the same images, so that only those count on which they differ.
Guo et al. 2017, "On Calibration of Modern Neural Networks", describe the expected calibration error: the mean distance
of confidence and accuracy over bins of equal width. Averaging the probabilities of several networks usually helps
(Dietterich 2000, "Ensemble Methods in Machine Learning"), the more so the more they disagree.
"""

import itertools
import statistics

import torch

from studies import stats
from studies.study import LABELS, bold_if, markdown
from support import files, runs
from support.plots import percent

BINS = 15  # of confidence, of equal width
SETTING = "the published runs of 3 seeds, the 10,000 test images"


def calibration_error(probabilities, targets):
    """Return the expected calibration error, in [0, 1], of probabilities (N, 10)."""
    confidence, predicted = probabilities.max(1)
    correct, bins = (predicted == targets).float(), (confidence * BINS).long().clamp(max=BINS - 1)
    return sum((correct[bins == b] - confidence[bins == b]).sum().abs().item() for b in range(BINS)) / len(targets)


def interval(by_image, of_seeds=0.0):
    """Return the mean of values per image (N,), in percent, as a Difference from 0.

    `of_seeds` is the variance of that mean over seeds. By differences per image, two variants are compared in pairs.
    """
    error = (by_image.var() / len(by_image) + of_seeds) ** 0.5
    return stats.from_error(100 * by_image.mean().item(), 100 * error.item())


def measure():
    """Return statistics of the saved predictions of the published runs, {name: values by variant or pair}."""
    probabilities, targets = {}, None
    for group in runs.published():
        saved = [runs.load_tensors(files.RESULTS / run["run"], "predictions") for run in group]
        targets = saved[0]["targets"]
        probabilities[group[0]["variant"]] = torch.stack([one["logits"].float().softmax(1) for one in saved])
    labels = {variant: values.argmax(2) for variant, values in probabilities.items()}  # (seeds, N)
    correct = {variant: (values == targets).double() for variant, values in labels.items()}
    of_seeds = {variant: values.mean(1).var() / len(values) if len(values) > 1 else 0.0
                for variant, values in correct.items()}

    def disagreement(a, b):
        pairs = itertools.product(labels[a], labels[b]) if a != b else itertools.combinations(labels[a], 2)
        apart = [(x != y).double().mean().item() for x, y in pairs]
        return statistics.mean(apart) if apart else None

    pairs = list(itertools.combinations(labels, 2))
    differences = {" ".join((a, b)): interval(correct[a].mean(0) - correct[b].mean(0), of_seeds[a] + of_seeds[b])
                   for a, b in pairs}
    members = {name: list(values) for name, values in probabilities.items()}
    members |= {"one of each": [values[0] for values in probabilities.values()],
                "all": [one for values in probabilities.values() for one in values]}
    return {
        "accuracy": {name: interval(values.mean(0), of_seeds[name]) for name, values in correct.items()},
        "difference": stats.holm(differences),
        "disagreement": {f"{a} {b}": disagreement(a, b) for a, b in [*zip(labels, labels, strict=True), *pairs]},
        "calibration": {name: [calibration_error(one, targets) for one in values]
                        for name, values in probabilities.items()},
        "ensemble": {name: interval((torch.stack(networks).mean(0).argmax(1) == targets).double())
                     for name, networks in members.items()},
    }


def findings(results):
    tests = {pair: stats.Difference(*values) for pair, values in results["difference"].items()}
    apart = {tuple(pair.split()): value for pair, value in results["disagreement"].items()}
    single, joint = results["accuracy"], results["ensemble"]
    same, other = ([value for (a, b), value in apart.items() if (a == b) == equal] for equal in (True, False))
    errors = [value for values in results["calibration"].values() for value in values]
    gain = [(joint[name][0] - single[name][0]) / 100 for name in single]

    def span(values):
        return f"{100 * min(values):.1f} to {100 * max(values):.1f}"

    return [
        (f"On the test images, batch normalization is {tests['bn gn'].size()} percentage points more accurate than "
         "group normalization, which has dropout as well. Its lead over layer normalization, "
         f"{tests['bn ln'].size()}, is not significant.", tests["bn gn"].significant and tests["bn gn"].estimate > 0 and
         not tests["bn ln"].significant and tests["bn ln"].estimate > 0),
        (f"Two networks with different normalizations disagree on {span(other)} % of the test images, two seeds of one "
         f"normalization on {span(same)} %: which images a network gets wrong depends little on the normalization.",
         max(other) - min(same) < 0.03),
        (f"Averaging the probabilities of three seeds raises accuracy by {span(gain)} percentage points.",
         min(gain) > 0.01),
        (f"The networks are well calibrated: the expected calibration error is {span(errors)} %.", max(errors) < 0.02),
    ]


def table(results):
    rows = [[LABELS.get(name, name), stats.Difference(*values).size(), percent(results["calibration"][name]),
             percent([results["disagreement"][f"{name} {name}"]]), stats.Difference(*results["ensemble"][name]).size()]
            for name, values in results["accuracy"].items()]
    rows += [[name, "", "", "", stats.Difference(*results["ensemble"][name]).size()] for name in ("one of each", "all")]
    head = ["", "test accuracy, %", "expected calibration error, %", "two seeds disagree, % of images",
            "ensemble of seeds, test accuracy, %"]
    pairs = []
    for pair, test in {pair: stats.Difference(*values) for pair, values in results["difference"].items()}.items():
        names = " - ".join(LABELS.get(name, name) for name in pair.split())
        pairs.append([names, bold_if(test.significant, test.text()), f"{test.p:.2g}",
                      percent([results["disagreement"][pair]])])
    between = ["", "difference, percentage points", "p", "the two disagree, % of images"]
    return f"{markdown(head, rows, '---:')}\n{markdown(between, pairs, '---:')}"
