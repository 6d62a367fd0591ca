"""Which normalization keeps its accuracy on corrupted images.

Batch normalization normalizes corrupted images by means and variances of the clean ones that it was trained on; group
and layer normalization by those of each image itself. So where a corruption shifts or scales what a layer sees, as
lower contrast does, batch normalization should suffer most. It should recover when its means and variances are
estimated again from the corrupted images (Schneider et al. 2020, "Improving robustness against common corruptions by
covariate shift adaptation"); it has then seen all 10,000 test images, without labels. Names and severities are those of
CIFAR-10-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations").
"""

import copy
import statistics

import torch
from torch import nn
from torchvision.transforms.v2 import functional

import common
from studies import stats
from studies.study import LABELS, bold_if, markdown, plot_line
from support import cifar10, files, plots, runs
from support.files import RunError
from support.plots import percent

SEVERITIES = (1, 3, 5)  # of five
SETTING = ("trained networks of 3 seeds, the 10,000 test images; severity 0: uncorrupted; bands: one standard "
           "deviation;\nadapted: means and variances estimated again from the images of each severity")


def gaussian_noise(images, deviation):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(images / 255 + deviation * noise)


def gaussian_blur(images, sigma):
    size = 2 * round(4 * sigma) + 1  # four standard deviations to each side
    return as_bytes(functional.gaussian_blur(images / 255, [size, size], [sigma, sigma]))


def contrast(images, kept):
    images = images / 255
    mean = images.mean((2, 3), keepdim=True)
    return as_bytes(mean + kept * (images - mean))


def as_bytes(images):
    return (255 * images).round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS = {  # name -> function: uint8 (N, 3, H, W) -> the same; and its strength at SEVERITIES
    "Gaussian noise": (gaussian_noise, (0.04, 0.08, 0.10)), "Gaussian blur": (gaussian_blur, (0.4, 0.7, 1.0)),
    "contrast": (contrast, (0.75, 0.4, 0.15)),
}
CLEAN, ADAPTED = "uncorrupted", " adapted"


def adapted(model, images):
    """Return a copy of a network whose batch norms have the statistics of these images, or None if it has none."""
    if not any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        return None
    model = copy.deepcopy(model)
    with common.autocast(images.device):
        torch.optim.swa_utils.update_bn(map(common.normalize, images.split(500)), model)
    return model.eval()


def measure():
    """Return the test accuracy of the published networks, {corruption: a list over strengths of {line: over seeds}}.

    Raises RunError unless a variant has runs of two seeds.
    """
    models = {group[0]["variant"]: [common.load_model(files.RESULTS / run["run"]) for run in group]
              for group in runs.published() if len(group) > 1}
    if not models:
        raise RunError("no variant has runs of two seeds or more: type `make seeds`")
    images, targets = cifar10.load("test")

    def accuracy(images):
        lines = dict(models)
        for variant, seeds in models.items():
            again = [adapted(model, images) for model in seeds]
            lines |= {variant + ADAPTED: again} if all(again) else {}
        return {line: [common.evaluate(model, images, targets)[1] for model in seeds] for line, seeds in lines.items()}

    return {CLEAN: [accuracy(images)]} | {name: [accuracy(corrupt(images, strength)) for strength in strengths]
                                         for name, (corrupt, strengths) in CORRUPTIONS.items()}


def compared(group):
    """Return mean accuracies of {line: over seeds} in percent, and the p-values of Tukey's test, adapted ones aside."""
    plain = {line: values for line, values in group.items() if not line.endswith(ADAPTED)}
    return {line: 100 * statistics.mean(values) for line, values in group.items()}, stats.tukey(plain)


def findings(results):
    (noise, of_noise), (blur, of_blur), (low, of_contrast) = (compared(results[name][-1]) for name in CORRUPTIONS)

    def ahead(means, tests):  # group and layer normalization of batch normalization, significantly
        return all(means[line] > means["bn"] and tests[line, "bn"] < stats.LEVEL for line in ("gn", "ln"))

    return [
        (f"At the lowest contrast, group and layer normalization reach {low['gn']:.1f} and {low['ln']:.1f} %, batch "
         f"normalization {low['bn']:.1f} %, or {low['bn' + ADAPTED]:.1f} % after adaptation, that is, with means and "
         "variances estimated again from the corrupted images.",
         ahead(low, of_contrast) and low["bn" + ADAPTED] > low["bn"] + 5),
        (f"Without adaptation, group and layer normalization are ahead under the strongest blur, too ({blur['gn']:.1f} "
         f"and {blur['ln']:.1f} against {blur['bn']:.1f} %).", ahead(blur, of_blur)),
        (f"Under the strongest noise, no difference is significant in Tukey's test (batch {noise['bn']:.1f}, group "
         f"{noise['gn']:.1f}, layer {noise['ln']:.1f} %), but adaptation to it helps batch normalization "
         f"({noise['bn' + ADAPTED]:.1f} %).",
         min(of_noise.values()) >= stats.LEVEL and noise["bn" + ADAPTED] > noise["bn"] + 5),
    ]


def title(line):
    name = line.removesuffix(ADAPTED)
    return f"{LABELS.get(name, name)}{', adapted to the images of the row' * line.endswith(ADAPTED)}"


def table(results):
    groups = {CLEAN: results[CLEAN][0]} | {
        f"{name}, severity {severity}": group for name in CORRUPTIONS
        for severity, group in zip(SEVERITIES, results[name], strict=True)}
    rows = []
    for name, group in groups.items():
        means, tests = compared(group)
        best = max((line for line in means if not line.endswith(ADAPTED)), key=means.get)
        level = {(best, best): 1} | tests if tests and name != CLEAN else {}
        rows.append([name, *(bold_if(level.get((line, best), 0) >= stats.LEVEL, percent(values))
                             for line, values in group.items())])
    return (markdown(["test accuracy, %", *map(title, results[CLEAN][0])], rows, "---:") +
            "\nBold: the best without adaptation, and those that do not differ significantly from it (Tukey's test). "
            "Each row is tested alone, since standard deviations differ widely between rows. Not tested: adapted "
            "networks, and uncorrupted images, on which the normalizations are compared above.\n")


def plot(results):
    fig, axes = plots.new_axes(9, 4, 3)
    for ax, name in zip(axes, CORRUPTIONS, strict=True):
        for line in results[CLEAN][0]:
            values = [[100 * accuracy for accuracy in group[line]] for group in results[CLEAN] + results[name]]
            style = "--" if line.endswith(ADAPTED) else ":" if line == "gn" else "-"  # GN often lies on LN
            plot_line(ax, line.removesuffix(ADAPTED), [0, *SEVERITIES], values, marker="o", markersize=3,
                      title=title(line).partition(" to ")[0], linestyle=style, zorder=3 if line == "gn" else 2)
        ax.set(title=name, xticks=[0, *SEVERITIES], xlabel="severity", ylim=(0, 100))
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(loc="lower left", fontsize=7, handlelength=4)
    return fig
