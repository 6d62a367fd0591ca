"""Which norm keeps its accuracy on altered images?

Batch norm normalizes altered images by means and variances of the unaltered ones that it was trained on; group and
layer norm by those of each image itself. So where an alteration moves or stretches what a layer sees, as less contrast
does, batch norm should suffer most. Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations"; Schneider et al. 2020, "Improving robustness against common corruptions by covariate
shift adaptation": batch norm recovers much of the loss with statistics of the altered images.
"""

import statistics

import torch

import common
from studies import study
from studies.study import LINES, Study, draw_line, emphasized
from studies.variants import SCRIPTS, published_models
from support import pictures
from support.corruptions import add_gaussian_noise, blur, brighten, darken, reduce_contrast
from support.runs import beyond_noise, markdown, percent
from support.storage import RunError

UNALTERED = "as they are"
CORRUPTIONS = {  # what is done to test images in [0, 1], how much of it, and in what unit
    "brighter": (brighten, (0.1, 0.2, 0.4), "white added"), "darker": (darken, (0.1, 0.2, 0.4), "white taken"),
    "less contrast": (reduce_contrast, (0.3, 0.6, 0.8), "share taken"),
    "noise": (add_gaussian_noise, (0.02, 0.05, 0.1), "deviation"), "blur": (blur, (0.5, 0.8, 1.2), "deviation, pixels"),
}


def measure():
    """Test accuracy of the published weights: corruption -> a list over its strengths of {variant: a list over the
    seeds}. Raises RunError without weights of two seeds."""
    (images, targets), models = common.load_data("test"), published_models()
    if set(models) != set(SCRIPTS) or min(map(len, models.values())) < 2:
        raise RunError("there are no weights of two seeds or more of every variant: type `make seeds`")

    def accuracy(images):
        return {variant: [common.evaluate(model, images, targets)[1] for model in seeds]
                for variant, seeds in models.items()}

    reached = {UNALTERED: [accuracy(images)]}
    for name, (corrupt, strengths, _) in CORRUPTIONS.items():
        altered = (255 * corrupt(images / 255, strength) for strength in strengths)
        reached[name] = [accuracy(images.round().clamp(0, 255).to(torch.uint8)) for images in altered]
    return reached


def draw(found):
    picture, panels = pictures.figure(9, 3.6, len(CORRUPTIONS))
    for axes, (name, (_, strengths, unit)) in zip(panels, CORRUPTIONS.items(), strict=True):
        for variant in SCRIPTS:
            values = [[100 * share for share in reached[variant]] for reached in found[UNALTERED] + found[name]]
            draw_line(axes, variant, [0, *strengths], values, marker="o", markersize=3)
        axes.set(xlabel=f"{name}:\n{unit}", ylim=(0, 100))
        axes.grid(alpha=0.3)
        if axes is not panels[0]:
            axes.set_yticklabels([])
    panels[0].set_ylabel("test accuracy, %")
    panels[0].legend(loc="lower left")
    return picture


def finding(found):
    strongest = [found[name][-1] for name in CORRUPTIONS]
    kept = {variant: [statistics.mean(of_seed) for of_seed in zip(*(part[variant] for part in strongest), strict=True)]
            for variant in SCRIPTS}
    ranking = sorted(kept, key=lambda variant: statistics.mean(kept[variant]), reverse=True)
    return "Mean accuracy at the strongest of each: " + ", ".join(f"{v.upper()} {percent(kept[v])} %" for v in ranking)


def row(name, reached):
    best = max(SCRIPTS, key=lambda variant: statistics.mean(reached[variant]))
    return [name, *(emphasized(percent(values), reached[best] is not values and beyond_noise(values, reached[best]))
                    for values in reached.values())]


def table(found):
    rows = [row(UNALTERED, found[UNALTERED][0])]
    for name, (_, strengths, unit) in CORRUPTIONS.items():
        rows += [row(f"{name}, {strength} ({unit})", reached)
                 for strength, reached in zip(strengths, found[name], strict=True)]
    return (markdown(["test accuracy, %", *(LINES[variant] for variant in SCRIPTS)], rows, "---:") +
            "\nBold: differs beyond the noise from the best of its row.\n")


STUDY = Study(
    "corruptions", __doc__,
    "the published networks, the 10,000 test images; bands: one standard deviation over the seeds",
    finding, table, draw, measure=measure)

if __name__ == "__main__":
    study.main(STUDY)
