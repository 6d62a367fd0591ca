"""How signals and gradients pass through an untrained network.

In a plain network without normalization, each layer multiplies the standard deviation of activations by some factor,
and that of gradients on the way back: unless the factors are near 1, both vanish or explode (He et al. 2015, "Delving
Deep into Rectifiers"). Normalization sets the scale in each layer, whatever the filters. Skip connections help, too.
"""

import statistics

import torch
import torch.nn.functional as F
from torch import nn

import common
from studies.study import LABELS, NO_NORM, SEEDS, VARIANTS, plot_line
from support import cifar10, plots, runs

IMAGES, SAME = 128, "same"  # SAME: without normalization, from the filters of the networks with it
NAMES = LABELS | {SAME: "no norm, PyTorch's default initialization", NO_NORM: "no norm, LeCun initialization"}
SETTING = (f"untrained networks of {len(SEEDS)} seeds, {IMAGES} training images; all with skip connections; outputs: "
           "after the activation, before the input is added;\nmax pooling after c3 and c7 passes the gradient on "
           "to one position of four, which about halves its RMS; bands: one standard deviation;\n"
           "left: the lines of the three normalizations coincide; right: those of group and layer norm almost do")


def through(line, recipe, seed, images, targets):
    """Return {layer: [standard deviation of its output, RMS of the gradient of the loss there]} of a fresh network."""
    torch.manual_seed(seed)
    model, outputs = common.build_model(recipe.replace(norm=None) if line == NO_NORM else recipe).train(), {}
    for name, layer in model.named_children():
        if line == SAME and hasattr(layer, "norm"):
            layer.norm = nn.Identity()
        if isinstance(layer, nn.Sequential):
            layer.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
    loss = F.cross_entropy(model(common.normalize(images)), targets)
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    return {name: [output.std().item(), gradient.square().mean().sqrt().item()]
            for (name, output), gradient in zip(outputs.items(), gradients, strict=True)}


def measure():
    """Return {line: {layer: [a pair as in through() for each seed]}}."""
    images, targets = (values[:IMAGES] for values in cifar10.load("train"))
    recipes = {group[0]["variant"]: runs.load_script(group[0]["variant"]) for group in runs.published()}
    first, results = next(iter(recipes.values())), {}
    for line, recipe in (recipes | {NO_NORM: first, SAME: first}).items():
        passes = [through(line, recipe, seed, images, targets) for seed in SEEDS]
        results[line] = {layer: [values[layer] for values in passes] for layer in passes[0]}
    return results


def findings(results):
    first, *_, last = results["bn"]

    def mean(line, quantity, layer):
        return statistics.mean(pair[quantity] for pair in results[line][layer])

    kept = {line: mean(line, 0, last) / mean(line, 0, first) for line in results}
    arrives = {line: 100 * mean(SAME, 1, first) / mean(line, 1, first) for line in VARIANTS}
    return [
        ("With each of the three normalizations, the standard deviation of layer outputs is about the same in all "
         "layers.", all(0.8 < kept[line] < 1.25 for line in arrives)),
        ("Without normalization, the standard deviation depends on the initialization. With PyTorch's default, which "
         f"the normalized networks use, it is {100 * kept[SAME]:.0f} % as large at {last} as at {first}, and the RMS "
         f"gradient w.r.t. the output of {first} is {arrives['bn']:.0f} % as large as with batch, {arrives['gn']:.0f} "
         f"% as large as with group and {arrives['ln']:.0f} % as large as with layer normalization.",
         kept[SAME] < 0.2 and max(arrives.values()) < 30),
        (f"With LeCun initialization, nothing vanishes: the standard deviation at {last} is "
         f"{kept[NO_NORM]:.1f} times that at {first}, and the RMS gradient w.r.t. the output of {first} about as "
         "large as with batch normalization.",
         kept[NO_NORM] > 1 and 0.8 < mean(NO_NORM, 1, first) / mean("bn", 1, first) < 1.25),
    ]


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 2)
    layers = list(results[SAME])
    for ax, quantity, title in ((axes[0], 0, "standard deviation of layer outputs"),
                                (axes[1], 1, "RMS of gradients w.r.t. layer outputs")):
        for line, values in results.items():
            by_layer = [[pair[quantity] for pair in values[layer]] for layer in layers]
            plot_line(ax, line.replace(SAME, NO_NORM), range(len(layers)), by_layer, title=NAMES.get(line, line),
                      marker="o", markersize=3, linestyle=":" if line == SAME else "-")
        ax.set_yscale("log")
        ax.set_xticks(range(len(layers)), layers)
        ax.grid(alpha=0.3)
        ax.set(ylabel=title, xlabel="layer")
    axes[0].set_ylim(top=40)
    axes[0].legend(loc="upper left", fontsize=7)
    return fig
