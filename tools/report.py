"""The published pages, made from results/ alone: tables, figures, and the check that they and the weights agree."""

import argparse
import re
import statistics

import common
from studies import ablation
from studies.run import STUDIES
from studies.study import markdown, name_of, percent, plot_study, results_of, title_of
from support import cifar10, cli, files, inspection, plots, runs
from support.files import RunError, write_file
from support.plots import mean_and_sd
from tools import bench

REFERENCES = [  # test accuracy in percent as the authors report it; the budget of the first two is the assignment's
    ("best public answer to the assignment that we found", {"bn": "81.7", "gn": "75.0", "ln": "73.7"},
     "< 50,000", "≤ 20", "test set"),
    ("the assignment's course notes (validation accuracy)", {"bn": "76", "gn": "70", "ln": "–"},
     "< 50,000", "≤ 20", "early stopping"),
    ("MLPerf Tiny's quality target (not a result), and its reference network", {"bn": "85"}, "78,000", "500", ""),
]


# --- Tables ---


def runs_table(groups):
    """Return a table with a row for each group of runs of equal recipe, and how the runs were made."""
    head = ("run", "n", "parameters", "epochs (best)", "train accuracy, %", "val accuracy, %", "**test accuracy, %**",
            "train loss", "val loss", "**test loss**", "best class", "worst class", "minutes")
    rows = []
    for group in groups:
        first = group[0]
        every = {key: [run[key] for run in group] for key in first}
        epochs = ", ".join(sorted({f"{run['epochs']} ({run['best_epoch']})" for run in group}))
        tested = [run["per_class_accuracy"] for run in group if run["per_class_accuracy"]]
        classes = {name: statistics.mean(accuracy[name] for accuracy in tested) for name in cifar10.CLASSES
                   if len(tested) == len(group)}
        extremes = [choose(classes, key=classes.get) for choose in (max, min)] if classes else []
        rows.append([
            first["run"], str(len(group)), f"{first['parameters']:,}", epochs,
            percent(every["train_accuracy"]), percent(every["val_accuracy"]), f"**{percent(every['test_accuracy'])}**",
            *(mean_and_sd(every[f"{part}_loss"], "{:.3f}") for part in ("train", "val")),
            f"**{mean_and_sd(every['test_loss'], '{:.3f}')}**",
            *([f"{name} {classes[name]:.1%}" for name in extremes] or "––"),
            f"{statistics.mean(every['seconds']) / 60:.0f}"])
    everything = [run for group in groups for run in group]
    images = sorted({f"{run['train_images']:,}" for run in everything})
    machines = sorted({f"{run['device']}, {run['threads']} thread{'s' * (run['threads'] > 1)}, {run['precision']}, "
                       f"torch {run['torch']}" for run in everything})
    seeds = ", ".join(map(str, sorted({run["seed"] for run in everything})))
    memory = max(run["peak_memory_mb"] for run in everything) / 1000
    how = ("One run each, seed" if all(len(group) == 1 for group in groups) else
           "Mean ± sample standard deviation of n runs, seeds")
    return markdown(head, rows) + (
        f"\n{how} {seeds}, on {' or '.join(images)} training images ({'; '.join(machines)}). The best epoch has "
        "the lowest validation loss; each run evaluates the test images once, after training. Losses are cross-entropy "
        "in nats; training loss and accuracy are those of the saved weights without augmentation. Minutes are those of "
        f"training and testing; a run used at most {memory:.2f} GB of memory.\n")


def references_table(groups):
    """Return a table of our test accuracy next to the figures of others."""
    names = runs.variants()
    ours = {group[0]["variant"]: f"**{percent([run['test_accuracy'] for run in group])}**" for group in groups}
    parameters = " or ".join(sorted({f"{group[0]['parameters']:,}" for group in groups}))
    counts = sorted({len(group) for group in groups})
    count = f"mean of {' or '.join(map(str, counts))} seeds" if counts != [1] else "one seed"
    rows = [[f"this project ({count})", *(ours.get(name, "–") for name in names), parameters,
             str(groups[0][0]["recipe"]["epochs"]), "validation set"]]
    rows += [[who, *(cells.get(name, "") for name in names), *rest] for who, cells, *rest in REFERENCES]
    return markdown(["", *(f"{name.upper()}, %" for name in names), "parameters", "epochs", "epoch chosen on"], rows)


def confusions_table(groups):
    """Return a table of the three largest confusions of each variant's own run."""
    rows = []
    for group in groups:
        folder = files.RESULTS / group[0]["run"]
        if (folder / "predictions.pt").exists():
            counts = plots.confusion_counts(runs.load_tensors(folder, "predictions")).fill_diagonal_(0)
            pairs = [divmod(index, len(counts)) for index in counts.flatten().topk(3).indices.tolist()]
            rows.append([group[0]["variant"].upper(), *(
                f"{cifar10.CLASSES[true]} → {cifar10.CLASSES[predicted]}: {counts[true, predicted]}"
                for true, predicted in pairs)])
    return markdown(["largest confusions", "first", "second", "third"], rows)


# --- Pages ---


def pages(groups):
    """Return the pages that results/ yields, {path: text}. Raises RunError if README.md lacks a marker."""
    complete = [(study, results) for study in STUDIES if (results := results_of(study))]
    findings = [f"- {title_of(study)}: {study.finding(results)}." for study, results in complete]
    readme, tables = files.ROOT / "README.md", f"{references_table(groups)}\n{runs_table(groups)}"
    texts = {readme: readme_with(readme.read_text(encoding="utf-8"), results=tables, findings="".join(
                 f"{' '.join(finding.split())}\n" for finding in findings)),
             files.RESULTS / "README.md": results_page(groups, tables, complete),
             files.RESULTS / "bench.md": bench.saved_page(), files.RESULTS / "ablation.md": ablation.page()}
    return {path: text for path, text in texts.items() if text}


def results_page(groups, tables, complete):
    """Return results/README.md: the tables, the figures of each variant's own run, and a section for each study."""
    parts = ["# Results\n\nWritten by `make all`, `make seeds` and `make plots` from the files of the runs.\n",
             tables, "![Validation loss and accuracy of the variants per epoch](comparison.png)\n",
             confusions_table(groups)]
    if (files.RESULTS / "augmentation.png").exists():
        parts.append("## What the network sees in training\n\n![The first image of each class, original and augmented]"
                     "(augmentation.png)\n\nPlotted by `make study-augmentation`.\n")
    for group in groups:
        name = group[0]["run"]
        parts.append(f"## {name}\n\n![Loss and accuracy of {name} per epoch]({name}/curves.png)\n\n"
                     f"![Confusion matrix of {name}]({name}/confusion.png)\n\n"
                     f"![Misclassified test images of {name}]({name}/misclassified.png)\n")
    for study, results in complete:
        finding, setting = (text.replace("\n", " ") for text in (study.finding(results), study.SETTING))
        name, paragraphs = name_of(study), study.__doc__.strip().split("\n\n")[1:]
        theory = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        parts.append(f"## {title_of(study)}\n\n{theory}\n\n![{finding}]({name}.png)\n\n{finding} ({setting}; "
                     f"`make study-{name.replace('_', '-')}`).\n\n{study.table(results)}")
    return "\n".join(parts)


def readme_with(text, **blocks):
    """Return README.md with its generated blocks replaced. Raises RunError without their markers."""
    for name, lines in blocks.items():
        found = re.search(f"<!-- {name}: [^\n]*-->\n(.*)<!-- end of {name} -->", text, re.DOTALL)
        if not found:
            raise RunError(f"README.md must have the two markers of the block of {name}")
        text = text[: found.start(1)] + lines + text[found.end(1):]
    return text


def write_pages():
    """Write comparison.png, the figure of the normalizations and the pages, and print the tables."""
    groups = runs.published()
    if not groups:
        raise RunError("nothing to compare yet: type `make all`")
    plots.plot_comparison(groups, files.RESULTS / "comparison.png")
    for path, text in pages(groups).items():
        write_file(path, text.encode())
    print(f"{references_table(groups)}\n{runs_table(groups)}")


def plot_all():
    """Plot every figure and write every page again from the saved results."""
    for folder in runs.folders():
        metrics = runs.read(folder)
        tested = (folder / "predictions.pt").exists()
        plots.plot_run(folder, metrics, runs.load_tensors(folder, "predictions") if tested else None)
    for study in STUDIES:
        plot_study(study)
    write_pages()


# --- Check, and smaller commands ---


def check():
    """Evaluate all saved weights on the test set again, and compare the pages with the saved results."""
    folders = runs.folders()
    if not folders:
        raise RunError(f"there is nothing to check in {files.RESULTS}: type `make all`")
    test_set = cifar10.load("test")
    for folder in folders:
        check_run(folder, test_set)
    texts = pages(runs.published())
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise RunError(f"{path} does not agree with the saved results: type `make plots`")
    if (files.RESULTS / "ablation.md").exists() and files.RESULTS / "ablation.md" not in texts:
        raise RunError("results/ablation.md is about other recipes than those of the scripts: type `make ablation`")
    print(f"{', '.join(str(path.relative_to(files.ROOT)) for path in texts)}: agree with the saved results")


def check_run(folder, test_set):
    """Raise RunError unless a run has the recipe that its name says, and its weights reach the saved metrics."""
    metrics = runs.read(folder)
    if metrics["variant"] not in runs.variants():
        return print(f"{folder.name}: there is no {metrics['variant']}.py, so it is left out of the pages")
    if folder.name == metrics["variant"] and runs.recipe_of(metrics) != runs.load_script(folder.name):
        raise RunError(f"{folder} has another recipe than {folder.name}.py: type `make {folder.name}`")
    if metrics["test_accuracy"] is None or not (folder / "model.pt").exists():
        return print(f"{folder.name}: has no weights or was not tested")
    loss, accuracy, _ = common.evaluate(common.load_model(folder), *test_set)
    change = round(abs(accuracy - metrics["test_accuracy"]) * len(test_set[0]))
    print(f"{folder.name}: test accuracy {accuracy:.2%}, loss {loss:.4f}; correct answers differ by {change}")
    if change > 10 or not abs(loss - metrics["test_loss"]) <= 1e-3:
        raise RunError(f"{folder.name}: saved test accuracy {metrics['test_accuracy']:.2%}, loss "
                       f"{metrics['test_loss']:.4f}, but its weights do not reach that here")


def summary():
    """Print torchinfo's table of every variant with the receptive field of each layer, and the budget."""
    columns = {f"({name})": f"{f'{field}x{field}':>16}{jump or '–':>8}"
               for name, (field, jump) in inspection.receptive_fields(common.LAYERS).items()}
    columns["(var_name)"] = f"{'Receptive field':>16}{'Jump':>8}"
    for variant in runs.variants():
        info = inspection.summarize(common.build_model(runs.load_script(variant)))
        print(f"{variant}.py")
        for line in str(info).splitlines():
            print(line.ljust(140) + next((text for layer, text in columns.items() if layer in line), ""))
        print(f"{info.total_params:,} parameters, fewer than {common.MAX_PARAMETERS:,}; receptive field and jump in "
              "pixels of the image\n")


def data():
    """Download the data set if it is missing, and check it."""
    images = sum(len(cifar10.load(split)[0]) for split in ("train", "test"))
    print(f"data: {images:,} images in {files.DATA}, all digests right")


def show(args):
    """Print the table of the variants' runs with the flags `args`."""
    names = [cli.parse_args(runs.load_script(variant), args)[1].run for variant in runs.variants()]
    print(runs_table([[runs.read(files.RESULTS / name)] for name in names]))


def main(argv=None):
    commands = {"data": data, "summary": summary, "plots": plot_all, "pages": write_pages, "check": check, "show": show}
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=commands)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="for show: flags of a script")
    options = parser.parse_args(argv)
    with cli.exit_on_error(options.command, "run the same command again"):
        commands[options.command](*([options.args] if options.command == "show" else []))


if __name__ == "__main__":
    main()
