"""Across runs: tables, comparison, and the check of what is published. Run as `python -m tools.report COMMAND`."""

import argparse
import dataclasses
import importlib
import re
import statistics
import sys

import torch

import common
from common import COLOURS
from tools import pictures, storage
from tools.storage import RunError, write_file

OTHERS = [  # test accuracy in per cent, as their authors give it; the budget of the first two is the assignment's
    ["best public answer to the assignment that we found", "81.7", "75.0", "73.7", "< 50,000", "≤ 20", "test set"],
    ["the assignment's course notes (validation accuracy)", "76", "70", "–", "< 50,000", "≤ 20", "early stopping"],
    ["MLPerf Tiny's quality target (not a result), and its reference network", "85", "", "", "78,000", "500", ""],
]
README = common.ROOT / "README.md"


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


def load_model(folder, recipe):
    """The network of a verified run by `recipe`, with its saved weights."""
    model = common.build_model(recipe)
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return model


def complete_runs():
    storage.finish_interrupted(common.RESULTS)
    return sorted(sums.parent for sums in common.RESULTS.glob("*/SHA256SUMS"))


def published_runs():
    """For each variant the script's own run, and after it those of other seeds that may be pooled with it: of equal
    recipe, torch and device. A run is a pair of metrics and history; its files are verified."""
    groups = []
    for variant in COLOURS:
        seeds = sorted(common.RESULTS.glob(f"{variant}-seed=*/{storage.SUMS}"))
        folders = [common.RESULTS / variant, *(path.parent for path in seeds if path.parent.name[8:].isdigit())]
        if (folders[0] / storage.SUMS).exists():
            for folder in folders:
                storage.verify(folder, pictures=False)
            runs = [common.read_run(folder) for folder in folders]
            first = runs[0][0]
            if first["test_accuracy"] is not None:
                alike = ("recipe", "torch", "device", "precision")
                groups.append([run for run in runs if all(run[0][key] == first[key] for key in alike)])
    return groups


def markdown(rows):
    """The lines of a table."""
    return ["| " + " | ".join(row) + " |" for row in rows]


def spread(values, text="{:.2f}"):
    """"mean ± sample standard deviation" of the values, or the only value; "–" if one is missing."""
    if None in values:
        return "–"
    mean = text.format(statistics.mean(values))
    return f"{mean} ± {text.format(statistics.stdev(values))}" if len(values) > 1 else mean


def percent(values):
    return spread([None if value is None else 100 * value for value in values])


def table(groups):
    """A Markdown table with a row for each group of metrics of equal recipe, and a line on how they came about."""
    head = ("run", "n", "parameters", "epochs (kept)", "train accuracy, %", "val accuracy, %", "**test accuracy, %**",
            "train loss", "val loss", "**test loss**", "best class", "worst class", "minutes")
    rows = [head, ["---"] * len(head)]
    for group in groups:
        first, diverged = group[0], [m["epochs"] for m in group if m["diverged"]]
        every = {key: [m[key] for m in group] for key in first}
        epochs = (f"diverged in {diverged[0]}" if diverged else
                  ", ".join(sorted({f"{m['epochs']} ({m['best_epoch']})" for m in group})))
        classes = class_accuracies(group)
        ends = [pick(classes, key=classes.get) for pick in (max, min)] if classes else []
        rows.append([
            first["run"], str(len(group)), f"{first['parameters']:,}", epochs,
            percent(every["train_accuracy"]), percent(every["val_accuracy"]), f"**{percent(every['test_accuracy'])}**",
            *(spread(every[f"{part}_loss"], "{:.3f}") for part in ("train", "val")),
            f"**{spread(every['test_loss'], '{:.3f}')}**",
            *([f"{name} {classes[name]:.1%}" for name in ends] or "––"),
            f"{statistics.mean(every['seconds']) / 60:.0f}" if None not in every["seconds"] else "–"])
    everything = [metrics for group in groups for metrics in group]
    images = sorted({f"{m['train_images']:,}" for m in everything})
    machines = sorted({f"{m['device']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['precision']}, "
                       f"torch {m['torch']}" for m in everything})
    seeds = ", ".join(map(str, sorted({m["seed"] for m in everything})))
    memory = max(m.get("peak_memory_mb") or 0 for m in everything)
    how = ("One run each, seed" if all(len(group) == 1 for group in groups) else
           "Mean ± sample standard deviation of n runs, seeds")
    lines = markdown(rows)
    lines += ["", f"{how} {seeds}, on {' or '.join(images)} training images "
              f"({'; '.join(machines)}). The epoch is chosen by validation loss; the test images are read once, after "
              "training. Losses are cross-entropy in nats, train's with the kept weights and without augmentation. "
              "Minutes are those of training and testing"
              + (f"; the process held {memory / 1000:.2f} GB of memory at most." if memory else ".")]
    return "\n".join(lines) + "\n"


def class_accuracies(group):
    """Test accuracy of each class, the mean over a group of metrics; empty if one was not tested."""
    tested = [m["per_class_accuracy"] for m in group if m["per_class_accuracy"]]
    if len(tested) < len(group):
        return {}
    return {name: statistics.mean(accuracies[name] for accuracies in tested) for name in common.CLASSES}


def beside_others(groups):
    """A Markdown table of our test accuracy beside the figures of others."""
    head = ["", *(f"{variant.upper()}, %" for variant in COLOURS), "parameters", "epochs", "epoch chosen on"]
    ours = {group[0]["variant"]: group for group in groups}
    cells = [f"**{percent([m['test_accuracy'] for m in ours[v]])}**" if v in ours else "–" for v in COLOURS]
    parameters = " or ".join(sorted({f"{group[0]['parameters']:,}" for group in groups}))
    counts = sorted({len(group) for group in groups})
    count = f"mean of {' or '.join(map(str, counts))} seeds" if counts != [1] else "one seed"
    lines = [head, ["---"] * len(head),
             [f"this project ({count})", *cells, parameters, str(groups[0][0]["max_epochs"]), "validation set"]]
    return "\n".join(markdown(lines + OTHERS)) + "\n"


def all_tables(groups):
    """Both tables, from groups of runs."""
    metrics = [[metrics for metrics, _ in group] for group in groups]
    return beside_others(metrics) + "\n" + table(metrics)


def own_pages(groups):
    """The texts of README.md and results/README.md as results/ yields them. Raises RunError as readme_with does."""
    from tools import studies  # which imports this file

    told = list(studies.complete_studies())
    return (readme_with(README.read_text(encoding="utf-8"), all_tables(groups), studies.findings(groups, told)),
            results_page(groups, studies.sections(groups, told)))


def results_page(groups, sections):
    """results/README.md: the tables, the pictures of each variant's own run, and the sections about studies."""
    parts = ["# Results\n\nWritten by `make all`, `make seeds` and `make plots` from the files of the runs.\n",
             all_tables(groups),
             "![Validation loss and accuracy of the variants, epoch by epoch](comparison.png)\n"]
    for group in groups:
        name = group[0][0]["run"]
        parts.append(f"## {name}\n\n![Loss and accuracy of {name}, epoch by epoch]({name}/curves.png)\n\n"
                     f"![Confusion matrix of {name}]({name}/confusion.png)\n\n"
                     f"![Test images that {name} gets wrong]({name}/misclassified.png)\n")
    return "\n".join(parts + sections)


def readme_with(text, results, findings):
    """The text of README.md with its two blocks written anew, each between two markers. Raises RunError without."""
    for name, lines in ("results", results), ("findings", findings):
        block = re.compile(f"(<!-- {name}: [^\n]*-->\n).*(<!-- end of {name} -->)", re.DOTALL)
        if not block.search(text):
            raise RunError(f"{README} lacks the two markers of the block of {name}")
        text = block.sub(lambda match: match[1] + lines + match[2], text)
    return text


def compare():
    """Write comparison.png, results/README.md and the block of README.md from the published runs."""
    groups = published_runs()
    if not groups:
        raise RunError("nothing to compare yet: type `make all`")
    pictures.draw_comparison(groups, common.RESULTS / "comparison.png")
    readme, page = own_pages(groups)
    write_file(common.RESULTS / "README.md", page.encode())
    write_file(README, readme.encode())
    print(all_tables(groups))


def other_pages():
    """The pages of the benchmark and the ablation as their saved numbers yield them: path -> text."""
    from tools import ablation, bench  # which import this file

    return bench.pages() | ablation.pages()


def plots():
    """Redraw every picture and table from the saved results."""
    from tools import studies  # which imports this file

    for folder in complete_runs():
        storage.verify(folder, pictures=False)
        if (folder / "model.pt").exists():  # if not, only its numbers were kept
            pictures.draw_run(folder)
            storage.sign(folder)
    studies.draw()
    compare()
    for path, text in other_pages().items():
        write_file(path, text.encode())


def check():
    """Verify every complete run, evaluate its weights on the test set again, and compare the published tables."""
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
        if metrics["test_accuracy"] is None or not (folder / "model.pt").exists():
            print(f"{folder.name}: files as signed; no weights, or not tested")
            continue
        loss, accuracy, _ = common.evaluate(load_model(folder, recipe), images, targets)
        differ = round(abs(accuracy - metrics["test_accuracy"]) * len(targets))
        print(f"{folder.name}: files as signed; test accuracy {accuracy:.2%}, loss {loss:.4f}; {differ} images differ")
        if differ > 10 or not abs(loss - metrics["test_loss"]) <= 1e-3:
            published = f"{metrics['test_accuracy']:.2%}, loss {metrics['test_loss']:.4f}"
            raise RunError(f"{folder.name} published accuracy {published}: its weights do not reach that here")
    groups = published_runs()
    saved = tuple(path.read_text(encoding="utf-8") for path in (README, common.RESULTS / "README.md"))
    if saved != own_pages(groups):
        raise RunError("README.md or results/README.md is not what results/ yields: type `make plots`")
    pages = other_pages()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise RunError(f"{path} is not what results/ yields: type `make plots`")
    ablation = common.RESULTS / "ablation.md"
    if ablation.exists() and ablation not in pages:
        raise RunError(f"{ablation} is about recipes that are no longer those of the scripts: type `make ablation`")
    print(f"README.md, results/README.md{''.join(f', results/{path.name}' for path in pages)}: as results/ yields")


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
        runs.append([common.read_run(folder)[0]])
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
