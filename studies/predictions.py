"""Which normalization is best on the test images.

A difference of a few tenths of a percentage point can come from the seeds, or from the choice of 10,000 images. The
intervals account for both; those of ensembles for the images alone. Variants are compared on the same images: those
that both get right, or both wrong, do not affect the difference. The recipe was developed mostly with batch
normalization (results/tried.md), which may favor it.

The expected calibration error is the mean absolute difference between confidence and accuracy over 15 bins of
confidence, weighted by the number of images in each (Guo et al. 2017, "On Calibration of Modern Neural Networks"). An
ensemble averages the probabilities of several networks, which helps more if they disagree more (Dietterich 2000,
"Ensemble Methods in Machine Learning").
"""

import itertools
import math
import statistics

import torch

from studies import stats
from studies.study import LABELS, bold_if, markdown
from support import files, runs
from support.plots import percent

BINS = 15  # of confidence, of equal width
SETTING = ("3 seeds, 10,000 test images; intervals and p-values account for both, intervals of ensembles for images\n"
           "alone; the variance over seeds is pooled over the normalizations")


def calibration_error(probabilities, targets):
    """Return the expected calibration error, in [0, 1], of probabilities (N, 10)."""
    confidence, predicted = probabilities.max(1)
    correct, bins = (predicted == targets).float(), (confidence * BINS).long().clamp(max=BINS - 1)
    return sum((correct[bins == b] - confidence[bins == b]).sum().abs().item() for b in range(BINS)) / len(targets)


def variances(correct):
    """Return the variance of accuracy over seeds, the part of it that the finite number of images explains, and its df.

    `correct` has a float tensor (seeds, N) per variant: a two-way layout without replication. Pooled over variants.
    """
    total, answers, df = [0.0], [0.0], 0
    for values in (values for values in correct if len(values) > 1):
        (seeds, count), means = values.shape, values.mean(1, keepdim=True)
        rest = values - values.mean(0) - means + values.mean()
        total.append(means.var().item())
        answers.append((rest.square().sum() / ((seeds - 1) * (count - 1) * count)).item())
        df += seeds - 1
    return sum(total) / max(1, len(total) - 1), sum(answers) / max(1, len(answers) - 1), df


def interval(by_image, seeds=(0.0, 0.0, 0), weight=0.0):
    """Return the mean of values per image (N,), in percent, as an Estimate.

    `seeds` are variances(); weight * (the first - the second) is added to the variance over images. Degrees of freedom:
    Satterthwaite 1946, "An Approximate Distribution of Estimates of Variance Components".
    """
    total, answers, df = seeds
    variance = (by_image.var() / len(by_image)).item() + weight * max(0.0, total - answers)
    df = df * (variance / (weight * total)) ** 2 if weight * total else math.inf
    return stats.from_error(100 * by_image.mean().item(), 100 * variance**0.5, df)


def measure():
    """Return statistics of the saved predictions of the published runs, {name: values by variant or pair}."""
    probabilities, targets = {}, None
    for group in runs.published():
        saved = [runs.load_tensors(files.RESULTS / run["run"], "predictions") for run in group]
        targets = saved[0]["targets"]
        probabilities[group[0]["variant"]] = torch.stack([one["logits"].float().softmax(1) for one in saved])
    labels = {variant: values.argmax(2) for variant, values in probabilities.items()}  # (seeds, N)
    correct = {variant: (values == targets).double() for variant, values in labels.items()}
    seeds, weights = variances(correct.values()), {variant: 1 / len(values) for variant, values in correct.items()}

    def disagreement(a, b):
        pairs = itertools.product(labels[a], labels[b]) if a != b else itertools.combinations(labels[a], 2)
        apart = [(x != y).double().mean().item() for x, y in pairs]
        return statistics.mean(apart) if apart else None

    pairs = list(itertools.combinations(labels, 2))
    differences = {f"{a} {b}": interval(correct[a].mean(0) - correct[b].mean(0), seeds, weights[a] + weights[b])
                   for a, b in pairs}
    members = {name: list(values) for name, values in probabilities.items()}
    members |= {"one of each, seed 0": [values[0] for values in probabilities.values()],
                "all networks": [one for values in probabilities.values() for one in values]}
    return {
        "accuracy": {name: interval(values.mean(0), seeds, weights[name]) for name, values in correct.items()},
        "difference": stats.holm(differences),
        "disagreement": {f"{a} {b}": disagreement(a, b) for a, b in [*zip(labels, labels, strict=True), *pairs]},
        "calibration": {name: [calibration_error(one, targets) for one in values]
                        for name, values in probabilities.items()},
        "ensemble": {name: interval((torch.stack(networks).mean(0).argmax(1) == targets).double())
                     for name, networks in members.items()},
    }


def findings(results):
    group, layer = (stats.Estimate(*results["difference"][pair]) for pair in ("bn gn", "bn ln"))
    apart = {tuple(pair.split()): value for pair, value in results["disagreement"].items()}
    same, other = ([value for (a, b), value in apart.items() if (a == b) == equal] for equal in (True, False))
    if None in same:
        return []  # a variant has one seed
    errors = [value for values in results["calibration"].values() for value in values]
    gain = [results["ensemble"][name][0] / 100 - values[0] / 100 for name, values in results["accuracy"].items()]

    def span(values):
        return f"{100 * min(values):.1f} to {100 * max(values):.1f}"

    return [
        (f"On the test images, batch normalization is more accurate than group normalization by {group.size()} "
         f"percentage points, and than layer normalization by {layer.size()}.",
         min(group.estimate, layer.estimate) > 0 and group.significant and layer.significant),
        (f"On average, two networks with different normalizations predict different classes for {span(other)} % of the "
         f"test images, two seeds of one normalization for {span(same)} %.", min(other) > min(same)),
        (f"An ensemble of all networks of one normalization is {span(gain)} percentage points more accurate than its "
         "members on average.", min(gain) > 0.01),
        (f"Single networks are well calibrated: expected calibration error {span(errors)} % each.", max(errors) < 0.02),
    ]


def table(results):
    rows = [[LABELS.get(name, name), stats.Estimate(*values).size(), percent(results["calibration"][name]),
             percent([results["disagreement"][f"{name} {name}"]]), stats.Estimate(*results["ensemble"][name]).size()]
            for name, values in results["accuracy"].items()]
    rows += [[name, "", "", "", stats.Estimate(*values).size()] for name, values in results["ensemble"].items()
             if name not in results["accuracy"]]
    head = ["", "test accuracy, %", "expected calibration error, %", "two seeds predict different classes, %",
            "ensemble, test accuracy, %"]
    pairs = []
    for pair, values in results["difference"].items():
        test = stats.Estimate(*values)
        names = " - ".join(LABELS.get(name, name) for name in pair.split())
        pairs.append([names, bold_if(test.significant, test.text()), f"{test.p:.2g}",
                      percent([results["disagreement"][pair]])])
    between = ["", "difference, percentage points", "p (Holm)", "the two predict different classes, %"]
    return f"{markdown(head, rows, '---:')}\n{markdown(between, pairs, '---:')}\nBold: significant.\n"
