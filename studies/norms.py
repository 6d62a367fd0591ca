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
from studies.study import LINES, Study, colour_of, name_of, published
from studies.trainings import variants
from support import pictures
from support.runs import markdown, value_range

LAYER, CHANNELS, IMAGES, BINS = "C5", 8, 128, 100
CUBE = (4, 6, 5)  # images, channels and positions of the drawn cube


def activations(variant, images):
    """What goes into the norm of LAYER, and the same normalized, but not scaled or shifted: (N, C, H, W) each. Empty if
    the network has no norm."""
    model, seen = common.load_model(common.RESULTS / variant), {}
    norm = getattr(model.get_submodule(LAYER), "norm", None)
    if norm is None:
        return seen
    for name, neutral in ("weight", 1.0), ("bias", 0.0):
        if getattr(norm, name, None) is not None:
            nn.init.constant_(getattr(norm, name), neutral)
    norm.register_forward_hook(lambda layer, inputs, output: seen.update(before=inputs[0], after=output))
    model.train()  # batch norm by this batch's statistics
    for layer in model.modules():
        layer.training &= not isinstance(layer, nn.Dropout2d)
    with torch.no_grad():
        model(common.normalize(images))
    return {name: values.float() for name, values in seen.items()}


def measure():
    """Histograms, means and deviations of single channels, "before" and "after" the norm of each variant."""
    images, targets = common.load_data("train")
    images, numbers = images[common.split_indices(targets)[1][:IMAGES]], {}
    for group in published():
        variant = group[0].metrics["variant"]
        for name, values in activations(variant, images).items():
            low, high = values.min().item(), values.max().item()
            channels = values[:, :CHANNELS].transpose(0, 1).flatten(1)  # (CHANNELS, N*H*W)
            numbers.setdefault(variant, {})[name] = {
                "low": low, "high": high, "counts": [channel.histc(BINS, low, high).tolist() for channel in channels],
                "means": channels.mean(1).tolist(), "deviations": channels.std(1).tolist()}
    return numbers


def index_set(variant):
    """Which elements of a drawn cube (N, C, H*W) the norm makes depend on each other: those on which its front upper
    one does. Groups are of two channels. None if the norm can't take so few channels."""
    recipe = common.script_of(variant)
    x = torch.randn(*CUBE, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    try:
        layer = recipe.norm(CUBE[1]) if recipe.groups is None else recipe.norm(CUBE[1], CUBE[1] // 2)
        layer.train()(x)[0, 0, 0].sum().backward()
    except Exception:  # of whatever kind: it is somebody's own layer, and made for other numbers of channels
        return None
    return x.grad.squeeze(3) != 0


def draw(found):
    shown = [variant for variant in variants() if variant in found]
    picture = pictures.empty(9, 7.6 * len(shown) / 3)
    for row, variant in enumerate(shown):
        if (together := index_set(variant)) is not None:
            cube = picture.add_subplot(len(shown), 3, 3 * row + 1, projection="3d")
            labels = ("images N", "channels C", "positions H·W")
            pictures.draw_cube(cube, together, labels, colour_of(variant))
            share = "share a mean and a variance" if variant in LINES else "are normalized together"
            cube.set_title(f"{name_of(variant)}: the coloured elements\n{share}", fontsize=9)
        for column, (name, values) in enumerate(found[variant].items()):
            axes = picture.add_subplot(len(shown), 3, 3 * row + 2 + column)
            edges = numpy.linspace(values["low"], values["high"], BINS + 1)
            for counts in values["counts"]:
                axes.stairs(counts, edges)
            axes.set(yticks=[], xlabel="activation" if row == len(shown) - 1 else "")
            axes.set_title(f"{name}: channel means {value_range(values['means'])},\n"
                           f"deviations {value_range(values['deviations'])}", fontsize=9)
    return picture


def finding(found):
    shown = [variant for variant in variants() if variant in found]
    apart = [f"{max(found[variant]['after']['means']) - min(found[variant]['after']['means']):.2f} ({variant.upper()})"
             for variant in shown]
    others = "the others" if shown == ["bn", "gn", "ln"] else "group and layer norm"
    return (f"Batch norm gives every channel a mean of 0, {others} only several channels together:\n"
            f"after the norm, channel means are up to {', '.join(apart)} apart")


def table(found):
    columns = [(when, what) for when in ("before", "after") for what in ("means", "deviations")]
    rows = [[name_of(variant), *(value_range(found[variant][when][what]) for when, what in columns)]
            for variant in variants() if variant in found]
    return markdown(["channels of", *(f"{what} {when}" for when, what in columns)], rows, "---:")


STUDY = Study(
    "norms", __doc__,
    f"{CHANNELS} channels of {LAYER} in the published networks of seed 0, {IMAGES} validation images; without the "
    "norm's own scale and shift", finding, table, draw, measure=measure)

if __name__ == "__main__":
    study.main(STUDY)
