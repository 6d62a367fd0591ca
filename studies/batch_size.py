"""How small may a batch be?

Batch norm takes its means and variances from the batch: the fewer images, the noisier they are, so accuracy should
fall. Group and layer norm look at one image at a time, and shouldn't care. Figure 1 of Wu and He 2018, "Group
Normalization", shows that on ImageNet; there, each of 8 GPUs normalizes its own batch, and a step takes the gradient of
all 8, here of the one batch. As many images in smaller batches are more steps, which may help a training this short.

Rates go by the root of the batch size, and the moving average of weights covers as many images, whatever the batch
size. It averages batch norm's running statistics too, so that they cover as many images; on their own, with momentum
0.1, they would cover some 10 batches.
"""

import statistics

import common
from studies import study
from studies.study import SEEDS, Study, accuracies, draw_lines
from support import pictures
from support.runs import beyond_noise

VARIANTS, SIZES, USUAL, SMALL = ("bn", "gn", "ln"), (2, 4, 8, 16, 32, 64, 128, 256), 128, 2


def flags(variant, size, seed):
    script = common.script_of(variant)
    scale = size / script.batch_size
    rates = f"--max-lr {script.max_lr * scale**0.5:.3g} --aux-lr {script.aux_lr * scale**0.5:.3g}"
    return (f"--limit 10000 --epochs 4 --no-test --dropout 0 --batch-size {size} {rates} "
            f"--ema {script.ema**scale:.6g} --seed {seed}")


TRAININGS = {(variant, size, seed): (variant, flags(variant, size, seed))
             for variant in VARIANTS for size in SIZES for seed in SEEDS[:2]}


def draw(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    draw_lines(axes, found, lambda group: [100 - value for value in accuracies(group)])
    axes.set_xscale("log", base=2)
    axes.set_xticks(SIZES, SIZES)
    axes.invert_xaxis()
    axes.set(xlabel="images in a batch", ylabel="validation error, %")
    axes.legend()
    return picture


def finding(found):
    changes = []
    for variant in VARIANTS:
        usual, small = (accuracies(found[variant, size]) for size in (USUAL, SMALL))
        noise = "" if beyond_noise(usual, small) else " (noise)"
        changes.append(f"{variant.upper()} {statistics.mean(small) - statistics.mean(usual):+.1f}{noise}")
    return f"Batches of {SMALL} instead of {USUAL}, in points of accuracy: {', '.join(changes)}"


def table(found):
    labels = {size: str(size) for size in SIZES}
    return (study.table(found, accuracies, "validation accuracy, %, in batches of", labels, than=USUAL) +
            f"\nBold: differs beyond the noise from batches of {USUAL}.\n")


STUDY = Study(
    "batch_size", __doc__,
    "10,000 training images, 4 epochs, 2 seeds, no dropout; rates go by the root of the batch size,\n"
    "the moving average (of BN's statistics too) covers equally many images",
    finding, table, draw, trainings=TRAININGS)

if __name__ == "__main__":
    study.main(STUDY)
