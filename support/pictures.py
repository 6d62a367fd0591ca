"""Figures: of a run, and of the variants beside each other, drawn from saved files alone; and what other figures are
made of. For whoever wants another picture."""

import io
import statistics

import numpy
import torch

from support import runs
from support.cifar10 import CLASSES
from support.storage import write_file

GREY = "#777777"  # of what is no variant


# --- What figures are made of ---


def empty(width, height):
    """A picture of so many inches, without panels."""
    from matplotlib.figure import Figure  # heavy: only when something is drawn; without pyplot it needs no screen

    return Figure((width, height), dpi=110, layout="constrained")


def figure(width, height, columns, rows=1):
    """A picture of so many inches, and its panels: axes if there is only one, else an array of them."""
    picture = empty(width, height)
    return picture, picture.subplots(rows, columns)


def save_picture(picture, title, path):
    picture.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    picture.savefig(buffer)
    write_file(path, buffer.getvalue())


def draw_means(axes, xs, values, colour, **style):
    """The mean of each list of values, with a band of one standard deviation to either side if there are several."""
    means = [statistics.mean(group) for group in values]
    axes.plot(xs, means, color=colour, **style)
    if len(values[0]) > 1:
        deviations = [statistics.stdev(group) for group in values]
        low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)


def draw_cube(axes, marked, labels, colour):
    """Small cubes in the place of the elements of a bool tensor of three dimensions, the marked ones coloured.

    The first dimension goes into the picture, the second across, the third down; the labels are theirs."""
    voxels = marked.permute(1, 0, 2).flip(2).numpy()  # matplotlib's axes: across, into, up
    axes.voxels(voxels | True, facecolors=numpy.where(voxels, colour, "#f2f2f2"), edgecolor="#999999", linewidth=0.3)
    axes.set(xlabel=labels[1], ylabel=labels[0], zlabel=labels[2], xticks=[], yticks=[], zticks=[])
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.labelpad = -12


# --- A run: curves.png and, after a test, confusion.png and misclassified.png ---


def draw_run(folder, colours):
    """The pictures of a run, from its files and into its folder. `colours` are those of the variants."""
    metrics, history = runs.read(folder)
    if not metrics["diverged"]:
        draw_curves(folder, metrics, history, colours.get(metrics["variant"], GREY))
    if metrics["test_accuracy"] is not None:
        predictions = runs.load_tensors(folder, "predictions")
        draw_confusion(folder, metrics, predictions)
        draw_misclassified(folder, metrics, predictions)


def loss_and_accuracy():
    """A picture with a panel for each; of each: axes, the name in the history, its scale, its unit, digits to print."""
    picture, panels = figure(9, 3.8, 2)
    for axes in panels:
        axes.set(xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    return picture, [(panels[0], "loss", 1, "cross-entropy (nats)", 3), (panels[1], "accuracy", 100, "%", 1)]


def draw_curves(folder, metrics, history, colour):
    picture, panels = loss_and_accuracy()
    epochs, best = [row["epoch"] for row in history], metrics["best_epoch"]
    noise = "augmentation and dropout" if metrics["recipe"]["dropout"] else "augmentation"
    for axes, name, scale, unit, digits in panels:
        training, validation = ([scale * row[f"{part}_{name}"] for row in history] for part in ("train", "val"))
        axes.plot(epochs, training, ":", color=colour, label=f"training: running mean,\nunder {noise}")
        axes.plot(epochs, validation, color=colour,
                  label=f"validation{', of averaged weights' if metrics['recipe']['ema'] else ''}")
        kept = validation[best - 1]
        axes.plot(best, kept, "o", color=colour, label=f"epoch {best}, kept: {kept:.{digits}f}")
        axes.set(ylabel=f"{name}, {unit}")
        axes.legend(fontsize=8)
    title = (f"{metrics['run']}\nthe network of epoch {best} gets {metrics['train_accuracy']:.1%} of the training "
             f"and {metrics['val_accuracy']:.1%} of the validation images right")
    save_picture(picture, title, folder / "curves.png")


def confusion(predictions):
    """Counts (true, predicted), int64 (10, 10), of saved predictions."""
    pairs = len(CLASSES) * predictions["targets"] + predictions["predicted"]
    return torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)


def draw_counts(axes, counts, fontsize):
    axes.imshow(counts.numpy(), cmap="Blues")
    for true, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(predicted, true, count, ha="center", va="center", fontsize=fontsize, color=colour)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right", fontsize=fontsize + 1)
    axes.set_yticks(range(len(CLASSES)), CLASSES, fontsize=fontsize + 1)
    axes.set(xlabel="predicted class (numbers: test images)", ylabel="true class")


def draw_confusion(folder, metrics, predictions):
    picture, axes = figure(7.2, 6.6, 1)
    draw_counts(axes, confusion(predictions), 9)
    best, worst, share = metrics["most_accurate_class"], metrics["least_accurate_class"], metrics["per_class_accuracy"]
    title = (f"{metrics['run']}\n{metrics['test_accuracy']:.1%} of the test images right; "
             f"best {best} ({share[best]:.1%}), worst {worst} ({share[worst]:.1%})")
    save_picture(picture, title, folder / "confusion.png")


def confident_mistakes(logits, predicted, targets):
    """The rule of misclassified.png: of each class, the index of the wrong answer that the network is surest of."""
    confidence = logits.float().softmax(1)[torch.arange(len(targets)), predicted]
    confidence[predicted == targets] = -1
    by_class = [torch.where(targets == label, confidence, -1) for label in range(len(CLASSES))]
    return torch.tensor([mistakes.argmax() for mistakes in by_class if mistakes.max() > 0], dtype=torch.int64)


def draw_misclassified(folder, metrics, predictions):
    picture, panels = figure(9, 4.6, 5, 2)
    for axes in panels.flat:
        axes.axis("off")
    for axes, index, image in zip(panels.flat, predictions["shown"], predictions["images"], strict=False):
        true, predicted = predictions["targets"][index], predictions["predicted"][index]
        confidence = predictions["logits"][index].float().softmax(0)[predicted]
        axes.imshow(image.permute(1, 2, 0).numpy())  # (3, 32, 32) -> (32, 32, 3)
        axes.set_title(f"{CLASSES[true]} → {CLASSES[predicted]}\n{confidence:.1%} sure", fontsize=9)
    title = f"{metrics['run']}\nof each class, the wrong answer that the network is surest of (true → predicted)"
    save_picture(picture, title, folder / "misclassified.png")


def draw_images(rows, title, path):
    """Rows of ten images, uint8 (10, 3, 32, 32), one of each class, each row with its name."""
    picture, panels = figure(11, 1.1 + 1.15 * len(rows), len(CLASSES), len(rows))
    for line, (name, images) in zip(panels, rows.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy())  # (3, 32, 32) -> (32, 32, 3)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(": ", ":\n"), fontsize=8)
    for axes, name in zip(panels[0], CLASSES, strict=True):
        axes.set_title(name, fontsize=9)
    save_picture(picture, title, path)


# --- The variants beside each other ---


def draw_comparison(groups, colours, path):
    """Validation loss and accuracy of groups of runs: their mean, and a band of one standard deviation over the seeds
    to either side, as far as all of a group trained."""
    picture, panels = loss_and_accuracy()
    for axes, name, scale, unit, digits in panels:
        for group in groups:
            variant = group[0].metrics["variant"]
            curves = [[scale * row[f"val_{name}"] for row in run.history] for run in group]
            by_epoch = list(zip(*curves, strict=False))
            kept = [curve[run.metrics["best_epoch"] - 1] for curve, run in zip(curves, group, strict=True)]
            label = f"{variant.upper()}: {runs.mean_and_sd(kept, f'{{:.{digits}f}}')}"
            draw_means(axes, range(1, len(by_epoch) + 1), by_epoch, colours.get(variant, GREY), label=label)
        axes.set(ylabel=f"validation {name}, {unit}")
        axes.legend(title="at the epoch kept")
    tested = {group[0].metrics["variant"]: statistics.mean(run.metrics["test_accuracy"] for run in group)
              for group in groups}
    ranking = sorted(tested, key=tested.get, reverse=True)
    accuracies = ", ".join(f"{variant.upper()} {tested[variant]:.1%}" for variant in ranking)
    title = f"The same network with each normalization: {accuracies} of the test images right"
    seeds = max(len(group) for group in groups)
    title += f"\n(means of {seeds} seeds, and their standard deviation)" if seeds > 1 else ""
    save_picture(picture, title, path)
