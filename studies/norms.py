"""What a normalization does.

Each normalization subtracts from activations (N, C, H, W) the mean of a set of them, and divides by their standard
deviation; they differ in the set (Wu and He 2018, "Group Normalization", figure 2). For batch normalization, the set is
one channel in all images of the batch, so after it, each channel has mean 0 and standard deviation 1. For group and
layer normalization, it is several or all channels of one image: together, those have mean 0 and standard deviation 1.
Instance normalization, for which the set is one channel of one image, is in the table below.

If all values of a set are multiplied by the same positive factor, the output does not change (Ba et al. 2016, "Layer
Normalization", table 1). If a filter is multiplied by a factor, so is its output channel. So batch normalization is
invariant to the scale of each filter, group normalization to a common scale of the filters of a group, and layer
normalization only to a common scale of all filters of the layer. Group and layer normalization are also invariant to
the multiplication of an image by a positive factor.
"""

import numpy
import torch
from matplotlib import cm
from torch import nn

import common
from studies.study import LABELS, VARIANTS, markdown
from support import cifar10, files, plots, runs

LAYER, CHANNELS, IMAGES, BINS, FACTOR = "C5", 8, 128, 100, 10
CUBE = (4, 6, 5)  # images, channels and positions of the plotted cube
SETTING = (f"trained networks of seed 0, {IMAGES} validation images; left: elements that share a mean and a variance;\n"
           f"middle and right: histograms of the first {CHANNELS} channels of {LAYER} (group norm: one group),\n"
           "one line per channel, in training mode, before the learned weight and bias")
CHANGES = {"filter": "one filter × 10: output, mean over 16 filters", "filters": "all filters × 10: output",
           "image": "one image × 10: its own output", "others": "one image × 10: output of the other images"}


def convolved(model, name, images):
    """Return the output of a convolution in a network, before normalization, (N, C, H, W)."""
    seen = []
    model.get_submodule(name).conv.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    model(common.normalize(images))
    return seen[0]


def histograms(values):
    """Return histograms, means and deviations of single channels of activations (N, C, H, W)."""
    low, high = values.min().item(), values.max().item()
    channels = values[:, :CHANNELS].transpose(0, 1).flatten(1)  # (CHANNELS, N*H*W)
    return {"low": low, "high": high, "counts": [channel.histc(BINS, low, high).tolist() for channel in channels],
            "means": channels.mean(1).tolist(), "deviations": channels.std(1).tolist()}


def changes(norm, x):
    """Return how much scaling x (N, C, H, W) by FACTOR changes norm(x): RMS of the change / RMS of norm(x)."""
    def change(scaled, seen=slice(None)):
        before, after = norm(x)[seen], norm(scaled)[seen]
        return ((after - before).square().mean() / before.square().mean()).sqrt().item()

    one_filter = [torch.cat([x[:, :c], FACTOR * x[:, c:c + 1], x[:, c + 1:]], 1) for c in range(x.shape[1])]
    one_image = torch.cat([FACTOR * x[:1], x[1:]])
    return {"filter": sum(map(change, one_filter)) / len(one_filter), "filters": change(FACTOR * x),
            "image": change(one_image, slice(0, 1)), "others": change(one_image, slice(1, None))}


def measure():
    """Return {variant: {"before" and "after": histograms(), "changes": those of C1}}; "in": instance norm, in ln."""
    images, targets = cifar10.load("train")
    images, numbers, instance = images[common.split_indices(targets)[1][:IMAGES]], {}, {}
    for variant in [group[0]["variant"] for group in runs.published()]:
        model, recipe = common.load_model(files.RESULTS / variant), runs.load_script(variant)
        if recipe.norm and hasattr(model.C1, "norm"):
            with torch.no_grad():
                x, first = convolved(model, LAYER, images), convolved(model, "C1", images)
                norm, norm_of_first = (common.build_norm(recipe, values.shape[1]).train() for values in (x, first))
                numbers[variant] = {"before": histograms(x), "after": histograms(norm(x)),
                                    "changes": changes(norm_of_first, first)}
                if variant == "ln":
                    instance["in"] = {"changes": changes(nn.GroupNorm(first.shape[1], first.shape[1]), first)}
    return numbers | instance


def shared_statistics(variant):
    """Return a mask of the inputs that the first output element depends on, bool (N, C, H*W); None if it cannot run."""
    x = torch.randn(*CUBE, 1, generator=torch.Generator().manual_seed(0), requires_grad=True)
    try:
        recipe = runs.load_script(variant)
        recipe = recipe if recipe.groups is None else recipe.replace(groups=CUBE[1] // 2)
        common.build_norm(recipe, CUBE[1]).train()(x)[0, 0, 0].sum().backward()
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
    fig = plots.new_figure(9, 8.4 * len(shown) / 3)
    for row, variant in enumerate(shown):
        if (shared := shared_statistics(variant)) is not None:
            cube = fig.add_subplot(len(shown), 3, 3 * row + 1, projection="3d")
            plot_cube(cube, shared, plots.color_of(variant))
            cube.set_title(f"{LABELS.get(variant, variant)}: the colored elements\nare normalized together", fontsize=9)
        for column, name in enumerate(("before", "after")):
            values = results[variant][name]
            ax = fig.add_subplot(len(shown), 3, 3 * row + 2 + column)
            edges = numpy.linspace(values["low"], values["high"], BINS + 1)
            for counts, color in zip(values["counts"], cm.viridis(numpy.linspace(0, 0.9, CHANNELS)), strict=True):
                ax.stairs(counts, edges, color=color)
            ends = [mean + sign * 4 * deviation for sign in (-1, 1) for part in ("before", "after") for mean, deviation
                    in zip(results[variant][part]["means"], results[variant][part]["deviations"], strict=True)]
            ax.set(yticks=[], xlim=(min(ends), max(ends)), ylabel="frequency",
                   xlabel=("input" if name == "before" else "output") + " of the normalization")
            ax.set_title(f"channel means {value_range(values['means'])},\n"
                         f"standard deviations {value_range(values['deviations'])}", fontsize=9)
    return fig


def findings(results):
    means = {variant: results[variant]["after"]["means"] for variant in VARIANTS}
    apart = {variant: max(values) - min(values) for variant, values in means.items()}
    bn, gn, ln, instance = (results[name]["changes"] for name in ("bn", "gn", "ln", "in"))
    return [
        ("In training, batch normalization gives each channel a mean of 0, before the learned bias. Group and layer "
         f"normalization do not: the means of {CHANNELS} channels of {LAYER} differ by up to {apart['gn']:.2f} "
         f"(group) and {apart['ln']:.2f} (layer), in units of the standard deviation of a whole group or layer.",
         max(map(abs, means["bn"])) < 0.01 and min(apart["gn"], apart["ln"]) > 0.3),
        ("In training, all four normalizations (instance normalization included) are invariant to a common scale of "
         "all filters of a layer, but only batch and instance normalization to the scale of a single filter.",
         all(values["filters"] < 0.01 for values in (bn, gn, ln, instance)) and
         max(bn["filter"], instance["filter"]) < 0.01 < 0.1 < min(gn["filter"], ln["filter"])),
        (f"In training, multiplying one standardized image by {FACTOR} does not change the output of group, layer and "
         "instance normalization. With batch normalization, it changes the output for that image and for the others.",
         max(values[key] for values in (gn, ln, instance) for key in ("image", "others")) < 0.01 and
         min(bn["image"], bn["others"]) > 0.1),
    ]


def table(results):
    shown = {variant: results[variant] for variant in (*runs.variants(), "in") if variant in results}
    names = LABELS | {"in": "instance norm, swapped into the trained layer-norm network"}
    scaled = [[text, *(f"{100 * values['changes'][key]:.1f} %" for values in shown.values())]
              for key, text in CHANGES.items()]
    head = ["change of the normalized output of C1", *(names.get(name, name) for name in shown)]
    return f"{markdown(head, scaled, '---:')}\nRMS of the change / RMS of the output; training mode.\n"
