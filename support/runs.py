"""Saved runs: how their numbers are written, read, collected over trainings, pooled over seeds, put into tables.
For whoever reads results/ by a program.

A run in a folder of its own has metrics.json, history.csv, and its tensors; of the short trainings of a study only the
numbers are kept, as a line of JSON each in one file: what metrics.json holds, and the history column by column.
"""

import contextlib
import csv
import io
import json
import shutil
import statistics
from typing import NamedTuple

import torch

from support import storage
from support.cifar10 import CLASSES
from support.storage import RunError, write_file

STUDIES = "studies"  # the folder of the studies' numbers, beside those of the runs
HISTORY = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
METRICS = (
    "variant", "run", "recipe", "parameters", "multiply_adds", "epochs", "max_epochs", "best_epoch", "stopped_early",
    "diverged", "train_images", "limit", "seed", "device", "precision", "threads", "torch", "seconds",
    "seconds_per_epoch", "peak_memory_mb", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss",
    "test_accuracy", "per_class_accuracy", "most_accurate_class", "least_accurate_class")


class Run(NamedTuple):
    metrics: dict  # what METRICS names
    history: list  # of an epoch each: a dict of what HISTORY names


# --- A run in a folder of its own ---


def save(folder, metrics, history, tensors):
    """Write metrics.json and history.csv, and each dict of tensors as <name>.pt. Raises RunError."""
    for name, values in tensors.items():
        buffer = io.BytesIO()
        torch.save(values, buffer)
        write_file(folder / f"{name}.pt", buffer.getvalue())
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: round(value, 6) for key, value in row.items()} for row in history)
    write_file(folder / "history.csv", text.getvalue().encode())
    write_file(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def read(folder):
    """The numbers of a run."""
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    history = [{key: float(value) for key, value in row.items()} for row in rows]
    return Run(json.loads((folder / "metrics.json").read_text()), history)


def class_metrics(predicted, targets):
    """Of predictions, int64 (N,): the share of each class that is right, the best class and the worst."""
    share = {name: (predicted[targets == label] == label).double().mean().item() for label, name in enumerate(CLASSES)}
    return {"per_class_accuracy": share, "most_accurate_class": max(share, key=share.get),
            "least_accurate_class": min(share, key=share.get)}


def test_accuracy(folder):
    """Of a run; None if there is none, or it is damaged or wasn't tested."""
    with contextlib.suppress(RunError):
        storage.verify(folder)
        return read(folder).metrics["test_accuracy"]
    return None


def announce(metrics, place, replaced):
    """Print what a run reached, where it lies, and what the run reached that it replaced, if it did."""
    print(f"{metrics['run']}: kept epoch {metrics['best_epoch']}, validation accuracy {metrics['val_accuracy']:.2%}; "
          f"see {place}")
    if metrics["test_accuracy"] is not None:
        before = test_accuracy(replaced) if replaced else None
        print(f"test accuracy {metrics['test_accuracy']:.2%}" + (
            f"; the run before had {before:.2%} (kept in {replaced})" if before else ""))


def load_tensors(folder, name):
    return torch.load(folder / f"{name}.pt", weights_only=True)


def complete(results):
    """The folders of all runs in `results`, those included that a kill kept from their place."""
    storage.finish_interrupted(results)
    return sorted(sums.parent for sums in results.glob(f"*/{storage.SUMS}") if sums.parent.name != STUDIES)


def over_seeds(results, variant):
    """The run of a variant's script, and after it those of other seeds that may be pooled with it: of equal recipe,
    torch and device. Empty if the script's own run is missing or wasn't tested. Raises RunError for damaged files."""
    own = results / variant
    others = sorted(sums.parent for sums in results.glob(f"{variant}-seed=*/{storage.SUMS}"))
    if not (own / storage.SUMS).exists():
        return []
    folders = [own, *(folder for folder in others if folder.name.rpartition("=")[2].isdigit())]
    for folder in folders:
        storage.verify(folder, pictures=False)
    pool = [read(folder) for folder in folders]
    first, alike = pool[0].metrics, ("recipe", "torch", "device", "precision")
    if first["test_accuracy"] is None:
        return []
    return [run for run in pool if all(run.metrics[key] == first[key] for key in alike)]


# --- The short trainings of a study, in one file ---


def read_lines(path, key="run"):
    """The runs in a file of JSON lines: name -> metrics. Raises RunError if it isn't what was signed."""
    return {line[key]: line for line in map(json.loads, storage.read_signed(path).splitlines())}


def as_line(run):
    return run.metrics | {"history": {column: [row[column] for row in run.history] for column in HISTORY}}


def with_line(data, line):
    """The bytes of a file of JSON lines with one more, instead of the one of the same name if there is one."""
    others = [other for other in data.decode().splitlines() if json.loads(other)["run"] != line["run"]]
    return "".join(f"{text}\n" for text in [*others, json.dumps(line)]).encode()


def collect(waiting, path):
    """Move the complete runs in the folder `waiting` into the JSON lines of `path`, each by one atomic write.

    A kill loses none: a run is deleted only when its line is written, and a line that was signed but not written is
    written by the next call. Raises RunError if a file is damaged."""
    storage.finish_interrupted(waiting)
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting.mkdir(parents=True, exist_ok=True)
    with storage.lock(waiting.parent / "lock", path.name, wait=True):
        folders = sorted(sums.parent for sums in waiting.glob(f"*/{storage.SUMS}"))
        for folder in folders:
            storage.verify(folder)
        lines = {folder: as_line(read(folder)) for folder in folders}
        data = read_with(path, lines.values())
        for folder, line in lines.items():
            data = with_line(data, line)
            storage.write_signed(path, data)
            (folder / storage.SUMS).unlink()  # so that a kill doesn't leave half a run that looks complete
            shutil.rmtree(folder)


def read_with(path, lines):
    """The bytes of a file of JSON lines, also if it is signed with one of `lines` but not yet written so."""
    try:
        return storage.read_signed(path)
    except RunError:
        with contextlib.suppress(OSError, ValueError):
            data, signed = path.read_bytes() if path.exists() else b"", storage.read_sums(path.parent).get(path.name)
            if signed in [storage.digest(with_line(data, line)) for line in lines]:
                return data
        raise


# --- Numbers in words and tables ---


def mean_and_sd(values, text="{:.2f}"):
    """"mean ± sample standard deviation" of the values, or the only value; "–" if one is missing."""
    if None in values:
        return "–"
    mean = text.format(statistics.mean(values))
    return f"{mean} ± {text.format(statistics.stdev(values))}" if len(values) > 1 else mean


def percent(values):
    """mean_and_sd of shares, in per cent."""
    return mean_and_sd([None if value is None else 100 * value for value in values])


def value_range(values):
    """"lowest to highest" of some numbers, to two digits behind the point, without a minus before a zero."""
    low, high = (round(end, 2) + 0.0 for end in (min(values), max(values)))
    return f"{low:.2f} to {high:.2f}"


def beyond_noise(a, b):
    """Whether the means of two lists differ by more than twice the larger standard deviation."""
    return abs(statistics.mean(a) - statistics.mean(b)) > 2 * max(statistics.stdev(a), statistics.stdev(b))


def clearly_higher(a, b):
    """Whether the mean of the first of two lists is the higher one beyond the noise."""
    return beyond_noise(a, b) and statistics.mean(a) > statistics.mean(b)


def markdown(head, rows, align="---"):
    """The text of a table, the columns but for the first aligned by `align`."""
    rule = ["---"] + [align] * (len(head) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, rule, *rows])
