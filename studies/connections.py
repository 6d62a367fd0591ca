"""Add a layer to another, or concatenate them?

The assignment asks to try adding one layer to another. Added to its output, a layer's input reaches later layers
unchanged, and gradients earlier ones: deep networks train better (He et al. 2016, "Deep Residual Learning for Image
Recognition"), but one of 10 convolutions with norms hardly needs that. Concatenated, outputs are used again by every
later layer of their block, so few filters make many channels (Huang et al. 2017, "Densely Connected Convolutional
Networks"): with so few parameters, that should help most. Those blocks are C1 C2, C4 to C6, and C8 to C10; c3 P1 and c7
P2, a 1x1 convolution and a pool, are their transitions. All three ways have about as many parameters; widths and
rates were chosen by validation.
"""

import statistics

from studies import study
from studies.study import SEEDS, Study, accuracies, draw_lines, emphasized, gaps, losses, name_of
from support import pictures
from support.runs import beyond_noise, clearly_higher, markdown, mean_and_sd

VARIANTS = ("bn", "gn", "ln")
WAYS = {  # how layers are connected -> flags
    "none": "--connections none --widths 16,16,16,16,32,32,32,32,32,32",
    "add": "--connections add --widths 16,16,16,16,32,32,32,32,32,32",
    "concatenate": "--connections concatenate --widths 16,16,32,16,16,16,32,16,16,16",
}
NAMES = {"none": "unconnected", "add": "added", "concatenate": "concatenated"}
RATES = {"bn": "--max-lr 0.025 --aux-lr 0.3", "gn": "--max-lr 0.03 --aux-lr 0.3", "ln": "--max-lr 0.03 --aux-lr 0.3"}
TRAININGS = {(variant, way, seed): (variant, f"--no-test {flags} {RATES[variant]} --seed {seed}")
             for variant in VARIANTS for way, flags in WAYS.items() for seed in SEEDS}


def draw(found):
    picture, panels = pictures.figure(9, 3.8, 3)
    by_place = {(variant, list(WAYS).index(way)): group for (variant, way), group in found.items()}
    measures = {"validation accuracy, %": accuracies, "validation loss": losses,
                "training less validation accuracy, points": gaps}
    for axes, (label, measure) in zip(panels, measures.items(), strict=True):
        draw_lines(axes, by_place, measure)
        axes.set_ylabel(label)
        axes.set_xticks(range(len(WAYS)), NAMES.values())
    panels[0].legend()
    return picture


def better(found, way, than):
    """The variants whose accuracy is beyond the noise higher in one way than in another, or "no variant"."""
    return ", ".join(
        variant.upper() for variant in VARIANTS
        if clearly_higher(accuracies(found[variant, way]), accuracies(found[variant, than]))) or "no variant"


def finding(found):
    return (f"Adding layers raises the validation accuracy of {better(found, 'add', 'none')}; "
            f"concatenating them\nraises it further for {better(found, 'concatenate', 'add')}, "
            f"and lowers it for {better(found, 'add', 'concatenate')}")


def table(found):
    rows = []
    for (variant, way), group in found.items():
        added, first = found[variant, "add"], group[0]
        cells = [emphasized(mean_and_sd(measure(group), text), beyond_noise(measure(group), measure(added)))
                 for measure, text in ((accuracies, "{:.2f}"), (losses, "{:.3f}"), (gaps, "{:.2f}"))]
        seconds = statistics.median(value for metrics in group for value in metrics["history"]["seconds"])
        rows.append([f"{name_of(variant)}, {NAMES[way]}", *cells, f"{first['parameters']:,}",
                     f"{first['multiply_adds'] / 1e6:.1f}", f"{seconds:.1f}"])
    head = ["", "validation accuracy, %", "validation loss", "training less validation, points", "parameters",
            "multiply-adds, M", "seconds an epoch"]
    return markdown(head, rows, "---:") + "\nBold: differs beyond the noise from layers that are added.\n"


STUDY = Study(
    "connections", __doc__,
    "all training images, 20 epochs, 3 seeds; bands: one standard deviation",
    finding, table, draw, trainings=TRAININGS)

if __name__ == "__main__":
    study.main(STUDY)
