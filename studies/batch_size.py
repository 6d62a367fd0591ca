"""How small a batch may be.

Batch norm takes its means and variances from the batch: the fewer images, the noisier they are, so accuracy should
fall. Group and layer norm look at one image at a time, and shouldn't care. Figure 1 of Wu and He 2018, "Group
Normalization", shows that on ImageNet; there, each of 8 GPUs normalizes its own batch, and a step takes the gradient of
all 8, here of the one batch. Equal epochs are more steps with smaller batches: 20,000 of 2 images, 312 of 128. So the
gain of group and layer norm with smaller batches shows that they are undertrained with large ones.

Learning rates scale with the root of the batch size, and the EMA of the weights and of batch norm's running statistics
covers equally many images whatever the batch size.
"""

import itertools
import statistics

from studies import study
from studies.study import SEEDS, accuracies, differs, plot_lines
from support import plots

RATES = {"bn": (0.04, 0.5), "gn": (0.03, 0.3), "ln": (0.03, 0.3)}  # peak learning rates for batches of USUAL
SIZES, USUAL, SMALL = (2, 4, 8, 16, 32, 64, 128, 256), 128, 2
SETTING = ("10,000 training images, 4 epochs, 2 seeds, no dropout; learning rates scale with the root of the batch "
           "size,\nthe EMA (of BN's statistics too) covers equally many images")


def plan():
    cells = {}
    for variant, size, seed in itertools.product(RATES, SIZES, SEEDS[:2]):
        scale = size / USUAL
        max_lr, aux_lr = (rate * scale**0.5 for rate in RATES[variant])
        cells[variant, size, seed] = variant, (
            f"--train-images 10000 --epochs 4 --no-test --dropout 0 --batch-size {size} --max-lr {max_lr:.3g} "
            f"--aux-lr {aux_lr:.3g} --ema-decay {0.995**scale:.6g} --seed {seed}")
    return cells


def plot(results):
    fig, ax = plots.new_axes(9, 4.2, 1)
    plot_lines(ax, results, lambda group: [100 - value for value in accuracies(group)])
    ax.set_xscale("log", base=2)
    ax.set_xticks(SIZES, SIZES)
    ax.invert_xaxis()
    ax.set(xlabel="images per batch", ylabel="validation error, %")
    ax.legend()
    return fig


def finding(results):
    changes = []
    for variant in RATES:
        usual, small = (accuracies(results[variant, size]) for size in (USUAL, SMALL))
        noise = "" if differs(usual, small) else " (noise)"
        changes.append(f"{variant.upper()} {statistics.mean(small) - statistics.mean(usual):+.1f}{noise}")
    return f"Batches of {SMALL} instead of {USUAL}, in points of accuracy: {', '.join(changes)}"


def table(results):
    columns = {size: str(size) for size in SIZES}
    return (study.table(results, accuracies, "validation accuracy, %, in batches of", columns, reference=USUAL) +
            f"\nBold: differs from batches of {USUAL} by more than twice the standard deviation.\n")
