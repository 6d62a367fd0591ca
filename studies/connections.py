"""Add a layer to another, or concatenate them?

The assignment asks to try adding one layer to another. Added to its output, a layer's input reaches later layers
unchanged, and gradients earlier ones: deep networks train better (He et al. 2016, "Deep Residual Learning for Image
Recognition"), but one of 10 convolutions with norms hardly needs that. Concatenated, outputs are used again by every
later layer of their block, so few filters make many channels (Huang et al. 2017, "Densely Connected Convolutional
Networks"): with so few parameters, that should help most. Those blocks are C1 C2, C4 to C6, and C8 to C10; c3 P1 and c7
P2, a 1x1 convolution and a pool, are their transitions. All three ways have about as many parameters; widths and rates
of each were chosen by validation. What a step costs is measured side by side, since trainings run on different days.

The scripts add: to concatenate takes longer, so it would have to be more accurate beyond the noise for every norm.
"""

import statistics
import time

import torch

import common
from studies import study
from studies.study import SEEDS, Study, accuracies, draw_lines, emphasized, gaps, losses, name_of
from studies.trainings import plan, pooled
from support import machine, pictures
from support.runs import beyond_noise, clearly_higher, markdown, mean_and_sd

VARIANTS = ("bn", "gn", "ln")
WAYS = {  # how layers are connected -> flags
    "none": "--connections none --widths 16,16,16,16,32,32,32,32,32,32",
    "add": "--connections add --widths 16,16,16,16,32,32,32,32,32,32",
    "concatenate": "--connections concatenate --widths 16,16,32,16,16,16,32,16,16,16",
}
RATES = {  # where validation chose others than the script's, which are those of layers that are added
    ("bn", "none"): "--max-lr 0.03 --aux-lr 0.3", ("bn", "concatenate"): "--max-lr 0.03 --aux-lr 0.3",
    ("gn", "none"): "--max-lr 0.02 --aux-lr 0.2", ("ln", "none"): "--max-lr 0.02 --aux-lr 0.2",
}
NAMES = {"none": "unconnected", "add": "added", "concatenate": "concatenated"}
FLAGS = {(variant, way): f"{flags} {RATES.get((variant, way), '')}".rstrip()
         for variant in VARIANTS for way, flags in WAYS.items()}
TRAININGS = {(*network, seed): (network[0], f"--no-test {flags} --seed {seed}")
             for network, flags in FLAGS.items() for seed in SEEDS}
ROUNDS, STEPS = 7, 20  # of the measurement, in which every network has its turn; the first round is not counted


def measure():
    """Seconds of an epoch's steps, a list over rounds, by "variant way"; and on what machine."""
    images, targets = common.load_data("train")
    index = common.split_indices(targets)[0]
    trainings = {f"{variant} {way}": fresh_training(plan(variant, flags)[1], images[index], targets[index])
                 for (variant, way), flags in FLAGS.items()}
    seconds = {name: [] for name in trainings}
    for _ in range(ROUNDS):
        for name, training in trainings.items():
            start = time.perf_counter()
            common.train_epoch(training, 1)
            steps = len(index) // training.recipe.batch_size
            seconds[name].append((time.perf_counter() - start) / STEPS * steps)
    return {"seconds": {name: rounds[1:] for name, rounds in seconds.items()}, "machine": machine.in_words()}


def fresh_training(recipe, images, targets):
    """A training whose epochs have STEPS steps."""
    torch.manual_seed(0)
    model = common.build_model(recipe).to(memory_format=torch.channels_last)
    seen = STEPS * recipe.batch_size
    return common.Training(model, recipe, [images[:seen], targets[:seen]], seed=0)


def read():
    """The metrics of the trainings and "cost", what measure() gave; None if something is missing."""
    groups, cost = pooled("connections", TRAININGS), study.measured("connections")
    return {"groups": groups, "cost": cost} if groups and cost else None


def draw(found):
    picture, panels = pictures.figure(9, 3.8, 3)
    by_place = {(variant, list(WAYS).index(way)): group for (variant, way), group in found["groups"].items()}
    measures = {"validation accuracy, %": accuracies, "validation loss": losses,
                "training less validation accuracy, points": gaps}
    for axes, (label, values) in zip(panels, measures.items(), strict=True):
        draw_lines(axes, by_place, values)
        axes.set_ylabel(label)
        axes.set_xticks(range(len(WAYS)), NAMES.values())
    panels[0].legend()
    return picture


def higher(found, values, way, than):
    """The variants whose values are beyond the noise higher in one way than in another, as text."""
    groups = found["groups"]
    return ", ".join(variant.upper() for variant in VARIANTS
                     if clearly_higher(values(groups[variant, way]), values(groups[variant, than]))) or "no variant"


def times_as_long(found, variant, way):
    """As an epoch of added layers: the median of the ratios round by round."""
    seconds = found["cost"]["seconds"]
    return statistics.median(
        new / old for new, old in zip(seconds[f"{variant} {way}"], seconds[f"{variant} add"], strict=True))


def finding(found):
    def gains(way, than):
        return (f"raises the accuracy of {higher(found, accuracies, way, than)} "
                f"and lowers the loss of {higher(found, losses, than, way)}")

    cost = [times_as_long(found, variant, "concatenate") for variant in VARIANTS]
    return (f"Beyond the noise, adding layers {gains('add', 'none')};\n"
            f"concatenating them instead {gains('concatenate', 'add')}, "
            f"and takes {min(cost):.2f} to {max(cost):.2f} times as long")


def table(found):
    rows = []
    for (variant, way), group in found["groups"].items():
        added, first = found["groups"][variant, "add"], group[0]
        cells = [emphasized(mean_and_sd(values(group), text), beyond_noise(values(group), values(added)))
                 for values, text in ((accuracies, "{:.2f}"), (losses, "{:.3f}"), (gaps, "{:.2f}"))]
        seconds = statistics.median(found["cost"]["seconds"][f"{variant} {way}"])
        rows.append([f"{name_of(variant)}, {NAMES[way]}", *cells, f"{first['parameters']:,}",
                     f"{first['multiply_adds'] / 1e6:.1f}", f"{seconds:.1f}",
                     f"{times_as_long(found, variant, way):.2f}"])
    head = ["", "validation accuracy, %", "validation loss", "training less validation, points", "parameters",
            "multiply-adds, M", "seconds of an epoch's steps", "times as long as added"]
    return (markdown(head, rows, "---:") + "\nBold: differs beyond the noise from layers that are added. Seconds are "
            f"medians of {ROUNDS - 1} rounds in which every network had its turn, on: {found['cost']['machine']}.\n")


STUDY = Study(
    "connections", __doc__,
    "all training images, 20 epochs, 3 seeds; bands: one standard deviation",
    finding, table, draw, trainings=TRAININGS, measure=measure, read=read)

if __name__ == "__main__":
    study.main(STUDY)
