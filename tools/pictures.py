"""The pictures of a run and of the variants beside each other, drawn from saved files alone."""

import io
import statistics

import torch

import common
from tools.storage import write_file


def draw_run(folder):
    """curves.png and, after a test, confusion.png and misclassified.png, from the files of a run."""
    metrics, history = common.read_run(folder)
    if not metrics["diverged"]:
        draw_curves(folder, metrics, history)
    if metrics["test_accuracy"] is not None:
        saved = torch.load(folder / "predictions.pt", weights_only=True)
        draw_confusion(folder, metrics, saved)
        draw_misclassified(folder, metrics, saved)


def empty(width, height):
    """A picture of so many inches, without panels."""
    from matplotlib.figure import Figure  # without pyplot: needs no screen and keeps no state

    return Figure((width, height), dpi=110, layout="constrained")


def figure(width, height, columns, rows=1):
    picture = empty(width, height)
    return picture, picture.subplots(rows, columns)


def save_picture(picture, title, path):
    picture.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    picture.savefig(buffer)
    write_file(path, buffer.getvalue())


def draw_curves(folder, metrics, history):
    picture, panels = figure(9, 3.8, 2)
    epochs, best, colour = [row["epoch"] for row in history], metrics["best_epoch"], common.COLOURS[metrics["variant"]]
    noise = "augmentation and dropout" if metrics["recipe"]["dropout"] else "augmentation"
    for axes, name, scale, unit in zip(panels, ("loss", "accuracy"), (1, 100), ("cross-entropy (nats)", "%")):
        training, validation = ([scale * row[f"{part}_{name}"] for row in history] for part in ("train", "val"))
        axes.plot(epochs, training, ":", color=colour, label=f"training: running mean,\nunder {noise}")
        axes.plot(epochs, validation, color=colour,
                  label=f"validation{', of averaged weights' if metrics['recipe']['ema'] else ''}")
        kept = validation[best - 1]
        axes.plot(best, kept, "o", color=colour, label=f"epoch {best}, kept: {kept:.{1 if scale > 1 else 3}f}")
        axes.set(xlabel="epoch", ylabel=f"{name}, {unit}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    title = (f"{metrics['run']}\nthe network of epoch {best} gets {metrics['train_accuracy']:.1%} of the training "
             f"and {metrics['val_accuracy']:.1%} of the validation images right")
    save_picture(picture, title, folder / "curves.png")


def confusion(saved):
    """Counts (true, predicted) of saved predictions."""
    counts = torch.zeros(len(common.CLASSES), len(common.CLASSES), dtype=torch.int64)
    return counts.index_put_((saved["targets"], saved["predicted"]), torch.tensor(1), accumulate=True)


def draw_counts(axes, counts, fontsize):
    axes.imshow(counts.numpy(), cmap="Blues")
    for true, row in enumerate(counts.tolist()):
        for predicted, count in enumerate(row):
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(predicted, true, count, ha="center", va="center", fontsize=fontsize, color=colour)
    axes.set_xticks(range(len(common.CLASSES)), common.CLASSES, rotation=45, ha="right", fontsize=fontsize + 1)
    axes.set_yticks(range(len(common.CLASSES)), common.CLASSES, fontsize=fontsize + 1)
    axes.set(xlabel="predicted class (numbers: test images)", ylabel="true class")


def draw_confusion(folder, metrics, saved):
    picture, axes = figure(7.2, 6.6, 1)
    draw_counts(axes, confusion(saved), 9)
    best, worst, share = metrics["most_accurate_class"], metrics["least_accurate_class"], metrics["per_class_accuracy"]
    title = (f"{metrics['run']}\n{metrics['test_accuracy']:.1%} of the test images right; "
             f"best {best} ({share[best]:.1%}), worst {worst} ({share[worst]:.1%})")
    save_picture(picture, title, folder / "confusion.png")


def confident_mistakes(logits, predicted, targets):
    """The rule of misclassified.png: of each class, the index of the wrong answer that the network is surest of."""
    confidence = logits.float().softmax(1)[torch.arange(len(targets)), predicted]
    confidence[predicted == targets] = -1
    by_class = [torch.where(targets == label, confidence, -1) for label in range(len(common.CLASSES))]
    return torch.tensor([mistakes.argmax() for mistakes in by_class if mistakes.max() > 0], dtype=torch.int64)


def draw_misclassified(folder, metrics, saved):
    picture, panels = figure(9, 4.6, 5, 2)
    for axes in panels.flat:
        axes.axis("off")
    for axes, index, image in zip(panels.flat, saved["shown"], saved["images"]):
        true, predicted = saved["targets"][index], saved["predicted"][index]
        confidence = saved["logits"][index].float().softmax(0)[predicted]
        axes.imshow(image.permute(1, 2, 0).numpy())  # (3, 32, 32) -> (32, 32, 3)
        axes.set_title(f"{common.CLASSES[true]} → {common.CLASSES[predicted]}\n{confidence:.1%} sure", fontsize=9)
    title = f"{metrics['run']}\nof each class, the wrong answer that the network is surest of (true → predicted)"
    save_picture(picture, title, folder / "misclassified.png")


def draw_means(axes, xs, values, colour, **style):
    """The mean of each list of values, with a band of one standard deviation to either side if there are several."""
    means = [statistics.mean(group) for group in values]
    axes.plot(xs, means, color=colour, **style)
    if len(values[0]) > 1:
        deviations = [statistics.stdev(group) for group in values]
        low, high = ([m + sign * d for m, d in zip(means, deviations)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=colour, alpha=0.2, linewidth=0)


def draw_comparison(groups, path):
    """Validation loss and accuracy of groups of runs (metrics, history): their mean, and a band of one standard
    deviation over the seeds to either side, as far as all of a group trained."""
    picture, panels = figure(9, 3.8, 2)
    for axes, name, scale, unit in zip(panels, ("loss", "accuracy"), (1, 100), ("cross-entropy (nats)", "%")):
        for group in groups:
            variant, digits = group[0][0]["variant"], 1 if scale > 1 else 3
            values = list(zip(*([scale * row[f"val_{name}"] for row in history] for _, history in group)))  # by epoch
            kept = torch.tensor([scale * history[metrics["best_epoch"] - 1][f"val_{name}"]
                                 for metrics, history in group])
            label = f"{variant.upper()}: {kept.mean():.{digits}f}"
            label += f" ± {kept.std():.{digits}f}" if len(group) > 1 else ""
            draw_means(axes, range(1, len(values) + 1), values, common.COLOURS[variant], label=label)
        axes.set(xlabel="epoch", ylabel=f"validation {name}, {unit}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(title="at the epoch kept")
    tested = {group[0][0]["variant"]: sum(metrics["test_accuracy"] for metrics, _ in group) / len(group)
              for group in groups}
    ranking = sorted(tested, key=tested.get, reverse=True)
    accuracies = ", ".join(f"{variant.upper()} {tested[variant]:.1%}" for variant in ranking)
    title = f"The same network with each normalization: {accuracies} of the test images right"
    seeds = max(len(group) for group in groups)
    title += f"\n(means of {seeds} seeds, and their standard deviation)" if seeds > 1 else ""
    save_picture(picture, title, path)
