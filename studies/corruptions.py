"""Which norm keeps its accuracy on altered images?

Batch norm normalizes altered images by means and variances of the unaltered ones that it was trained on; group and
layer norm by those of each image itself. So where an alteration moves or stretches what a layer sees, as less contrast
does, batch norm should suffer most, and get much of it back when its means and variances are taken again from the
altered images (Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation").
Which norm wins depends on what is altered, so it is told by kind; names and severities are those of Hendrycks and
Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", and colour is added.
"""

import statistics

import numpy

import common
from studies import study
from studies.study import Study, draw_line, emphasized, name_of, published_models
from support import pictures
from support.corruptions import CORRUPTIONS, SEVERITIES
from support.layers import with_statistics_of
from support.runs import beyond_noise, clearly_higher, markdown, percent
from support.storage import RunError

UNALTERED, ADAPTED = "as they are", " adapted"
ALL = {name: how for kind in CORRUPTIONS.values() for name, how in kind.items()}


def adapted(model, images):
    """A copy of a network whose batch norms have their means and variances from these images; None without any."""
    return with_statistics_of(model, (common.normalize(batch) for batch in images.split(500)))


def measure():
    """Test accuracy of the published weights: corruption -> a list over its strengths of {line: a list over the seeds}.
    Raises RunError without weights of two seeds of a variant."""
    (images, targets), models = common.load_data("test"), published_models()
    models = {variant: seeds for variant, seeds in models.items() if len(seeds) > 1}
    if not models:
        raise RunError("there is no variant with weights of two seeds or more: type `make seeds`")

    def accuracy(images):
        lines = dict(models)
        for variant, seeds in models.items():
            again = [adapted(model, images) for model in seeds]
            lines |= {variant + ADAPTED: again} if all(again) else {}
        return {line: [common.evaluate(model, images, targets)[1] for model in seeds] for line, seeds in lines.items()}

    return {UNALTERED: [accuracy(images)]} | {
        name: [accuracy(corrupt(images, strength)) for strength in strengths]
        for name, (corrupt, strengths) in ALL.items()}


def label(line):
    return f"{name_of(line.removesuffix(ADAPTED))}{', statistics of the altered images' * line.endswith(ADAPTED)}"


def draw(found):
    single = [name for name, (_, strengths) in ALL.items() if len(strengths) == 1]
    panels = {name: (found[UNALTERED] + found[name], [0, *(SEVERITIES if name != "hue" else ALL[name][1])])
              for name in ALL if name not in single}
    panels["colour"] = found[UNALTERED] + [found[name][0] for name in single], range(1 + len(single))
    picture, grid = pictures.figure(9, 5.6, 4, 2)
    for axes, (name, (reached, xs)) in zip(numpy.ravel(grid), panels.items(), strict=True):
        for line in found[UNALTERED][0]:
            values = [[100 * share for share in group[line]] for group in reached]
            draw_line(axes, line.removesuffix(ADAPTED), xs, values, marker="o", markersize=3, title=label(line),
                      linestyle="--" if line.endswith(ADAPTED) else "-")
        axes.set(title=name, xlabel="severity" if name != "hue" else "turn of the colour circle", ylim=(0, 100))
        axes.grid(alpha=0.3)
    axes.set_xlabel("")
    axes.set_xticks(xs, [UNALTERED, *single], fontsize=7)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %")
    picture.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return picture


def finding(found):
    parts, led = [], []
    for kind, names in CORRUPTIONS.items():
        severest = [found[name][-1] for name in names]
        kept = {line: [statistics.mean(of_seed) for of_seed in zip(*(part[line] for part in severest), strict=True)]
                for line in found[UNALTERED][0]}
        plain = [line for line in kept if not line.endswith(ADAPTED)]
        best = max(plain, key=lambda line: statistics.mean(kept[line]))
        equals = [line.upper() for line in plain if line == best or not beyond_noise(kept[line], kept[best])]
        parts.append(f"{kind} {', '.join(equals)}")
        if any(clearly_higher(kept[line], kept[best]) for line in kept if line not in plain):
            led.append(kind)
    return (f"Best at the severest of each kind, within the noise:\n{'; '.join(parts)}.\n"
            f"Batch norm with statistics of the altered images is better than all of them at {', '.join(led) or '-'}")


def row(name, reached):
    plain = [line for line in reached if not line.endswith(ADAPTED)]
    best = max(plain, key=lambda line: statistics.mean(reached[line]))
    return [name, *(emphasized(percent(values), line in plain and line != best and beyond_noise(values, reached[best]))
                    for line, values in reached.items())]


def table(found):
    rows = [row(UNALTERED, found[UNALTERED][0])]
    for name, (_, strengths) in ALL.items():
        rows += [row(f"{name}, {strength:g}" if len(strengths) > 1 else name, reached)
                 for strength, reached in zip(strengths, found[name], strict=True)]
    return (markdown(["test accuracy, %", *map(label, found[UNALTERED][0])], rows, "---:") +
            "\nBold: differs beyond the noise from the best of its row, the adapted aside.\n")


STUDY = Study(
    "corruptions", __doc__,
    "the published networks, the 10,000 test images, severities 1, 3, 5 of 5; bands: one standard deviation over seeds",
    finding, table, draw, measure=measure)

if __name__ == "__main__":
    study.main(STUDY)
