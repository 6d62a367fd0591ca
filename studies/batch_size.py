"""How small a batch may be.

Batch normalization takes its means and variances from the batch: the fewer images, the noisier they are. Group and
layer normalization look at one image at a time, and are not affected (Wu and He 2018, "Group Normalization", figure 1).
A smaller batch changes more than statistics, though: the number of steps and the noise of the gradient. So here each
batch has 128 images, and is split into ghost batches of 2 to 128 images, each normalized with its own means and
variances, as each of several GPUs does with its own images (Hoffer et al. 2017, "Train longer, generalize better").
Nothing else differs; the momentum of the running averages is scaled with the size of ghost batches, so they average
over equally many images.

Separately, the trained networks of bn.py, gn.py and ln.py are evaluated in batches of different sizes. There, batch
normalization uses the statistics of the batch instead of its running averages: that shows how much the noisy statistics
of small batches harm.
"""

import copy
import dataclasses

import torch
from torch import nn

import common
from studies import stats
from studies.study import LABELS, SEEDS, VARIANTS, markdown, plot_line
from support import cifar10, files, machine, plots, runs

SIZES, BATCH = (2, 4, 8, 16, 32, 64, 128), 128
IMAGES, EPOCHS = 10_000, 4
SETTING = ("left: trained networks of 3 seeds; 4,992 validation images (a multiple of 128), BN with batch statistics;\n"
           f"right: new networks, {len(SEEDS)} seeds for each size, {IMAGES:,} training images, {EPOCHS} epochs, no "
           f"dropout;\nbatches of {BATCH} are split into ghost batches; dashed: 2 and 128 alone; bands: one SD")


class GhostBatches(nn.Module):
    """Apply a normalization to `size` images of a batch at a time in training: (N, C, H, W) -> the same."""

    def __init__(self, norm, size):
        super().__init__()
        self.norm, self.size = norm, size
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum *= size / BATCH  # running averages are updated after each ghost batch

    def forward(self, x):
        return torch.cat([self.norm(part) for part in x.split(self.size)]) if self.training else self.norm(x)


def trained_in_ghost_batches(variant, size, seed, device):
    """Return the validation accuracy of a network whose ghost batches in training have `size` images."""
    script = runs.load_script(variant)
    recipe = dataclasses.replace(script, epochs=EPOCHS, batch_size=BATCH, dropout=0,
                                 norm=lambda *args: GhostBatches(script.norm(*args), size))
    torch.manual_seed(seed)
    model = common.build_model(recipe).to(device, memory_format=torch.channels_last)
    images, targets = (values.to(device) for values in cifar10.load("train"))
    train, val = common.split_indices(targets)
    training = common.Training(model, recipe, (images[train[:IMAGES]], targets[train[:IMAGES]]), seed)
    model.load_state_dict(common.train(training, (images[val], targets[val])))
    return common.evaluate(model, images[val], targets[val])[1]


@torch.no_grad()
def by_batch_statistics(model, images, targets, size):
    """Return the accuracy of a network in batches of `size` images, a divisor of 128, that give BN its statistics."""
    model = copy.deepcopy(model).eval()
    for layer in model.modules():
        layer.training = isinstance(layer, nn.BatchNorm2d)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: len(images) // BATCH * BATCH]
    with common.autocast(images.device):
        predicted = torch.cat([model(common.normalize(images[index])).argmax(1) for index in order.split(size)])
    return (predicted == targets[order]).float().mean().item()


def measure():
    """Return accuracies over seeds, {"evaluated" or "trained": {variant: {size: list}}}; two sizes for GN and LN."""
    device = machine.find_device("auto")
    images, targets = (values.to(device) for values in cifar10.load("train"))
    val = common.split_indices(targets)[1]
    models = {group[0]["variant"]: [common.load_model(files.RESULTS / run["run"]).to(device) for run in group]
              for group in runs.published()}
    sizes = {variant: SIZES if variant == "bn" else (SIZES[0], BATCH) for variant in models}
    evaluated = {variant: {size: [by_batch_statistics(model, images[val], targets[val], size) for model in seeds]
                           for size in sizes[variant]} for variant, seeds in models.items()}
    trained = {variant: {size: [trained_in_ghost_batches(variant, size, seed, device) for seed in SEEDS]
                         for size in sizes[variant]} for variant in models if variant in VARIANTS}
    return {"evaluated": evaluated, "trained": trained}


def findings(results):
    evaluated, trained = ({int(size): [100 * value for value in values] for size, values in results[part]["bn"].items()}
                          for part in ("evaluated", "trained"))
    by_network = {"lost": [a - b for a, b in zip(evaluated[2], evaluated[BATCH], strict=True)]}
    lost = stats.contrast(by_network, {"lost": 1})  # pairs: the same networks
    tests = {size: test for (_, size), test in stats.against({("bn", size): trained[size] for size in trained},
                                                             BATCH).items()}
    unlike = [size for size in tests if tests[size].significant]
    flat = 100 * max(max(values) - min(values) for variant in ("gn", "ln")
                     for values in zip(*results["evaluated"][variant].values(), strict=True))
    return [
        ("If evaluation of the trained networks uses the statistics of each batch instead of the running averages, "
         f"validation accuracy with batch normalization is {lost.size(1)} percentage points lower for batches of 2 "
         "than for batches of 128.", lost.significant and lost.estimate < 0),
        ("With group and layer normalization, the size of the batch makes no difference: images do not affect each "
         "other.", flat < 0.05),
        ("If each training batch of 128 is split into ghost batches of 2, each normalized alone, batch normalization "
         f"is {tests[2].size(1)} percentage points less accurate than without splitting; with ghost batches of "
         f"{max(unlike, default=2) * 2} or more, no significant difference from training without splitting "
         f"was found ({IMAGES:,} training images, {EPOCHS} epochs, {len(SEEDS)} seeds).",
         tests[2].significant and tests[2].estimate < 0 and max(unlike) < 64),
    ]


def table(results):
    parts, titles = [], ("by the size of batches in evaluation", "by the size of ghost batches in training")
    for part, title in zip(("evaluated", "trained"), titles, strict=True):
        rows = [[LABELS.get(variant, variant), *(plots.mean_and_sd([100 * value for value in values[str(size)]])
                 if str(size) in values else "" for size in SIZES)] for variant, values in results[part].items()]
        parts.append(markdown([f"validation accuracy, %, {title}", *map(str, SIZES)], rows, "---:"))
    return "\n".join([*parts, "Tests: in evaluation, paired t-tests of the same networks; in training, a standard "
                      "deviation pooled over the row of batch norm. Group and layer norm: sizes 2 and 128 alone; "
                      "differences in training come from rounding errors, which training amplifies.\n"])


def plot(results):
    fig, axes = plots.new_axes(9, 4, 2)
    for ax, variants in zip(axes, results.values(), strict=True):
        for variant, values in variants.items():
            groups = [[100 * value for value in group] for group in values.values()]
            plot_line(ax, variant, list(map(int, values)), groups, marker="o", markersize=3,
                      linestyle="-" if variant == "bn" else "--")
        ax.set_xscale("log", base=2)
        ax.set_xticks(SIZES, SIZES)
        ax.grid(alpha=0.3)
    axes[0].set(xlabel="images per batch, in evaluation", ylabel="validation accuracy, %")
    axes[1].set(xlabel="images per ghost batch, in training", ylabel="validation accuracy, %")
    axes[0].legend()
    return fig
