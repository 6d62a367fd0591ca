"""Figures: of a run, of the variants next to each other, and the parts that the studies' figures are made of."""

import io
import statistics

import torch
from matplotlib.figure import Figure  # without pyplot it needs no screen

from support.cifar10 import CLASSES
from support.files import write_file

COLORS = {"bn": "#1f77b4", "gn": "#d95f02", "ln": "#2a9d55", "none": "#777777"}  # a variant's color in every figure
EXTRA_COLORS = ("#7b4fa3", "#c2185b", "#7a5230", "#8a8d00", "#00a3b4", "#444444")  # of other scripts


def color_of(variant):
    """Return the color of a variant; another script's is chosen by its name."""
    return COLORS.get(variant) or EXTRA_COLORS[sum(variant.encode()) % len(EXTRA_COLORS)]


def new_figure(width, height):
    """Return a figure of a size in inches, without axes."""
    return Figure((width, height), dpi=110, layout="constrained")


def new_axes(width, height, columns, rows=1):
    """Return a figure of a size in inches, and its axes: one, or an array of them."""
    fig = new_figure(width, height)
    return fig, fig.subplots(rows, columns)


def save_figure(fig, title, path, caption=""):
    """Write a figure with a title above and a caption below it as PNG. Raises RunError."""
    fig.suptitle(title, fontsize=11)
    fig.supxlabel(caption, fontsize=8, color="#555555")
    buffer = io.BytesIO()
    fig.savefig(buffer)
    write_file(path, buffer.getvalue())


def mean_and_sd(values, text="{:.2f}"):
    """Return "mean ± sample standard deviation" of values, or the only value; "–" if one is None."""
    if None in values:
        return "–"
    mean = text.format(statistics.mean(values))
    return f"{mean} ± {text.format(statistics.stdev(values))}" if len(values) > 1 else mean


def percent(values):
    """Return mean and standard deviation of fractions, in percent."""
    return mean_and_sd([None if value is None else 100 * value for value in values])


def plot_means(ax, xs, values, color, **style):
    """Plot the mean of each list of values, with a band of one standard deviation if there are several."""
    means = [statistics.mean(group) for group in values]
    ax.plot(xs, means, color=color, **style)
    if len(values[0]) > 1:
        deviations = [statistics.stdev(group) for group in values]
        low, high = ([m + sign * d for m, d in zip(means, deviations, strict=True)] for sign in (-1, 1))
        ax.fill_between(xs, low, high, color=color, alpha=0.2, linewidth=0)


# --- A run ---


def plot_run(folder, metrics, predictions):
    """Write the figures of a run into its folder: curves.png; confusion.png and misclassified.png if it was tested."""
    if not metrics["diverged"]:
        plot_curves(folder, metrics)
    if predictions:
        plot_confusion(folder, metrics, predictions)
        plot_misclassified(folder, metrics, predictions)


def loss_and_accuracy_axes(height=4):
    """Return a figure with axes for each of both: a list of axes, name in the history, scale, unit, digits."""
    fig, axes = new_axes(9, height, 2)
    for ax in axes:
        ax.set(xlabel="epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    return fig, [(axes[0], "loss", 1, "cross-entropy (nats)", 3), (axes[1], "accuracy", 100, "%", 1)]


def plot_curves(folder, metrics):
    """Write curves.png: loss and accuracy per epoch."""
    (fig, axes), color = loss_and_accuracy_axes(), color_of(metrics["variant"])
    history, best, recipe = metrics["history"], metrics["best_epoch"], metrics["recipe"]
    for ax, name, scale, unit, digits in axes:
        training, validation = ([scale * value for value in history[f"{part}_{name}"]] for part in ("train", "val"))
        ax.plot(history["epoch"], training, ":", color=color, label="training")
        ax.plot(history["epoch"], validation, color=color, label="validation")
        value = validation[best - 1]
        ax.plot(best, value, "o", color=color, label=f"best epoch ({best}): {value:.{digits}f}")
        ax.set(ylabel=f"{name}, {unit}")
        ax.legend(fontsize=9)
    noise = "augmentation and dropout" if recipe["dropout"] else "augmentation"
    caption = (f"Training values are means over each epoch, with {noise}; validation uses the EMA of the weights.\n"
               f"So training values can be worse. At the best epoch (lowest validation loss), training accuracy is\n"
               f"{metrics['train_accuracy']:.1%} with the EMA and without {noise}. Early stopping "
               f"(patience {recipe['patience']}) {'occurred' if metrics['stopped_early'] else 'did not occur'}.")
    title = f"{metrics['run']}, seed {metrics['seed']}: validation accuracy {metrics['val_accuracy']:.1%}"
    save_figure(fig, title, folder / "curves.png", caption)


def confusion_counts(predictions):
    """Return the counts (true class, predicted class), int64 (10, 10), of saved predictions."""
    pairs = len(CLASSES) * predictions["targets"] + predictions["predicted"]
    return torch.bincount(pairs, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)


def plot_confusion(folder, metrics, predictions):
    """Write confusion.png: test images by true and predicted class."""
    (fig, ax), counts = new_axes(7.2, 7, 1), confusion_counts(predictions)
    mistakes = counts.clone().fill_diagonal_(0)
    ax.imshow(mistakes.numpy(), cmap="Blues")
    for true, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            color = "white" if mistakes[true, predicted] > mistakes.max() / 2 else "black"
            ax.text(predicted, true, count, ha="center", va="center", fontsize=10, color=color,
                    weight="bold" if true == predicted else "normal")
    ax.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right", fontsize=10)
    ax.set_yticks(range(len(CLASSES)), CLASSES, fontsize=10)
    ax.set(xlabel="predicted class", ylabel="true class")
    accuracy = metrics["per_class_accuracy"]
    best, worst = max(accuracy, key=accuracy.get), min(accuracy, key=accuracy.get)
    caption = (f"Number of test images. Darker blue: more mistakes; bold: correct.\nBest class {best} "
               f"({accuracy[best]:.1%}), worst {worst} ({accuracy[worst]:.1%}).")
    title = f"{metrics['run']}, seed {metrics['seed']}: test accuracy {metrics['test_accuracy']:.1%}"
    save_figure(fig, title, folder / "confusion.png", caption)


def plot_misclassified(folder, metrics, predictions):
    """Write misclassified.png: for each class the wrong prediction with the highest confidence."""
    fig, axes = new_axes(9, 4.6, 5, 2)
    for ax in axes.flat:
        ax.axis("off")
    for ax, index, image in zip(axes.flat, predictions["shown"], predictions["images"], strict=False):
        true, predicted = predictions["targets"][index], predictions["predicted"][index]
        confidence = predictions["logits"][index].float().softmax(0)[predicted]
        ax.imshow(image.permute(1, 2, 0).numpy())  # (3, 32, 32) -> (32, 32, 3)
        ax.set_title(f"{CLASSES[true]} → {CLASSES[predicted]}\nconfidence {confidence:.1%}", fontsize=9)
    title = f"{metrics['run']}, seed {metrics['seed']}: the most confident mistake in each true class"
    save_figure(fig, title, folder / "misclassified.png", "Test images: true class → predicted class; confidence: "
                "softmax probability of the predicted class. CIFAR-10 has some wrong labels.")


def plot_comparison(groups, path):
    """Write mean validation loss and accuracy per epoch of groups of runs, as far as all runs of a group go."""
    fig, axes = loss_and_accuracy_axes(4.4)
    for ax, name, scale, unit, digits in axes:
        enlarged = ax.inset_axes((0.42, 0.4, 0.55, 0.55) if name == "loss" else (0.42, 0.08, 0.55, 0.5))
        for group in groups:
            curves = [[scale * value for value in run["history"][f"val_{name}"]] for run in group]
            by_epoch = list(zip(*curves, strict=False))
            best = [curve[run["best_epoch"] - 1] for curve, run in zip(curves, group, strict=True)]
            label, last = f"{group[0]['variant'].upper()}: {mean_and_sd(best, f'{{:.{digits}f}}')}", len(by_epoch)
            plot_means(ax, range(1, last + 1), by_epoch, color_of(group[0]["variant"]), label=label)
            start = max(0, last - 5)
            plot_means(enlarged, range(start + 1, last + 1), by_epoch[start:], color_of(group[0]["variant"]))
        enlarged.tick_params(labelsize=8)
        enlarged.xaxis.get_major_locator().set_params(integer=True)
        ax.set(ylabel=f"validation {name}, {unit}")
        ax.legend(title="at the best epoch", fontsize=8, title_fontsize=8,
                  loc="lower left" if name == "loss" else "upper left")
    seeds = max(len(group) for group in groups)
    caption = "EMA of the weights; best epoch: lowest validation loss; inset: the last 5 epochs"
    caption += f"; mean and standard deviation of {seeds} seeds" * (seeds > 1)
    caption += "".join(f"; {run['variant'].upper()}: dropout {run['recipe']['dropout']:g}" for run, *_ in groups
                       if run["recipe"]["dropout"])
    save_figure(fig, "The same network with each normalization", path, f"{caption}.")
