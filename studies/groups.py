"""From layer norm to instance norm: how many groups?

Group norm with one group is layer norm, with a group for each channel instance norm. Wu and He 2018, "Group
Normalization", found 32 groups, or 16 channels in each, best for a large network on ImageNet, and both ends of the
family worse. Instance norm (Ulyanov et al. 2016) takes from each channel its mean over an image, much of what global
average pooling would have seen of it, so it should fall far behind. Batch norm and no norm stand beside for comparison.
"""

import statistics

from studies import study
from studies.study import LINES, NO_NORM, SEEDS, Study, accuracies, draw_line, draw_lines, emphasized
from support import pictures
from support.runs import beyond_noise, markdown, mean_and_sd

GROUPS = {1: "1", 2: "2", 4: "4", 8: "8", "channels": "one per channel"}
OTHERS = {"bn": "", NO_NORM: "--norm none"}
FLAGS = "--limit 15000 --epochs 10 --no-test --dropout 0"
TRAININGS = {
    ("gn", groups, seed): ("gn", f"{FLAGS} --groups {groups} --seed {seed}") for groups in GROUPS for seed in SEEDS
} | {(line, None, seed): ("bn", f"{FLAGS} {flags} --seed {seed}") for line, flags in OTHERS.items() for seed in SEEDS}


def draw(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    family = {("gn", place): found["gn", groups] for place, groups in enumerate(GROUPS)}
    draw_lines(axes, family, accuracies)
    for line in OTHERS:
        draw_line(axes, line, [0, len(GROUPS) - 1], 2 * [accuracies(found[line, None])], linestyle="--")
    labels = {1: "1\n(layer norm)", "channels": "one per channel\n(instance norm)"}
    axes.set_xticks(range(len(GROUPS)), [labels.get(groups, label) for groups, label in GROUPS.items()])
    axes.set(xlabel="groups of channels", ylabel="validation accuracy, %")
    axes.legend()
    return picture


def best_of(found):
    """The number of groups of the highest mean accuracy, and the accuracies there."""
    best = max(GROUPS, key=lambda groups: statistics.mean(accuracies(found["gn", groups])))
    return best, accuracies(found["gn", best])


def finding(found):
    _, values = best_of(found)
    equals = [label for groups, label in GROUPS.items() if not beyond_noise(accuracies(found["gn", groups]), values)]
    text = f"Best numbers of groups, within the noise: {', '.join(equals)} ({mean_and_sd(values)} %)"
    return text + "".join(f"; {LINES[line]} {mean_and_sd(accuracies(found[line, None]))} %" for line in OTHERS)


def table(found):
    best, values = best_of(found)
    groups = [accuracies(group) for group in found.values()]
    cells = [emphasized(mean_and_sd(group), beyond_noise(group, values)) for group in groups]
    head = ["groups", *GROUPS.values(), *(LINES[line] for line in OTHERS)]
    return (markdown(head, [["validation accuracy, %", *cells]], "---:") +
            f"\nBold: differs beyond the noise from the best of the family, {GROUPS[best]}.\n")


STUDY = Study(
    "groups", __doc__,
    "15,000 training images, 10 epochs, 3 seeds, no dropout; bands: one standard deviation",
    finding, table, draw, trainings=TRAININGS)

if __name__ == "__main__":
    study.main(STUDY)
