"""What a normalization does.

Each norm takes from activations (N, C, H, W) the mean of a set of them, and divides by its standard deviation; they
differ in the set (Wu and He 2018, "Group Normalization", figure 2). Batch norm's is a channel in all images, so each
channel should leave it with mean 0 and deviation 1. Group and layer norm's are several channels of one image: together
those have mean 0 and deviation 1, but each on its own may keep its own mean and variance.
"""

import numpy
import torch
from torch import nn

import common
from studies.study import LABELS, markdown
from support import cifar10, files, plots, runs

LAYER, CHANNELS, IMAGES, BINS = "C5", 8, 128, 100
CUBE = (4, 6, 5)  # images, channels and positions of the plotted cube
SETTING = (f"{CHANNELS} channels of {LAYER} in the published networks of seed 0, {IMAGES} validation images; without "
           "the norm's own weight and bias")


def activations(folder, images):
    """Return input and output of LAYER's normalization in a saved network, (N, C, H, W) each, without weight and bias.

    Empty if the network has no normalization.
    """
    model, seen = common.load_model(folder), {}
    norm = getattr(model.get_submodule(LAYER), "norm", None)
    if norm is None:
        return seen
    for name, neutral in ("weight", 1.0), ("bias", 0.0):
        if getattr(norm, name, None) is not None:
            nn.init.constant_(getattr(norm, name), neutral)
    norm.register_forward_hook(lambda layer, inputs, output: seen.update(before=inputs[0], after=output))
    model.train()  # batch norm by the statistics of this batch
    for layer in model.modules():
        layer.training &= not isinstance(layer, nn.Dropout2d)
    with torch.no_grad():
        model(common.normalize(images))
    return {name: values.float() for name, values in seen.items()}


def measure():
    """Return histograms, means and deviations of single channels "before" and "after" the norm of each variant."""
    images, targets = cifar10.load("train")
    images, numbers = images[common.split_indices(targets)[1][:IMAGES]], {}
    for group in runs.published():
        variant = group[0]["variant"]
        for name, values in activations(files.RESULTS / variant, images).items():
            low, high = values.min().item(), values.max().item()
            channels = values[:, :CHANNELS].transpose(0, 1).flatten(1)  # (CHANNELS, N*H*W)
            numbers.setdefault(variant, {})[name] = {
                "low": low, "high": high, "counts": [channel.histc(BINS, low, high).tolist() for channel in channels],
                "means": channels.mean(1).tolist(), "deviations": channels.std(1).tolist()}
    return numbers


def shared_statistics(variant):
    """Return on which elements of a cube the output at the first depends, bool (N, C, H*W); None if it cannot run."""
    x = torch.randn(*CUBE, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    try:
        recipe = runs.load_script(variant)
        layer = recipe.norm(CUBE[1]) if recipe.groups is None else recipe.norm(CUBE[1], CUBE[1] // 2)
        layer.train()(x)[0, 0, 0].sum().backward()
    except Exception:  # any kind: the layer may be anything
        return None
    return x.grad.squeeze(3) != 0


def plot_cube(ax, marked, color):
    """Plot a bool tensor (into the page, across, down) as a cube of small cubes; the marked ones are colored."""
    voxels = marked.permute(1, 0, 2).flip(2).numpy()  # matplotlib's axes: across, into the page, up
    ax.voxels(voxels | True, facecolors=numpy.where(voxels, color, "#f2f2f2"), edgecolor="#999999", linewidth=0.3)
    ax.set(xlabel="channels C", ylabel="images N", zlabel="positions H·W", xticks=[], yticks=[], zticks=[])
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.labelpad = -12


def value_range(values):
    """Return "lowest to highest" of some numbers with two decimals, without a minus before zero."""
    low, high = (round(end, 2) + 0.0 for end in (min(values), max(values)))
    return f"{low:.2f} to {high:.2f}"


def plot(results):
    shown = [variant for variant in runs.variants() if variant in results]
    fig = plots.new_figure(9, 7.6 * len(shown) / 3)
    for row, variant in enumerate(shown):
        if (shared := shared_statistics(variant)) is not None:
            cube = fig.add_subplot(len(shown), 3, 3 * row + 1, projection="3d")
            plot_cube(cube, shared, plots.color_of(variant))
            cube.set_title(f"{LABELS.get(variant, variant)}: the colored elements\nare normalized together", fontsize=9)
        for column, (name, values) in enumerate(results[variant].items()):
            ax = fig.add_subplot(len(shown), 3, 3 * row + 2 + column)
            edges = numpy.linspace(values["low"], values["high"], BINS + 1)
            for counts in values["counts"]:
                ax.stairs(counts, edges)
            ax.set(yticks=[], xlabel="activation" if row == len(shown) - 1 else "")
            ax.set_title(f"{name}: channel means {value_range(values['means'])},\n"
                         f"deviations {value_range(values['deviations'])}", fontsize=9)
    return fig


def finding(results):
    means = {variant: results[variant]["after"]["means"] for variant in runs.variants() if variant in results}
    apart = [f"{max(values) - min(values):.2f} ({variant.upper()})" for variant, values in means.items()]
    return ("Batch norm gives every channel a mean of 0, group and layer norm only several channels together:\n"
            f"after the norm, channel means are up to {', '.join(apart)} apart")


def table(results):
    columns = [(when, what) for when in ("before", "after") for what in ("means", "deviations")]
    rows = [[LABELS.get(variant, variant), *(value_range(results[variant][when][what]) for when, what in columns)]
            for variant in runs.variants() if variant in results]
    return markdown(["channels of", *(f"{what} {when}" for when, what in columns)], rows, "---:")
