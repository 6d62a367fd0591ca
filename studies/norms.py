"""What does a norm do?

Each norm takes from activations (N, C, H, W) the mean of a set of them, and divides by its standard deviation; they
differ in the set (Wu and He 2018, "Group Normalization", figure 2). Batch norm's is a channel in all images, so each
channel should leave it with mean 0 and deviation 1. Group and layer norm's are several channels of one image: together
those have mean 0 and deviation 1, but each on its own may keep a mean and a width of its own.
"""

import numpy
import torch
from torch import nn

import common
from studies import study
from studies.study import LINES, Study
from studies.variants import SCRIPTS, load_model
from support import pictures
from support.runs import markdown, value_range

LAYER, CHANNELS, IMAGES, BINS = "C5", 8, 128, 100
CUBE = (4, 6, 5)  # images, channels and positions of the drawn cube


def activations(variant, images):
    """What goes into the norm of LAYER, and the same normalized, but not scaled or shifted: (N, C, H, W) each."""
    model, seen = load_model(common.RESULTS / variant), {}
    norm = model.get_submodule(f"{LAYER}.norm")
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    norm.register_forward_hook(lambda layer, inputs, output: seen.update(before=inputs[0], after=output))
    with torch.no_grad():
        model.train(variant == "bn").forward(common.normalize(images))  # BN by this batch's statistics; no dropout yet
    return {name: values.float() for name, values in seen.items()}


def measure():
    """Histograms, means and deviations of single channels, "before" and "after" the norm of each variant."""
    images, targets = common.load_data("train")
    images, numbers = images[common.split_indices(targets)[1][:IMAGES]], {}
    for variant in SCRIPTS:
        numbers[variant] = {}
        for name, values in activations(variant, images).items():
            low, high = values.min().item(), values.max().item()
            channels = values[:, :CHANNELS].transpose(0, 1).flatten(1)  # (CHANNELS, N*H*W)
            numbers[variant][name] = {
                "low": low, "high": high, "counts": [channel.histc(BINS, low, high).tolist() for channel in channels],
                "means": channels.mean(1).tolist(), "deviations": channels.std(1).tolist()}
    return numbers


def index_set(variant):
    """Which elements of a drawn cube (N, C, H*W) are normalized together with its front upper one."""
    together = torch.zeros(CUBE, dtype=torch.bool)
    together[{"bn": (slice(None), 0), "gn": (0, slice(CUBE[1] // 3)), "ln": 0}[variant]] = True
    return together


def draw(found):
    picture = pictures.empty(9, 7.6)
    for row, variant in enumerate(SCRIPTS):
        cube = picture.add_subplot(3, 3, 3 * row + 1, projection="3d")
        labels = ("images N", "channels C", "positions H·W")
        pictures.draw_cube(cube, index_set(variant), labels, pictures.COLOURS[variant])
        cube.set_title(f"{LINES[variant]}: the coloured elements\nshare a mean and a variance", fontsize=9)
        for column, (name, values) in enumerate(found[variant].items()):
            axes = picture.add_subplot(3, 3, 3 * row + 2 + column)
            edges = numpy.linspace(values["low"], values["high"], BINS + 1)
            for counts in values["counts"]:
                axes.stairs(counts, edges)
            axes.set(yticks=[], xlabel="activation" if row == 2 else "")
            axes.set_title(f"{name}: channel means {value_range(values['means'])},\n"
                           f"deviations {value_range(values['deviations'])}", fontsize=9)
    return picture


def finding(found):
    apart = [f"{max(parts['after']['means']) - min(parts['after']['means']):.2f} ({variant.upper()})"
             for variant, parts in found.items()]
    return ("Batch norm gives every channel a mean of 0, the others only several channels together:\n"
            f"after the norm, channel means are up to {', '.join(apart)} apart")


def table(found):
    columns = [(when, what) for when in ("before", "after") for what in ("means", "deviations")]
    rows = [[LINES[variant], *(value_range(parts[when][what]) for when, what in columns)]
            for variant, parts in found.items()]
    return markdown(["channels of", *(f"{what} {when}" for when, what in columns)], rows, "---:")


STUDY = Study(
    "norms", __doc__,
    f"{CHANNELS} channels of {LAYER} in the published networks of seed 0, {IMAGES} validation images; without the "
    "norm's own scale and shift", finding, table, draw, measure=measure)

if __name__ == "__main__":
    study.main(STUDY)
