"""Skip connections: none, added or concatenated.

The assignment asks to try adding one layer to another. If a layer's input is added to its output, signals and gradients
have a direct path, and deep networks train better (He et al. 2016, "Deep Residual Learning for Image Recognition"). A
network of only 10 convolutions with normalization should need that little. If inputs are concatenated instead, every
later layer of a block uses the outputs again, so few filters make many channels (Huang et al. 2017, "Densely Connected
Convolutional Networks"): with so few parameters, that should help most. The blocks are C1 C2, C4 to C6, and C8 to C10.
All three networks have about as many parameters, and the recipe of the scripts, which was chosen for addition. Such
short runs favor what learns fast; results/tried.md has runs of an earlier recipe at full length.
"""

from studies import stats, study
from studies.study import SEEDS, SHORT, VARIANTS, accuracies, gaps, losses, markdown
from support import plots

WAYS = {  # how layers are connected -> flags
    "none": " --skip none",
    "add": "",
    "concat": " --skip concat --widths 16,16,32,16,16,16,32,16,16,16",
}
NAMES = {"none": "none", "add": "added", "concat": "concatenated"}
SETTING = ("10,000 training images, 10 epochs, 3 seeds; gap: training (without augmentation and dropout)\n"
           "minus validation accuracy; bars: 95 % confidence intervals of the means")
MEASURES = {"validation accuracy, %": accuracies, "validation loss": losses,
            "generalization gap, percentage points": gaps}


def plan():
    return {(variant, way, seed): (variant, f"{SHORT}{flags} --seed {seed}")
            for variant in VARIANTS for way, flags in WAYS.items() for seed in SEEDS}


def findings(results):
    effects = stats.main_effects({key: accuracies(group) for key, group in results.items()}, "add")
    none, concat = effects["none"], effects["concat"]
    return [
        (f"Without skip connections, validation accuracy is {none.size()} percentage points lower than with addition, "
         "averaged over the three normalizations.", none.significant and none.estimate < 0),
        (f"In these short runs, concatenation, with other widths, is {concat.size()} percentage points less accurate "
         "than addition.", concat.significant and concat.estimate < 0),
    ]


def table(results):
    size = [[NAMES[way], f"{results['bn', way][0]['parameters']:,}", f"{results['bn', way][0]['macs'] / 1e6:.1f}"]
            for way in WAYS]
    parts = [study.table(results, measure, name, NAMES, "add", digits=3 if measure is losses else 2)
             for name, measure in MEASURES.items()]
    return "\n".join([*parts, markdown(["skip connections", "parameters", "MACs per image, millions"], size, "---:")])


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 3)
    for ax, (name, measure) in zip(axes, MEASURES.items(), strict=True):
        study.plot_intervals(ax, {key: measure(group) for key, group in results.items()}, NAMES)
        ax.set_ylabel(name)
    axes[0].legend(fontsize=8)
    return fig
