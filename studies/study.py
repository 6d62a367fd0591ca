"""What the studies share: what a study is, and how what it found is compared, drawn and told."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable

import common
from studies.trainings import add_options, numbers_file, pooled, print_missing, published, train_missing
from support import machine, pictures, runs, scripts, storage
from support.runs import beyond_noise, markdown, mean_and_sd
from support.storage import RunError

SEEDS = (0, 1, 2)
NO_NORM = "none"
LINES = {"bn": "batch norm", "gn": "group norm", "ln": "layer norm", NO_NORM: "no norm"}  # others: as their script
CHANCE = 1 / len(common.CLASSES)


@dataclasses.dataclass(frozen=True)
class Study:
    """A question, and how it is answered. What was found comes from trainings, from a measurement, or from what is
    published; the last three fields tell. A study with several of these puts them together in `read`."""

    name: str  # of the module, its picture and its numbers
    docstring: str  # of the module: the question, and below it what theory expects
    setting: str  # what the runs have in common
    finding: Callable  # what was found -> a sentence
    table: Callable  # what was found -> Markdown with the numbers behind that
    draw: Callable  # what was found -> the picture
    title: str | None = None  # of the picture; None: the finding and the setting
    trainings: dict = dataclasses.field(default_factory=dict)  # (line, x, seed) -> (variant, flags)
    measure: Callable | None = None  # () -> numbers to save, of this machine or of the published networks
    read: Callable | None = None  # () -> what was found, or None if something is missing

    @property
    def question(self):
        return self.docstring.partition("\n")[0]

    @property
    def expectation(self):
        """What theory expects, a line for each paragraph."""
        paragraphs = self.docstring.strip().split("\n\n")[1:]
        return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)

    def found(self):
        """From the saved files: {(line, x): metrics of each seed}, or numbers; None if something is missing."""
        if self.read:
            return self.read()
        if self.measure:
            return measured(self.name)
        return pooled(self.name, self.trainings)


def measured(name):
    """What the measurement of a study gave when it was last made; None if it never was. Raises RunError."""
    return json.loads(storage.read_signed(numbers_file(name, "json")) or "null")


def picture_file(study):
    return common.RESULTS / f"{study.name}.png"


# --- What is published ---


def published_models():
    """The networks of the published runs that kept their weights: variant -> a list over the seeds."""
    folders = {group[0].metrics["variant"]: [common.RESULTS / run.metrics["run"] for run in group]
               for group in published()}
    return {variant: [common.load_model(folder) for folder in seeds if (folder / "model.pt").exists()]
            for variant, seeds in folders.items()}


# --- Numbers ---


def accuracies(group, part="val"):
    """Of each run, in per cent; chance for one that diverged."""
    return [100 * (CHANCE if metrics["diverged"] else metrics[f"{part}_accuracy"]) for metrics in group]


def losses(group):
    """Of each run, on the validation images."""
    return [metrics["val_loss"] for metrics in group]


def gaps(group):
    """Training accuracy (without dropout and augmentation) less validation accuracy, in points."""
    return [train - val for train, val in zip(accuracies(group, "train"), accuracies(group), strict=True)]


def table(found, measure, corner, labels, than):
    """Markdown with a row for each line, and a column for each x of `labels`, {x: its label}; bold is what differs
    beyond the noise from the same line at x = `than`."""
    rows = []
    for line in dict.fromkeys(line for line, _ in found):
        values = {x: measure(found[line, x]) for x in labels}
        rows.append([LINES[line], *(emphasized(mean_and_sd(values[x]), beyond_noise(values[x], values[than]))
                                    for x in labels)])
    return markdown([corner, *labels.values()], rows, "---:")


VALIDATION = ("multiply-adds, M", "validation accuracy, %", "validation loss")


def validation_cells(group):
    """What VALIDATION names, of runs of equal recipe, as text."""
    return [f"{group[0]['multiply_adds'] / 1e6:.1f}", runs.percent([metrics["val_accuracy"] for metrics in group]),
            mean_and_sd(losses(group), "{:.3f}")]


def emphasized(text, really):
    return f"**{text}**" if really else text


# --- Pictures ---


def name_of(line):
    return LINES.get(line, line)


def colour_of(line):
    return scripts.colours(common.ROOT).get(line, pictures.GREY)


def draw_line(axes, line, xs, values, title=None, **style):
    pictures.draw_means(axes, xs, values, colour_of(line), label=title or name_of(line), **style)


def draw_lines(axes, found, measure):
    """A line for each one of `found`; diverged runs are marked by a cross."""
    for line in dict.fromkeys(line for line, _ in found):
        xs = [x for other, x in found if other == line]
        draw_line(axes, line, xs, [measure(found[line, x]) for x in xs], marker="o", markersize=3)
        lost = [(x, *measure([metrics])) for x in xs for metrics in found[line, x] if metrics["diverged"]]
        axes.plot([x for x, _ in lost], [y for _, y in lost], "x", markersize=8, color=colour_of(line))
    axes.grid(alpha=0.3)


# --- Command line ---


def draw(study):
    """Draw a study into results/<name>.png if it is complete; the finding, or None."""
    found = study.found()
    if not found:
        return None
    finding = study.finding(found)
    title = study.title or f"{finding}\n{study.setting}"
    pictures.save_picture(study.draw(found), title, picture_file(study))
    return finding


def main(study, argv=None):
    """Train or measure what a study lacks, draw its picture, and print its finding."""
    parser = argparse.ArgumentParser(prog=f"python -m studies.{study.name}", description=study.question)
    add_options(parser)
    options = parser.parse_args(argv)
    try:
        if options.list:
            return print_missing(study.name, study.trainings) if study.trainings else None
        machine.keep_freed_memory()
        if study.measure:
            path = numbers_file(study.name, "json")
            path.parent.mkdir(parents=True, exist_ok=True)
            storage.write_signed(path, (json.dumps(study.measure(), indent=1) + "\n").encode())
        if study.trainings:
            train_missing(study.name, study.trainings, options.jobs)
        print(draw(study) or "there is nothing to draw yet: type `make all`")
    except (RunError, OSError) as error:
        sys.exit(f"{study.name}: {error}")
