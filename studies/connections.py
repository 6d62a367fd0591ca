"""Whether to add a layer to another, or to concatenate them.

The assignment asks to try adding one layer to another. Added to its output, a layer's input reaches later layers
unchanged, and gradients earlier ones: deep networks train better (He et al. 2016, "Deep Residual Learning for Image
Recognition"), but one of 10 convolutions with normalization hardly needs that. Concatenated, outputs are used again by
every later layer of their block, so few filters make many channels (Huang et al. 2017, "Densely Connected Convolutional
Networks"): with so few parameters, that should help most. Those blocks are C1 C2, C4 to C6, and C8 to C10. All three
ways have about as many parameters, and the recipe of the scripts, which add.
"""

from studies import stats, study
from studies.study import SEEDS, accuracies, gaps, losses, markdown
from support import plots

WAYS = {  # how layers are connected -> flags
    "none": " --skip none",
    "add": "",
    "concat": " --skip concat --widths 16,16,32,16,16,16,32,16,16,16",
}
NAMES = {"none": "unconnected", "add": "added", "concat": "concatenated"}
FLAGS = "--train-images 10000 --epochs 10 --no-test"
SETTING = "10,000 training images, 10 epochs, 3 seeds; bars: 95 % confidence intervals of the means"
MEASURES = {"validation accuracy, %": accuracies, "validation loss": losses,
            "generalization gap (train - val), percentage points": gaps}


def plan():
    return {(variant, way, seed): (variant, f"{FLAGS}{flags} --seed {seed}")
            for variant in ("bn", "gn", "ln") for way, flags in WAYS.items() for seed in SEEDS}


def findings(results):
    cells = {name: {key: measure(group) for key, group in results.items()} for name, measure in MEASURES.items()}
    effects = stats.holm({(name, way, other): stats.main_effect(cells[name], way, other)
                          for name in ("validation accuracy, %", "validation loss")
                          for way, other in (("add", "none"), ("concat", "add"))})
    added, concatenated = (effects["validation accuracy, %", way, other]
                           for way, other in (("add", "none"), ("concat", "add")))
    return [
        (f"Adding layers raises validation accuracy by {added.size()} percentage points, averaged over the three "
         "normalizations.", added.significant and added.estimate > 0),
        (f"Concatenating them instead raises it by another {concatenated.size()}.",
         concatenated.significant and concatenated.estimate > 0),
    ]


def table(results):
    size = [[NAMES[way], f"{results['bn', way][0]['parameters']:,}", f"{results['bn', way][0]['macs'] / 1e6:.1f}"]
            for way in WAYS]
    parts = [study.table(results, measure, name, NAMES, "add", digits=3 if measure is losses else 2)
             for name, measure in MEASURES.items()]
    return "\n".join([*parts, markdown(["layers", "parameters", "MACs per image, millions"], size, "---:")])


def plot(results):
    fig, axes = plots.new_axes(9, 3.6, 3)
    for ax, (name, measure) in zip(axes, MEASURES.items(), strict=True):
        study.plot_intervals(ax, {key: measure(group) for key, group in results.items()}, NAMES)
        ax.set_ylabel(name)
    axes[0].legend(fontsize=8)
    return fig
