"""Skip connections: none, added or concatenated.

The assignment asks to try adding the output of one layer to that of another. If a layer's input is added to its output,
signals and gradients have a direct path, and deep networks train better (He et al. 2016, "Deep Residual Learning for
Image Recognition"). With only ten normalized convolutions, this network should hardly need skip connections. If inputs
are concatenated instead, each layer also sees the outputs of earlier ones, so a small number of filters gives many
input channels (Huang et al. 2017, "Densely Connected Convolutional Networks").

The input is added to the output of C2, c3, C4, C6, c7, C8, C9 and C10, which have as many input as output channels; or
input and output of C2, C4, C5, C6, C8, C9 and C10 are concatenated. All three networks have about the same number of
parameters, so with concatenation, C5, C6, C8, C9 and C10 have half as many filters, and c3 twice as many. Otherwise,
the recipe is that of bn.py, gn.py and ln.py, which was tuned for networks with addition.
"""

from studies import stats, study
from studies.study import VARIANTS, accuracies, gaps, losses, markdown
from support import plots

WAYS = {  # how layers are connected -> flags
    "none": " --skip none",
    "add": "",
    "concat": " --skip concat --widths 16,16,32,16,16,16,32,16,16,16",
}
NAMES = {"none": "none", "add": "added", "concat": "concatenated"}
SEEDS = (0, 1, 2)
SETTING = ("45,000 training images, 20 epochs, 3 seeds; gap: training (without augmentation and dropout)\n"
           "minus validation accuracy; bars: 95 % confidence intervals, pooled standard deviation")
MEASURES = {"validation accuracy, %": accuracies, "validation loss": losses,
            "generalization gap, percentage points": gaps}


def plan():
    return {(variant, way, seed): (variant, f"--no-test{flags} --seed {seed}")
            for variant in VARIANTS for way, flags in WAYS.items() for seed in SEEDS}


def findings(results):
    cells = {key: accuracies(group) for key, group in results.items()}
    tests, apart = stats.against(cells, "add"), stats.interaction(cells) < stats.LEVEL
    none, concat = ({variant: tests[variant, way] for variant in VARIANTS} for way in ("none", "concat"))
    macs = results["bn", "concat"][0]["macs"] / results["bn", "add"][0]["macs"] - 1
    return [
        (f"Without skip connections, group normalization loses {none['gn'].size()} and layer normalization "
         f"{none['ln'].size()} percentage points of validation accuracy; for batch normalization, no significant "
         "difference was found.", apart and not none["bn"].significant and
         all(none[v].significant and none[v].estimate < 0 for v in ("gn", "ln"))),
        (f"With concatenation instead of addition, batch normalization gains {concat['bn'].size()} percentage "
         f"points for {macs:.0%} more MACs; for group and layer normalization, no significant difference was found.",
         apart and concat["bn"].estimate > 0 and [concat[v].significant for v in VARIANTS] == [True, False, False]),
    ]


def table(results):
    size = [[NAMES[way], f"{results['bn', way][0]['parameters']:,}", f"{results['bn', way][0]['macs'] / 1e6:.1f}"]
            for way in WAYS]
    parts = [study.table(results, measure, name, NAMES, "add", "connection", digits=3 if measure is losses else 2)
             for name, measure in MEASURES.items()]
    return "\n".join([*parts, markdown(["skip connections", "parameters", "MACs per image, millions"], size, "---:")])


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 3)
    for ax, (name, measure) in zip(axes, MEASURES.items(), strict=True):
        study.plot_intervals(ax, {key: measure(group) for key, group in results.items()}, NAMES)
        ax.set_ylabel(name)
    axes[0].legend(fontsize=8)
    return fig
