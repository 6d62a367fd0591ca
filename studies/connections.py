"""Whether to add a layer to another, or to concatenate them.

The assignment asks to try adding one layer to another. Added to its output, a layer's input reaches later layers
unchanged, and gradients earlier ones: deep networks train better (He et al. 2016, "Deep Residual Learning for Image
Recognition"), but one of 10 convolutions with norms hardly needs that. Concatenated, outputs are used again by every
later layer of their block, so few filters make many channels (Huang et al. 2017, "Densely Connected Convolutional
Networks"): with so few parameters, that should help most. Those blocks are C1 C2, C4 to C6, and C8 to C10. All three
ways have about as many parameters; their widths and learning rates were chosen by validation. The runs with added
layers are those published, of another version of torch (2.15.0) than the others (2.14.1). The scripts add: to
concatenate takes longer, so it would have to be clearly more accurate for every norm.
"""

import statistics
import sys
import time

import torch

import common
from studies import study
from studies.study import SEEDS, accuracies, bold_if, gaps, losses, markdown, plot_lines
from support import cifar10, cli, machine, plots, runs
from support.plots import mean_and_sd

THIS = sys.modules[__name__]
VARIANTS = ("bn", "gn", "ln")
WAYS = {  # how layers are connected -> flags
    "none": "--skip none --widths 16,16,16,16,32,32,32,32,32,32",
    "add": "--skip add --widths 16,16,16,16,32,32,32,32,32,32",
    "concat": "--skip concat --widths 16,16,32,16,16,16,32,16,16,16",
}
NAMES = {"none": "unconnected", "add": "added", "concat": "concatenated"}
FLAGS = {(variant, way): flags for variant in VARIANTS for way, flags in WAYS.items()}
ROUNDS, STEPS = 7, 20  # of the timing, in which every network has its turn; the first round is not counted
SETTING = "all training images, 20 epochs, 3 seeds; bands: one standard deviation"


def plan():
    return {(*network, seed): (network[0], f"--no-test {flags} --seed {seed}")
            for network, flags in FLAGS.items() for seed in SEEDS}


def measure():
    """Return seconds per epoch of training steps and the machine; to measure again, delete connections.json."""
    if saved := study.measured(THIS):
        return saved
    images, targets = cifar10.load("train")
    index = common.split_indices(targets)[0]
    trainings = {}
    for (variant, way), flags in FLAGS.items():
        recipe, _ = cli.parse_args(runs.load_script(variant), flags.split())
        model = common.build_model(recipe).to(memory_format=torch.channels_last)
        seen = index[: STEPS * recipe.batch_size]
        trainings[f"{variant} {way}"] = common.Training(model, recipe, (images[seen], targets[seen]), seed=0)
    seconds = {name: [] for name in trainings}
    for _ in range(ROUNDS):
        for name, training in trainings.items():
            start = time.perf_counter()
            common.train_epoch(training, 1)
            steps_per_epoch = len(index) // training.recipe.batch_size
            seconds[name].append((time.perf_counter() - start) / STEPS * steps_per_epoch)
    return {"seconds": {name: rounds[1:] for name, rounds in seconds.items()},
            "machine": machine.summary(common.precision(torch.device("cpu")))}


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 3)
    by_place = {(variant, list(WAYS).index(way)): group for (variant, way), group in results.items()}
    measures = {"validation accuracy, %": accuracies, "validation loss": losses,
                "generalization gap (train - val), points": gaps}
    for ax, (name, values) in zip(axes, measures.items(), strict=True):
        plot_lines(ax, by_place, values)
        ax.set_ylabel(name)
        ax.set_xticks(range(len(WAYS)), NAMES.values())
    axes[0].legend()
    return fig


def relative_cost(seconds, variant, way):
    """Return the time of a step relative to added layers: the median of the ratios round by round."""
    pairs = zip(seconds[f"{variant} {way}"], seconds[f"{variant} add"], strict=True)
    return statistics.median(new / old for new, old in pairs)


def finding(results):
    def higher(values, way, reference):
        return ", ".join(variant.upper() for variant in VARIANTS if study.exceeds(
            values(results[variant, way]), values(results[variant, reference]))) or "no variant"

    def gains(way, reference):
        return (f"raises the accuracy of {higher(accuracies, way, reference)} "
                f"and lowers the loss of {higher(losses, reference, way)}")

    seconds = study.measured(THIS)["seconds"]
    cost = [relative_cost(seconds, variant, "concat") for variant in VARIANTS]
    return (f"Beyond the noise, adding layers {gains('add', 'none')};\n"
            f"concatenating them instead {gains('concat', 'add')}, "
            f"and takes {min(cost):.2f} to {max(cost):.2f} times as long")


def table(results):
    rows, timing = [], study.measured(THIS)
    for (variant, way), group in results.items():
        added, seconds = results[variant, "add"], timing["seconds"][f"{variant} {way}"]
        cells = [bold_if(study.differs(values(group), values(added)), mean_and_sd(values(group), text))
                 for values, text in ((accuracies, "{:.2f}"), (losses, "{:.3f}"), (gaps, "{:.2f}"))]
        rows.append([f"{study.LABELS.get(variant, variant)}, {NAMES[way]}", *cells, f"{group[0]['parameters']:,}",
                     f"{group[0]['macs'] / 1e6:.1f}", f"{statistics.median(seconds):.1f}",
                     f"{relative_cost(timing['seconds'], variant, way):.2f}"])
    head = ["", "validation accuracy, %", "validation loss", "generalization gap (train - val), points", "parameters",
            "MACs, M", "seconds per epoch of training steps", "relative to added"]
    return (markdown(head, rows, "---:") + "\nBold: differs from added layers by more than twice the standard "
            f"deviation. Seconds are medians of {ROUNDS - 1} rounds in which every network had its turn, on: "
            f"{timing['machine']}.\n")
