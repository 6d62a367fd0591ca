"""Studies: short trainings that differ from a script's recipe in one thing. Run as `python -m tools.studies NAME`.

Of each run only the numbers are kept, in results/studies/<study>/<run>/. A run that is finished, or has diverged, is
not trained again unless its script's recipe has changed; one that was interrupted goes on.
"""

import argparse
import collections
import dataclasses
import json
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy
import torch
from torch import nn

import common
from tools import pictures, report, storage
from tools.report import percent, script_of, spread
from tools.storage import RunError, write_file


def folder_of(study, variant, flags):
    """The folder of the run of `variant` with these flags, and its recipe."""
    script = script_of(variant)
    recipe, options = common.parse_args(script, shlex.split(flags))
    name = common.run_name(recipe, script, options.limit, options.seed, options.test)
    return common.RESULTS / "studies" / study / name, recipe


def finished(study, variant, flags):
    """The metrics of a run; None if it is missing, or by a recipe that is no longer its script's."""
    folder, recipe = folder_of(study, variant, flags)
    if not (folder / storage.SUMS).exists():
        return None
    storage.verify(folder)
    metrics, _ = common.read_run(folder)
    return metrics if metrics["recipe"] == recipe.values() else None


def train(study, variant, flags):
    """Train unless that is done. Raises RunError if interrupted, or if the training ends without a result; to diverge
    is one."""
    folder, _ = folder_of(study, variant, flags)
    if not finished(study, variant, flags):
        command = [f"{variant}.py", *shlex.split(flags), "--numbers-only", "--results", folder.parent]
        signal.signal(signal.SIGTERM, common.interrupt)  # else a kill would leave the training at work
        try:
            done = subprocess.run([sys.executable, *command], cwd=common.ROOT)
        except KeyboardInterrupt:  # by which subprocess.run has ended the training
            raise RunError("interrupted; the same command goes on from there") from None
        if not finished(study, variant, flags):
            raise RunError(f"{variant}.py {flags} ended with status {done.returncode}")


# --- Studies: the claims, tested and drawn ---

SEEDS = (0, 1, 2)
NONE, GREY = "none", "#777777"
CHANCE = 1 / len(common.CLASSES)
LINES = {"bn": "batch norm", "gn": "group norm", "ln": "layer norm", NONE: "no norm"}


@dataclasses.dataclass(frozen=True)
class Study:
    question: str
    setting: str  # what the runs have in common, for the picture
    tell: Callable  # from what was found to the finding, and a list of sentences
    draw: Callable  # from what was found to the picture
    runs: dict = dataclasses.field(default_factory=dict)  # (line, x, seed) -> (variant, flags)
    measure: Callable | None = None  # instead of runs: measures the published weights and saves what it found


def results_of(name):
    """What a study found: {(line, x): metrics of each seed}, or the saved numbers; None if it isn't complete."""
    if STUDIES[name].measure:
        return json.loads(saved_numbers(name).read_text()) if saved_numbers(name).exists() else None
    found = {}
    for (line, x, _), (variant, flags) in STUDIES[name].runs.items():
        metrics = finished(name, variant, flags)
        if not metrics:
            return None
        found.setdefault((line, x), []).append(metrics)
    return found


def accuracies(group, part="val"):
    """Of each run, in per cent; chance for one that diverged."""
    return [100 * (CHANCE if m["diverged"] else m[f"{part}_accuracy"]) for m in group]


def differ(a, b):
    """Whether the means of two lists differ by more than twice the larger standard deviation."""
    return abs(statistics.mean(a) - statistics.mean(b)) > 2 * max(statistics.stdev(a), statistics.stdev(b))


def draw_line(axes, line, xs, values, **style):
    pictures.draw_means(axes, xs, values, common.COLOURS.get(line, GREY), label=LINES[line], **style)


def draw_lines(axes, found, measure):
    """A line for each one of `found`; diverged runs are marked by a cross."""
    for line in dict.fromkeys(line for line, _ in found):
        xs, colour = [x for other, x in found if other == line], common.COLOURS.get(line, GREY)
        draw_line(axes, line, xs, [measure(found[line, x]) for x in xs], marker="o", markersize=3)
        lost = [(x, *measure([m])) for x in xs for m in found[line, x] if m["diverged"]]
        axes.plot([x for x, _ in lost], [y for _, y in lost], "x", color=colour, markersize=8)
    axes.grid(alpha=0.3)


# --- 1. Dropout ---

DROPOUT = (0.0, 0.05, 0.2, 0.5)
DROPOUT_FLAGS = "--limit 10000 --no-test --dropout-after 'c3 c7 C10'"


def gaps(group):
    """Training accuracy (without dropout and augmentation) less validation accuracy, in points."""
    return [train - val for train, val in zip(accuracies(group, "train"), accuracies(group))]


def draw_dropout(found):
    picture, panels = pictures.figure(9, 3.8, 2)
    draw_lines(panels[0], found, accuracies)
    draw_lines(panels[1], found, gaps)
    for axes, label in zip(panels, ("validation accuracy, %", "training less validation, points")):
        axes.set(xlabel="share of channels dropped", ylabel=label)
        axes.set_xticks(DROPOUT, [f"{p:g}" for p in DROPOUT])
    panels[0].legend()
    return picture


def tell_dropout(found):
    sentences = []
    for line in common.COLOURS:
        for p in DROPOUT[1:]:
            gap, accuracy = (measured(f(found[line, 0.0]), f(found[line, p])) for f in (gaps, accuracies))
            sentences.append(f"{line.upper()} with dropout {p:g}: the gap between training and validation goes {gap}; "
                             f"validation accuracy goes {accuracy}.")
    narrowed = changed(found, gaps, -1)
    verdict = f"holds for {narrowed}" if narrowed else "is not borne out here"
    raised, lowered = (changed(found, accuracies, sign) or "no variant" for sign in (1, -1))
    finding = (f"\"Dropout makes a significant difference to overfitting\" {verdict};\n"
               f"it raises the validation accuracy of {raised}, and lowers that of {lowered}")
    sentences.append("The claim holds where the gap narrows by more than twice the spread over the seeds.")
    return finding, sentences


def changed(found, measure, sign):
    """The variants, and rates of dropout, at which `measure` goes up (1) or down (-1) beyond the noise, or ""."""
    parts = []
    for line in common.COLOURS:
        before = measure(found[line, 0.0])
        groups = {p: measure(found[line, p]) for p in DROPOUT[1:]}
        rates = [f"{p:g}" for p, after in groups.items()
                 if differ(before, after) and sign * (statistics.mean(after) - statistics.mean(before)) > 0]
        parts += [f"{line.upper()} (at {' and '.join(rates)})"] if rates else []
    return ", ".join(parts)


def gain(before, after):
    """Mean validation accuracy of `after` less that of `before`, in points."""
    return statistics.mean(accuracies(after)) - statistics.mean(accuracies(before))


def measured(before, after):
    """In words: from the mean of `before` to that of `after`, and whether that is more than noise."""
    verdict = "a difference" if differ(before, after) else "no difference beyond the noise"
    return f"from {spread(before)} to {spread(after)}, {verdict}"


# --- 2. Groups: from layer norm to instance norm ---

GROUPS = (1, 2, 4, 8, "channels")
GROUP_FLAGS = "--limit 15000 --epochs 10 --no-test --dropout 0"


def draw_groups(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    ticks = {groups: index for index, groups in enumerate(GROUPS)}
    family = {("gn", ticks[x]): group for (line, x), group in found.items() if line == "gn"}
    draw_lines(axes, family, accuracies)
    for line in ("bn", NONE):
        draw_line(axes, line, [0, len(GROUPS) - 1], 2 * [accuracies(found[line, None])], linestyle="--")
    names = {1: "1\n(layer norm)", "channels": "one per channel\n(instance norm)"}
    axes.set_xticks(range(len(GROUPS)), [names.get(groups, str(groups)) for groups in GROUPS])
    axes.set(xlabel="groups of channels", ylabel="validation accuracy, %")
    axes.legend()
    return picture


def tell_groups(found):
    means = {groups: statistics.mean(accuracies(found["gn", groups])) for groups in GROUPS}
    best = max(means, key=means.get)
    values = accuracies(found["gn", best])
    others = [str(groups).replace("channels", "one per channel") for groups in GROUPS
              if not differ(accuracies(found["gn", groups]), values)]
    finding = f"Best numbers of groups, within the noise: {', '.join(others)} ({spread(values)} %)"
    sentences = [f"{named(groups)}: {spread(accuracies(found['gn', groups]))} %." for groups in GROUPS]
    for line in ("bn", NONE):
        finding += f"; {LINES[line]} {spread(accuracies(found[line, None]))} %"
        sentences.append(f"From {LINES[line]} to {named(best)}, accuracy goes "
                         f"{measured(accuracies(found[line, None]), values)}.")
    return finding, sentences


def named(groups):
    return {1: "1 group", "channels": "a group for each channel"}.get(groups, f"{groups} groups")


# --- 3. Batch size ---

BATCHES, USUAL_BATCH, SMALL_BATCH = (2, 4, 8, 16, 32, 64, 128, 256), 128, 2


def batch_flags(variant, size):
    """Rates by the root of the batch size, and a moving average over as many images, whatever the batch size.

    That averages batch norm's running statistics too, so that they cover as many images; on their own, with momentum
    0.1, they would cover some 10 batches."""
    script = script_of(variant)
    scale = size / script.batch_size
    rates = f"--max-lr {script.max_lr * scale**0.5:.3g} --other-lr {script.other_lr * scale**0.5:.3g}"
    return f"--limit 10000 --epochs 4 --no-test --dropout 0 --batch-size {size} {rates} --ema {script.ema**scale:.6g}"


def draw_batch(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    draw_lines(axes, found, lambda group: [100 - value for value in accuracies(group)])
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, BATCHES)
    axes.invert_xaxis()
    axes.set(xlabel="images in a batch", ylabel="validation error, %")
    axes.legend()
    return picture


def tell_batch(found):
    sentences, changes = [], []
    for line in common.COLOURS:
        usual, small = found[line, USUAL_BATCH], found[line, SMALL_BATCH]
        sentences.append(f"{line.upper()}: from batches of {USUAL_BATCH} to batches of {SMALL_BATCH}, accuracy goes "
                         f"{measured(accuracies(usual), accuracies(small))}.")
        noise = "" if differ(accuracies(usual), accuracies(small)) else " (noise)"
        changes.append(f"{line.upper()} {gain(usual, small):+.1f}{noise}")
    sentences.append("As many images in smaller batches are more steps, which may help a training as short as this.")
    sentences.append("Figure 1 of Wu and He 2018, \"Group Normalization\", asks the same on ImageNet. There, each of 8 "
                     "GPUs normalizes its own batch, and a step takes the gradient of all 8; here, of the one batch.")
    finding = f"Batches of {SMALL_BATCH} instead of {USUAL_BATCH}, in points of accuracy: {', '.join(changes)}"
    return finding, sentences


# --- 4. Learning rate ---

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RATE_FLAGS = "--limit 10000 --epochs 3 --no-test --dropout 0 --ema 0 --optimizer SGD --no-zero-mean"


def draw_rate(found):
    picture, axes = pictures.figure(9, 4.2, 1)
    draw_lines(axes, found, accuracies)
    axes.set_xscale("log")
    axes.set(xlabel="peak learning rate (SGD)", ylabel="validation accuracy, %")
    axes.legend()
    return picture


def tell_rate(found):
    highest, sentences = {}, []
    for line in LINES:
        means = {rate: statistics.mean(accuracies(found[line, rate])) for rate in RATES}
        best = max(means, key=means.get)
        whole = [rate for rate in RATES if not any(m["diverged"] for m in found[line, rate])]
        highest[line] = max(rate for rate in whole if means[rate] > 0.8 * means[best])
        reached, most = (spread(accuracies(found[line, rate])) for rate in (highest[line], best))
        sentences.append(f"{LINES[line]}: {highest[line]:g} is the highest rate at which no run diverges and accuracy, "
                         f"{reached} %, is more than 0.8 times its best, {most} % at {best:g}.")
    finding = "Highest stable rate: " + ", ".join(f"{LINES[line]} {rate:g}" for line, rate in highest.items())
    return finding, sentences


def published(run):
    """The network of a run in results/, with its saved weights. Raises RunError if its files are damaged."""
    folder = common.RESULTS / run
    storage.verify(folder)
    return report.load_model(folder, report.recipe_of(common.read_run(folder)[0]))


# --- 5. Shift: the trained networks on altered test images ---


def brighter(images, strength):
    return images + strength


def darker(images, strength):
    return images - strength


def paler(images, strength):
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 - strength)


def noisier(images, strength):
    return images + strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def blurred(images, strength):
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(images, 9, strength)


SHIFTS = {  # what is done to test images in [0, 1], and how much of it
    "brighter": (brighter, (0.1, 0.2, 0.4)), "darker": (darker, (0.1, 0.2, 0.4)),
    "less contrast": (paler, (0.3, 0.6, 0.8)), "noise": (noisier, (0.02, 0.05, 0.1)),
    "blur": (blurred, (0.5, 0.8, 1.2)),
}
UNITS = {"brighter": "white added", "darker": "white taken", "less contrast": "share taken", "noise": "deviation",
         "blur": "deviation, pixels"}


def measure_shift():
    """Write results/studies/shift.json: test accuracy of the published weights, a list over the seeds, for every
    alteration. Raises RunError without weights of two seeds."""
    images, targets = common.load_data("test")
    models = {}
    for group in report.published_runs():
        runs = [metrics["run"] for metrics, _ in group]
        models[group[0][0]["variant"]] = [
            published(run) for run in runs if (common.RESULTS / run / "model.pt").exists()]
    if set(models) != set(common.COLOURS) or min(map(len, models.values())) < 2:
        raise RunError("there are no weights of two seeds or more of every variant: type `make seeds`")

    def measure(images):
        return {variant: [common.evaluate(model, images, targets)[1] for model in seeds]
                for variant, seeds in models.items()}

    accuracy = {"as they are": [measure(images)]}
    for name, (alter, strengths) in SHIFTS.items():
        altered = [(255 * alter(images / 255, strength)).round().clamp(0, 255).to(torch.uint8)
                   for strength in strengths]
        accuracy[name] = [measure(images) for images in altered]
    save(accuracy, "shift")


def save(numbers, name):
    saved_numbers(name).parent.mkdir(exist_ok=True)
    write_file(saved_numbers(name), (json.dumps(numbers, indent=1) + "\n").encode())


def saved_numbers(name):
    """The file of what a study measures without training."""
    return common.RESULTS / "studies" / f"{name}.json"


def draw_shift(accuracy):
    picture, panels = pictures.figure(9, 3.6, len(SHIFTS))
    for axes, (name, (_, strengths)) in zip(panels, SHIFTS.items()):
        for variant in common.COLOURS:
            values = [[100 * share for share in reached[variant]]
                      for reached in accuracy["as they are"] + accuracy[name]]
            draw_line(axes, variant, [0, *strengths], values, marker="o", markersize=3)
        axes.set(xlabel=f"{name}:\n{UNITS[name]}", ylim=(0, 100))
        axes.grid(alpha=0.3)
        if axes is not panels[0]:
            axes.set_yticklabels([])
    panels[0].set_ylabel("test accuracy, %")
    panels[0].legend(loc="lower left")
    return picture


def tell_shift(accuracy):
    strongest = {name: accuracy[name][-1] for name in SHIFTS}
    sentences = []
    for name, reached in strongest.items():
        best, worst = (pick(reached, key=lambda variant: statistics.mean(reached[variant])) for pick in (max, min))
        verdict = "more" if differ(reached[best], reached[worst]) else "no more"
        sentences.append(f"{name}, strongest: " + ", ".join(f"{v.upper()} {percent(reached[v])} %" for v in reached) +
                         f"; {best.upper()} and {worst.upper()} differ by {verdict} than the noise.")
    sentences.append("Batch norm normalizes altered images by means and variances of the unaltered ones that it was "
                     "trained on; group and layer norm by those of each image itself.")
    kept = {variant: [statistics.mean(seeds) for seeds in zip(*(strongest[name][variant] for name in SHIFTS))]
            for variant in common.COLOURS}
    ranking = sorted(kept, key=lambda variant: statistics.mean(kept[variant]), reverse=True)
    finding = "Mean accuracy at the strongest of each: "
    finding += ", ".join(f"{v.upper()} {percent(kept[v])} %" for v in ranking)
    return finding, sentences


# --- 6. What a norm does: results/norms.png ---

SHOWN_LAYER, SHOWN_CHANNELS, SHOWN_IMAGES, BINS = "C5", 8, 128, 100
CUBE = (4, 6, 5)  # images, channels and positions of the drawn cube


def activations(variant, images):
    """What goes into the norm of SHOWN_LAYER, and the same normalized, but not scaled or shifted: (N, C, H, W) each."""
    model, seen = published(variant), {}
    norm = model.get_submodule(f"{SHOWN_LAYER}.norm")
    nn.init.ones_(norm.weight)
    nn.init.zeros_(norm.bias)
    norm.register_forward_hook(lambda layer, inputs, output: seen.update(before=inputs[0], after=output))
    with torch.no_grad():
        model.train(variant == "bn").forward(common.normalize(images))  # BN by this batch's statistics; no dropout yet
    return {name: values.float() for name, values in seen.items()}


def measure_norms():
    """Write results/studies/norms.json: histograms, means and deviations of single channels before and after a norm."""
    images, targets = common.load_data("train")
    images, numbers = images[common.split_indices(targets)[1][:SHOWN_IMAGES]], {}
    for variant in common.COLOURS:
        numbers[variant] = {}
        for name, values in activations(variant, images).items():
            low, high = values.min().item(), values.max().item()
            channels = values[:, :SHOWN_CHANNELS].transpose(0, 1).flatten(1)
            numbers[variant][name] = {
                "low": low, "high": high, "counts": [channel.histc(BINS, low, high).tolist() for channel in channels],
                "means": channels.mean(1).tolist(), "deviations": channels.std(1).tolist()}
    save(numbers, "norms")


def index_set(variant):
    """Which elements of a drawn cube (N, C, H*W) are normalized together with its front upper one."""
    images, channels, positions = CUBE
    together = torch.zeros(CUBE, dtype=torch.bool)
    if variant == "bn":
        together[:, 0] = True
    elif variant == "gn":
        together[0, : channels // 3] = True
    else:
        together[0] = True
    return together


def draw_norms(numbers):
    picture = pictures.empty(9, 7.6)
    for row, variant in enumerate(common.COLOURS):
        colour = common.COLOURS[variant]
        cube = picture.add_subplot(3, 3, 3 * row + 1, projection="3d")
        together = index_set(variant).permute(1, 0, 2).flip(2)  # axes: channels, images, positions upwards
        colours = numpy.where(together.numpy(), colour, "#f2f2f2")
        cube.voxels(numpy.ones(together.shape), facecolors=colours, edgecolor="#999999", linewidth=0.3)
        cube.set(xlabel="channels C", ylabel="images N", zlabel="positions H·W", xticks=[], yticks=[], zticks=[])
        for axis in (cube.xaxis, cube.yaxis, cube.zaxis):
            axis.labelpad = -12
        cube.set_title(f"{LINES[variant]}: the coloured elements\nshare a mean and a variance", fontsize=9)
        for column, (name, values) in enumerate(numbers[variant].items()):
            axes = picture.add_subplot(3, 3, 3 * row + 2 + column)
            edges = numpy.linspace(values["low"], values["high"], BINS + 1)
            for counts in values["counts"]:
                axes.stairs(counts, edges)
            axes.set(yticks=[], xlabel="activation" if row == 2 else "")
            axes.set_title(f"{name}: channel means {ends(values['means'])},\n"
                           f"deviations {ends(values['deviations'])}", fontsize=9)
    return picture


def ends(values):
    """"lowest to highest" of some numbers, to two digits behind the point, without a minus before a zero."""
    low, high = (round(end, 2) + 0.0 for end in (min(values), max(values)))
    return f"{low:.2f} to {high:.2f}"


def tell_norms(numbers):
    sentences, apart = [], []
    for variant, parts in numbers.items():
        before, after = parts["before"], parts["after"]
        sentences.append(f"{LINES[variant]}: channels come with means of {ends(before['means'])} and deviations of "
                         f"{ends(before['deviations'])}, and leave with {ends(after['means'])} and "
                         f"{ends(after['deviations'])}.")
        apart.append(f"{max(after['means']) - min(after['means']):.2f} ({variant.upper()})")
    return ("Batch norm gives every channel a mean of 0, the others only several channels together:\n"
            f"after the norm, channel means are up to {', '.join(apart)} apart"), sentences


# --- 7. Confusions ---


def largest_confusions(counts, how_many=3):
    """Of a confusion matrix (true, predicted): the largest numbers off its diagonal, as text."""
    counts = counts.clone().fill_diagonal_(0)
    pairs = [divmod(index, len(counts)) for index in counts.flatten().topk(how_many).indices.tolist()]
    return ", ".join(f"{common.CLASSES[true]} taken for {common.CLASSES[taken]} {counts[true, taken]}"
                     for true, taken in pairs)


def confusions():
    """The confusion matrices of the scripts' own runs: variant -> counts; empty if one is missing."""
    paths = {variant: common.RESULTS / variant / "predictions.pt" for variant in common.COLOURS}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {variant: pictures.confusion(torch.load(path, weights_only=True)) for variant, path in paths.items()}


def draw_confusions(matrices, path):
    """Confusion matrices side by side."""
    picture, panels = pictures.figure(12, 4.8, len(matrices))
    for axes, (variant, counts) in zip(panels, matrices.items()):
        pictures.draw_counts(axes, counts, 6)
        axes.set_title(f"{variant.upper()}: " + largest_confusions(counts).replace(", ", "\n"), fontsize=8)
    pictures.save_picture(picture, "Which classes are taken for which, of 1,000 test images each", path)


def extremes(groups):
    """Whether automobile is the best class and cat the worst, in each of the published runs: a sentence."""
    runs = [metrics for group in groups for metrics, _ in group]
    best, worst = (collections.Counter(m[f"{end}_accurate_class"] for m in runs) for end in ("most", "least"))
    holds = best["automobile"] == worst["cat"] == len(runs)
    told = [" and ".join(f"{name} in {count}" for name, count in counter.most_common()) for counter in (best, worst)]
    verdict = "holds" if holds else "does not always hold"
    return (f"\"Best at automobile, worst at cat\" {verdict}: of {len(runs)} runs, the best class is {told[0]}; "
            f"the worst is {told[1]}.")


# --- All of them ---

HARD_CLASSES = "Which classes are easy, which hard?"
STUDIES = {
    "norms": Study(
        "What does a norm do?",
        f"{SHOWN_CHANNELS} channels of {SHOWN_LAYER} in the published networks of seed 0, {SHOWN_IMAGES} validation "
        "images; without the norm's own scale and shift", tell_norms, draw_norms, measure=measure_norms),
    "dropout": Study(
        "What does dropout do?",
        "10,000 training images, 20 epochs, 3 seeds, dropout behind c3, c7 and C10, before their inputs are added;\n"
        "bands: one standard deviation",
        tell_dropout, draw_dropout,
        {(line, p, seed): (line, f"{DROPOUT_FLAGS} --dropout {p} --seed {seed}")
         for line in common.COLOURS for p in DROPOUT for seed in SEEDS}),
    "groups": Study(
        "From layer norm to instance norm: how many groups?",
        "15,000 training images, 10 epochs, 3 seeds, no dropout; bands: one standard deviation",
        tell_groups, draw_groups,
        {("gn", groups, seed): ("gn", f"{GROUP_FLAGS} --groups {groups} --seed {seed}")
         for groups in GROUPS for seed in SEEDS} |
        {(line, None, seed): ("bn", f"{GROUP_FLAGS} {flags} --seed {seed}")
         for line, flags in (("bn", ""), (NONE, "--norm none")) for seed in SEEDS}),
    "batch": Study(
        "How small may a batch be?",
        "10,000 training images, 4 epochs, 2 seeds, no dropout; rates go by the root of the batch size,\n"
        "the moving average (of BN's statistics too) covers equally many images", tell_batch, draw_batch,
        {(line, size, seed): (line, f"{batch_flags(line, size)} --seed {seed}")
         for line in common.COLOURS for size in BATCHES for seed in SEEDS[:2]}),
    "rate": Study(
        "How high may the learning rate be?",
        "10,000 training images, 3 epochs of plain SGD, 2 seeds; crosses: diverged, drawn at chance",
        tell_rate, draw_rate,
        {(line, rate, seed): ("bn" if line == NONE else line, f"{RATE_FLAGS} {'--norm none' * (line == NONE)} "
                              f"--max-lr {rate} --other-lr {rate} --seed {seed}")
         for line in LINES for rate in RATES for seed in SEEDS[:2]}),
    "shift": Study(
        "Which norm keeps its accuracy on altered images?",
        "the published networks, the 10,000 test images; bands: one standard deviation over the seeds", tell_shift,
        draw_shift, measure=measure_shift),
}


def picture_of(name):
    return common.RESULTS / ("norms.png" if name == "norms" else f"study-{name}.png")


def complete_studies():
    """(name, study, what it found, finding, sentences) of each study that is complete."""
    for name, study in STUDIES.items():
        if found := results_of(name):
            yield name, study, found, *study.tell(found)


def draw():
    """The pictures of all studies that are complete, and of what the published runs show."""
    for name, study, found, finding, _ in complete_studies():
        pictures.save_picture(study.draw(found), f"{finding}\n{study.setting}", picture_of(name))
    if matrices := confusions():
        draw_confusions(matrices, common.RESULTS / "confusions.png")


def findings(groups, told):
    """The list in README.md of what was found, from what complete_studies told."""
    found = {study.question: finding for _, study, _, finding, _ in told}
    found[HARD_CLASSES] = extremes(groups)
    lines = (" ".join(f"- {question} {finding}".split()).rstrip(".") for question, finding in found.items())
    return "".join(f"{line}.\n" for line in lines)


def sections(groups, told):
    """The part of results/README.md about the studies that are complete, and about confusions."""
    parts = []
    for name, study, _, finding, sentences in told:
        finding, setting = (text.replace("\n", " ") for text in (finding, study.setting))
        parts.append(f"## {study.question}\n\n![{finding}]({picture_of(name).name})\n\n{finding} ({setting}; "
                     f"`make study-{name}`).\n\n" + "\n".join(f"- {sentence}" for sentence in sentences) + "\n")
    if matrices := confusions():
        parts.append(f"## {HARD_CLASSES}\n\n![Confusion matrices of the three](confusions.png)\n\n{extremes(groups)} "
                     "(The picture: seed 0, the 10,000 test images; `make plots`.)\n")
        parts.append("".join(f"- {LINES[variant]}: {largest_confusions(counts)}.\n"
                             for variant, counts in matrices.items()))
    return parts


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tools.studies", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    name = parser.parse_args(argv).study
    study = STUDIES[name]
    try:
        if study.measure:
            study.measure()
        for variant, flags in study.runs.values():
            train(name, variant, flags)
        draw()
        report.compare()
    except (RunError, OSError) as error:
        sys.exit(f"{name}: {error}")


if __name__ == "__main__":
    main()
