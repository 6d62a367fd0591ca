"""Saved runs, and the scripts that train them: write, read and pool runs; find, load and identify scripts.

A run is one dict of metrics, METRICS, with its history as columns, HISTORY: metrics.json in the run's folder next to
its weights, or <run>.json alone. A script is a variant if it assigns RECIPE.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import io
import json
import re
import secrets

import torch

from support import cli, files, inspection, machine, plots
from support.files import RunError, write_file

HISTORY = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
METRICS = (
    "variant", "run", "recipe", "code", "checkout", "parameters", "macs", "train_images", "seed", "device", "processor",
    "precision", "threads", "torch", "epochs", "best_epoch", "stopped_early", "diverged", "seconds",
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "per_class_accuracy",
    "history")
SAME = ("recipe", "code", "torch", "device", "precision")  # what the pooled runs of other seeds have in common


# --- Runs ---


def new_metrics(options, precision, model, train_images, staging):
    """Write summary.txt, and return the metrics of a run: those known before training, the others None."""
    summary, parameters, macs = inspection.summarize(model)
    write_file(staging / "summary.txt", f"{summary}\n".encode())
    return dict.fromkeys(METRICS) | machine.environment(options.device, precision) | options.identity | {
        "code": code_digest(options.identity["variant"]), "checkout": checkout_id(), "train_images": train_images,
        "parameters": parameters, "macs": macs, "stopped_early": False, "diverged": False}


def save(metrics, tensors, staging, options):
    """Save a run as a folder with weights, predictions, summary and figures, or as <run>.json with --metrics-only.

    The history, a list of dicts, becomes a dict of columns. Prints what was reached and where it is. Raises RunError.
    """
    history = {column: [round(row[column], 6) for row in metrics["history"]] for column in HISTORY}
    metrics, final, replaced = metrics | {"history": history}, options.output_dir / metrics["run"], None
    if options.metrics_only:
        final = final.with_name(f"{final.name}.json")
        write_file(final, to_json(metrics))
    else:
        write_file(staging / "metrics.json", to_json(metrics))
        for name, values in tensors.items():
            buffer = io.BytesIO()
            torch.save(values, buffer)
            write_file(staging / f"{name}.pt", buffer.getvalue())
        plots.plot_run(staging, metrics, tensors.get("predictions"))
        replaced = files.publish(staging, final)
    if not metrics["diverged"]:
        print(f"{metrics['run']}: best epoch {metrics['best_epoch']}, validation accuracy "
              f"{metrics['val_accuracy']:.2%}; see {final}")
    if metrics["test_accuracy"] is not None:
        print(f"test accuracy {metrics['test_accuracy']:.2%}", end="")
        with contextlib.suppress(RunError, KeyError, TypeError):  # whatever lay there
            print(f"; the previous run had {read(replaced)['test_accuracy']:.2%} (kept in {replaced})", end="")
        print()


def to_json(metrics):
    """Return metrics as the bytes of a JSON file with every list on one line."""
    text = json.dumps(metrics, indent=2)
    return (re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n").encode()


@contextlib.contextmanager
def reading(path):
    """Raise RunError with a remedy if the block cannot read a file."""
    try:
        yield
    except Exception as error:  # any kind: the file may be anything
        raise RunError(f"cannot read {path} ({type(error).__name__}): `git checkout {path}` restores a published file; "
                       "anything else must be run again") from None


def read_json(path):
    """Return the objects in a JSON file, or in a file of JSON lines. Raises RunError if it is missing or damaged."""
    with reading(path):
        text = path.read_text(encoding="utf-8")
        return [json.loads(part) for part in (text.splitlines() if path.suffix == ".jsonl" else [text])]


def read(folder):
    """Return the metrics of a run. Raises RunError if they are missing or damaged."""
    return read_json(folder / "metrics.json")[0]


def load_tensors(folder, name):
    """Return the dict of tensors <name>.pt of a run. Raises RunError if it is missing or damaged."""
    with reading(folder / f"{name}.pt"):
        return torch.load(folder / f"{name}.pt", weights_only=True)


def load_weights(model, folder):
    """Return a network with the weights of a run. Raises RunError if they are missing, damaged or do not fit."""
    try:
        model.load_state_dict(load_tensors(folder, "model"))
    except RuntimeError:
        raise RunError(f"{folder} has the weights of another network than common.py's: train it again") from None
    return model


def folders():
    """Return the folders of all runs in results/."""
    return sorted(path.parent for path in files.RESULTS.glob("*/metrics.json"))


def published():
    """Return a list per loadable variant: the metrics of its tested run, then of other seeds that agree in SAME."""
    groups = []
    for variant in variants():
        seeds = [folder for folder in folders() if re.fullmatch(rf"{variant}(-seed=\d+)?", folder.name)]
        group = [read(folder) for folder in seeds]  # "bn" sorts before "bn-seed=1"
        if group and group[0]["run"] == variant and group[0]["test_accuracy"] is not None and not script_error(variant):
            groups.append([run for run in group if all(run[key] == group[0][key] for key in SAME)])
    return groups


def left_out(groups):
    """Return a line for each run of a script that published() left out of its groups."""
    pooled = {run["run"] for group in groups for run in group}
    reason = f"not tested or of other {', '.join(SAME)} than the run of the script today"
    return [f"left out: {folder.name}, {reason if folder.name.partition('-')[0] in variants() else 'script deleted'}"
            for folder in folders() if re.fullmatch(r"\w+(-seed=\d+)?", folder.name) and folder.name not in pooled]


# --- Scripts ---


is_loading = False  # whether a script is being imported, and must not train


def variants():
    """Return the names of the scripts that assign RECIPE, as in the Makefile. Raises RecipeError for a bad name."""
    names = []
    for path in sorted(files.ROOT.glob("[!.]*.py")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.search(r"^\s*RECIPE\s*(:[^=]*)?=(?!=)", path.read_text(encoding="utf-8"), re.MULTILINE):
                names.append(path.stem)
    for name in names:
        cli.check_name(name)
    return names


def load_script(name):
    """Return the recipe of a script. Raises RunError if there is no such script, or if it cannot be loaded."""
    global is_loading
    if name not in variants():
        raise RunError(f"there is no variant {name!r}, only {', '.join(variants())}")
    is_loading = True
    try:
        return importlib.import_module(name).RECIPE
    except (Exception, SystemExit) as error:  # any kind: the script may be anything
        raise RunError(f"{name}.py cannot be loaded: {type(error).__name__}: {error}") from None
    finally:
        is_loading = False


def script_error(name):
    """Return why a script cannot be loaded, or None if it can."""
    try:
        return load_script(name) and None
    except RunError as error:
        return str(error)


def recipe_of(metrics):
    """Return the recipe of a saved run: that of its script with the saved values. Raises RunError."""
    script, values = load_script(metrics["variant"]), dict(metrics["recipe"])
    if set(values) != set(cli.to_dict(script)) or len(values["widths"]) != len(script.widths):
        raise RunError(f"results/{metrics['run']} has other recipe fields or layers than common.py: train it again")
    return dataclasses.replace(script, **values | {"norm": script.norm if values["norm"] else None})


def code_digest(variant):
    """Return a SHA-256 of a script and common.py."""
    contents = [(files.ROOT / f"{name}.py").read_bytes() for name in (variant, "common")]
    return hashlib.sha256(b"".join(contents)).hexdigest()


def checkout_id():
    """Return a random name of this copy of the project, made at the first call; git does not track it."""
    path = files.RESULTS / ".checkout"
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.lock(path.with_name(".checkout.lock"), f"{path} is being written", wait=True):
        if not path.exists():
            write_file(path, secrets.token_hex(8).encode())
    return path.read_text()


def is_current(folder, precision):
    """Return whether a run was trained in this copy of the project, with today's code and the given precision."""
    if not (folder / "metrics.json").exists() or script_error((run := read(folder))["variant"]):
        return False
    expected = {"code": code_digest(run["variant"]), "checkout": checkout_id(), "precision": precision}
    return all(run[key] == value for key, value in expected.items())
