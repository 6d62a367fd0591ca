"""Which normalization keeps its accuracy on corrupted images.

Batch norm normalizes corrupted images by means and variances of the clean ones that it was trained on; group and layer
norm by those of each image itself. So where a corruption shifts or scales what a layer sees, as lower contrast does,
batch norm should suffer most, and recover much when its means and variances are taken again from the corrupted images
(Schneider et al. 2020, "Improving robustness against common corruptions by covariate shift adaptation"). Which norm is
best depends on the corruption; names and severities are those of Hendrycks and Dietterich 2019, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", and color is added. Unlike the others, adapted batch norm
has seen all 10,000 corrupted images.
"""

import copy
import io
import statistics

import numpy
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional

import common
from studies.study import LABELS, bold_if, differs, exceeds, markdown, plot_line
from support import cifar10, files, plots, runs
from support.files import RunError
from support.plots import percent

# Corruptions: uint8 (N, 3, H, W) -> the same

SEVERITIES = (1, 3, 5)  # of five
SETTING = ("the published networks, the 10,000 test images, severities 1, 3, 5 of 5; bands: one standard deviation "
           "over seeds")


def gaussian_noise(images, deviation):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(images / 255 + deviation * noise)


def gaussian_blur(images, sigma):
    size = 2 * round(4 * sigma) + 1  # four standard deviations to each side
    return as_bytes(functional.gaussian_blur(images / 255, [size, size], [sigma, sigma]))


def brightness(images, added):
    """Add to the value V of HSV, which is the largest of red, green and blue."""
    images = images / 255
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return as_bytes(torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter))


def contrast(images, kept):
    images = images / 255
    mean = images.mean((2, 3), keepdim=True)
    return as_bytes(mean + kept * (images - mean))


def by_pillow(images, change):
    """Return images that `change` makes of them one by one, from a PIL image to a PIL image."""
    changed = [numpy.array(change(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(numpy.stack(changed)).permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)


def jpeg_compression(images, quality):
    def change(image, file):
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)
    return by_pillow(images, lambda image: change(image, io.BytesIO()))


def pixelate(images, fraction):
    """Reduce to a fraction of the side and enlarge again, both with Pillow's box filter, as CIFAR-10-C does."""
    small = int(images.shape[-1] * fraction)
    return by_pillow(images, lambda image: image.resize((small, small), Image.BOX).resize(image.size, Image.BOX))


def as_bytes(images):
    return (255 * images).round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS = {  # kind -> name -> function, and its strength at SEVERITIES, or turns of the color circle
    "noise": {"Gaussian noise": (gaussian_noise, (0.04, 0.08, 0.10))},
    "blur": {"Gaussian blur": (gaussian_blur, (0.4, 0.7, 1.0))},
    "brightness and contrast": {
        "brightness": (brightness, (0.05, 0.15, 0.3)), "contrast": (contrast, (0.75, 0.4, 0.15))},
    "compression": {"JPEG": (jpeg_compression, (80, 58, 40)), "pixelate": (pixelate, (0.95, 0.85, 0.65))},
    "color": {"hue": (functional.adjust_hue, (0.1, 0.25, 0.5)), "greyscale": (functional.rgb_to_grayscale, (3,)),
              "inversion": (lambda images, _: functional.invert(images), (1,))},
}
ALL = {name: how for kind in CORRUPTIONS.values() for name, how in kind.items()}
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

    Raises RunError unless a variant has weights of two seeds.
    """
    folders = {group[0]["variant"]: [files.RESULTS / run["run"] for run in group] for group in runs.published()}
    models = {variant: [common.load_model(folder) for folder in seeds if (folder / "model.pt").exists()]
              for variant, seeds in folders.items()}
    (images, targets), models = cifar10.load("test"), {key: seeds for key, seeds in models.items() if len(seeds) > 1}
    if not models:
        raise RunError("no variant has weights of two seeds or more: type `make seeds`")

    def accuracy(images):
        lines = dict(models)
        for variant, seeds in models.items():
            again = [adapted(model, images) for model in seeds]
            lines |= {variant + ADAPTED: again} if all(again) else {}
        return {line: [common.evaluate(model, images, targets)[1] for model in seeds] for line, seeds in lines.items()}

    return {CLEAN: [accuracy(images)]} | {
        name: [accuracy(corrupt(images, strength)) for strength in strengths]
        for name, (corrupt, strengths) in ALL.items()}


def title(line):
    name = line.removesuffix(ADAPTED)
    return f"{LABELS.get(name, name)}{', statistics of the corrupted images' * line.endswith(ADAPTED)}"


def plot(results):
    single = [name for name, (_, strengths) in ALL.items() if len(strengths) == 1]
    panels = {name: (results[CLEAN] + results[name], [0, *(SEVERITIES if name != "hue" else ALL[name][1])])
              for name in ALL if name not in single}
    panels["color"] = results[CLEAN] + [results[name][0] for name in single], range(1 + len(single))
    fig, axes = plots.new_axes(9, 5.6, 4, 2)
    for ax, (name, (groups, xs)) in zip(axes.flat, panels.items(), strict=True):
        for line in results[CLEAN][0]:
            values = [[100 * accuracy for accuracy in group[line]] for group in groups]
            plot_line(ax, line.removesuffix(ADAPTED), xs, values, marker="o", markersize=3, title=title(line),
                      linestyle="--" if line.endswith(ADAPTED) else "-")
        ax.set(title=name, xlabel="severity" if name != "hue" else "turn of the color circle", ylim=(0, 100))
        ax.grid(alpha=0.3)
    ax.set_xlabel("")
    ax.set_xticks(xs, [CLEAN, *single], fontsize=7)
    for ax in axes[:, 0]:
        ax.set_ylabel("test accuracy, %")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return fig


def best_of(group):
    """Return the line with the highest mean accuracy, adapted batch norm aside, and all lines that compete with it."""
    plain = [line for line in group if not line.endswith(ADAPTED)]
    return max(plain, key=lambda line: statistics.mean(group[line])), plain


def finding(results):
    parts, led = [], []
    for kind, names in CORRUPTIONS.items():
        worst = [results[name][-1] for name in names]
        kept = {line: [statistics.mean(seed) for seed in zip(*(group[line] for group in worst), strict=True)]
                for line in results[CLEAN][0]}
        best, plain = best_of(kept)
        equal = [line.upper() for line in plain if line == best or not differs(kept[line], kept[best])]
        parts.append(f"{kind} {', '.join(equal)}")
        if any(exceeds(kept[line], kept[best]) for line in kept if line not in plain):
            led.append(kind)
    return (f"Best at the severest of each kind, within the noise:\n{'; '.join(parts)}.\n"
            f"Batch norm with statistics of the corrupted images is better than all of them at {', '.join(led) or '-'}")


def table(results):
    groups = {CLEAN: results[CLEAN][0]}
    for name, (_, strengths) in ALL.items():
        for strength, group in zip(strengths, results[name], strict=True):
            groups[f"{name}, {strength:g}" if len(strengths) > 1 else name] = group
    rows = []
    for name, group in groups.items():
        best, plain = best_of(group)
        rows.append([name, *(bold_if(line in plain and differs(values, group[best]), percent(values))
                             for line, values in group.items())])
    return (markdown(["test accuracy, %", *map(title, results[CLEAN][0])], rows, "---:") +
            "\nBold: differs from the best of its row by more than twice the standard deviation, excluding adapted "
            "batch norm.\n")
