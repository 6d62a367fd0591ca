"""Across runs: tables, comparison, and the check of what is published. Run as `python -m tools.report COMMAND`."""

import argparse
import dataclasses
import importlib
import re
import sys

import torch

import common
from common import COLOURS
from tools import pictures, storage
from tools.storage import RunError, write_file

README, BLOCK = common.ROOT / "README.md", re.compile("(<!-- results: .* -->\n).*(<!-- end of results -->)", re.DOTALL)


def script_of(variant):
    """The recipe of a script. Raises RunError if there is no such variant."""
    if variant not in COLOURS:
        raise RunError(f"there is no variant {variant!r}, only {', '.join(COLOURS)}")
    return importlib.import_module(variant).RECIPE


def recipe_of(metrics):
    """The recipe that a saved run was trained by, overrides included. Raises RunError."""
    script, values = script_of(metrics["variant"]), dict(metrics["recipe"])
    if set(values) != set(script.values()):
        raise RunError(f"results/{metrics['run']} has other recipe fields than common.py: train it again")
    values["norm"] = None if values["norm"] == "none" else script.norm
    return dataclasses.replace(script, **values | {"widths": tuple(values["widths"])})


def complete_runs():
    storage.finish_interrupted(common.RESULTS)
    return sorted(sums.parent for sums in common.RESULTS.glob("*/SHA256SUMS"))


def published_runs():
    """Metrics and history of the scripts' own runs, verified."""
    folders = [common.RESULTS / variant for variant in COLOURS if (common.RESULTS / variant / "SHA256SUMS").exists()]
    for folder in folders:
        storage.verify(folder, pictures=False)
    return [common.read_run(folder) for folder in folders]


def markdown(rows):
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in rows]


def table(runs):
    """Runs as a Markdown table, with a line on how the numbers came about."""
    def share(value):
        return "–" if value is None else f"{value:.2%}"

    def loss(value):
        return "–" if value is None else f"{value:.3f}"

    head = ("run", "parameters", "epochs (kept)", "train accuracy", "val accuracy", "**test accuracy**", "train loss",
            "val loss", "**test loss**", "best class", "worst class", "minutes")
    rows = [head, ["---"] * len(head)]
    for m in runs:
        ends = [m["most_accurate_class"], m["least_accurate_class"]]
        rows.append([
            m["run"], f"{m['parameters']:,}",
            f"diverged in {m['epochs']}" if m["diverged"] else f"{m['epochs']} ({m['best_epoch']})",
            share(m["train_accuracy"]), share(m["val_accuracy"]), f"**{share(m['test_accuracy'])}**",
            loss(m["train_loss"]), loss(m["val_loss"]), f"**{loss(m['test_loss'])}**",
            *(f"{name} {m['per_class_accuracy'][name]:.1%}" if name else "–" for name in ends),
            f"{m['seconds'] / 60:.0f}" if m["seconds"] else "–"])
    lines = markdown(rows)
    images = sorted({f"{m['train_images']:,}" for m in runs})
    machines = sorted({f"{m['device']}, {m['threads']} threads, {m['precision']}, torch {m['torch']}" for m in runs})
    seeds = sorted({str(m["seed"]) for m in runs})
    memory = max(m.get("peak_memory_mb") or 0 for m in runs)
    lines += ["", f"One run each, seed {', '.join(seeds)}, on {' or '.join(images)} training images "
              f"({'; '.join(machines)}). The epoch is chosen by validation loss; the test images are read once, after "
              "training. Losses are cross-entropy in nats, train's with the kept weights and without augmentation. "
              "Minutes are those of training and testing"
              + (f"; the process held {memory / 1000:.2f} GB of memory at most." if memory else ".")]
    return "\n".join(lines) + "\n"


def results_page(runs):
    """results/README.md: the table, and every picture."""
    parts = ["# Results\n\nWritten by `make all` and `make plots` from the files of the runs.\n",
             table([metrics for metrics, _ in runs]),
             "![Validation loss and accuracy of the variants, epoch by epoch](comparison.png)\n"]
    for metrics, _ in runs:
        name = metrics["run"]
        parts.append(f"## {name}\n\n![Loss and accuracy of {name}, epoch by epoch]({name}/curves.png)\n\n"
                     f"![Confusion matrix of {name}]({name}/confusion.png)\n\n"
                     f"![Test images that {name} gets wrong]({name}/misclassified.png)\n")
    return "\n".join(parts)


def readme_with(text, runs):
    """The text of README.md with the block between its two markers written anew. Raises RunError without markers."""
    if not BLOCK.search(text):
        raise RunError(f"{README} lacks the two markers of the block of results")
    return BLOCK.sub(lambda match: match[1] + table([m for m, _ in runs]) + match[2], text)


def compare():
    """Write comparison.png, results/README.md and the block of README.md from the scripts' own runs."""
    runs = [run for run in published_runs() if run[0]["test_accuracy"] is not None]
    if not runs:
        raise RunError("nothing to compare yet: type `make all`")
    pictures.draw_comparison(runs, common.RESULTS / "comparison.png")
    write_file(common.RESULTS / "README.md", results_page(runs).encode())
    write_file(README, readme_with(README.read_text(encoding="utf-8"), runs).encode())
    print(table([metrics for metrics, _ in runs]))


def plots():
    """Redraw every picture and table from the saved results."""
    from tools import bench  # which imports this file

    for folder in complete_runs():
        storage.verify(folder, pictures=False)
        pictures.draw_run(folder)
        storage.sign(folder)
    compare()
    bench.write_page()


def check():
    """Verify every complete run, evaluate its weights on the test set again, and compare the published tables."""
    from tools import bench  # which imports this file

    folders = complete_runs()
    if not folders:
        raise RunError(f"there is nothing to check in {common.RESULTS}: type `make all`")
    images, targets = common.load_data("test")
    for folder in folders:
        storage.verify(folder)
        metrics, _ = common.read_run(folder)
        recipe = recipe_of(metrics)
        if folder.name == metrics["variant"] and recipe != script_of(metrics["variant"]):
            raise RunError(f"{folder} has another recipe than {folder.name}.py: type `make {folder.name}`")
        if metrics["test_accuracy"] is None:
            print(f"{folder.name}: files as signed; not tested")
            continue
        model = common.build_model(recipe)
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        loss, accuracy, _ = common.evaluate(model, images, targets)
        differ = round(abs(accuracy - metrics["test_accuracy"]) * len(targets))
        print(f"{folder.name}: files as signed; test accuracy {accuracy:.2%}, loss {loss:.4f}; {differ} images differ")
        if differ > 10 or not abs(loss - metrics["test_loss"]) <= 1e-3:
            published = f"{metrics['test_accuracy']:.2%}, loss {metrics['test_loss']:.4f}"
            raise RunError(f"{folder.name} published accuracy {published}: its weights do not reach that here")
    runs = [run for run in published_runs() if run[0]["test_accuracy"] is not None]
    text, page = (path.read_text(encoding="utf-8") for path in (README, common.RESULTS / "README.md"))
    if text != readme_with(text, runs) or page != results_page(runs):
        raise RunError("README.md or results/README.md is not what results/ yields: type `make plots`")
    if bench.page_differs():
        raise RunError("results/bench.md is not what results/bench.json yields: type `make plots`")
    print("README.md, results/README.md and results/bench.md: as results/ yields")


def summary():
    """Print torchinfo's table of every variant, and the budget."""
    for variant in COLOURS:
        info = common.describe(script_of(variant))
        print(f"{variant}.py\n{info}\n{info.total_params:,} parameters, fewer than {common.MAX_PARAMETERS:,}\n")


def data():
    """Get the data set and check it."""
    images = sum(len(common.load_data(split)[0]) for split in ("train", "test"))
    print(f"data: {images:,} images in {common.DATA}, all digests right")


def show(args):
    """Print the table of the variants' runs with the flags `args`."""
    runs = []
    for variant in COLOURS:
        script = script_of(variant)
        recipe, options = common.parse_args(script, args)
        folder = common.RESULTS / common.run_name(recipe, script, options.limit, options.seed, options.test)
        storage.verify(folder, pictures=False)
        runs.append(common.read_run(folder)[0])
    print(table(runs))


def main(argv=None):
    commands = {"data": data, "summary": summary, "plots": plots, "compare": compare, "check": check, "show": show}
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("command", choices=commands)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="for show: the flags of the runs")
    options = parser.parse_args(argv)
    try:
        commands[options.command](*([options.args] if options.command == "show" else []))
    except (RunError, OSError) as error:
        sys.exit(f"{options.command}: {error}")


if __name__ == "__main__":
    main()
