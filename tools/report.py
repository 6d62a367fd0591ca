"""Write the reports from results/, and check them against the saved weights."""

import argparse
import re
import statistics

import common
from studies import connections, dropout, stats, study
from studies.run import STUDIES
from studies.study import accuracies, by_cell, gaps, markdown, name_of, origin, plot_study, results_of, target_of
from support import cifar10, cli, files, inspection, plots, runs
from support.files import RunError, write_file
from support.plots import mean_and_sd, percent
from tools import bench

REFERENCES = [  # test accuracy in percent as the authors report it, and how they chose the epoch
    ("the assignment's course notes (validation accuracy)", {"bn": "76", "gn": "70"}, "validation set"),
    ("[woncoh1/era1a8](https://github.com/woncoh1/era1a8)", {"bn": "81.7"}, "test set"),
    ("[monimoydebp/session8](https://github.com/monimoydebp/session8)", {"bn": "78.6", "gn": "78.3", "ln": "79.1"},
     "test set"),
    ("another student's solution, link lost", {"bn": "79.0", "gn": "78.8", "ln": "78.3"}, "test set"),
]
HEADLINES = "predictions connections dropout groups batch_size".split()  # whose first finding README has
NAMES = {"bn": "Batch Normalization", "gn": "Group Normalization", "ln": "Layer Normalization"}
LINKS = """\
- Batch normalization: [Ioffe and Szegedy 2015](https://arxiv.org/abs/1502.03167)
- Group normalization: [Wu and He 2018](https://arxiv.org/abs/1803.08494)
- Layer normalization: [Ba, Kiros and Hinton 2016](https://arxiv.org/abs/1607.06450)
- Instance normalization: [Ulyanov, Vedaldi and Lempitsky 2016](https://arxiv.org/abs/1607.08022)
- All four explained: [annotated implementations by labml](https://nn.labml.ai/normalization/index.html)
"""


# --- Tables ---


def runs_table(groups):
    """Return a table with a row for each group of runs of equal recipe, and how the runs were made."""
    head = ("", "seeds", "best epoch", "training accuracy, %", "validation accuracy, %", "**test accuracy, %**",
            "best class (test)", "worst class (test)", "minutes per run")
    rows = []
    for group in groups:
        every = {key: [run[key] for run in group] for key in group[0]}
        epochs = sorted({run["best_epoch"] for run in group})
        rows.append([group[0]["run"], str(len(group)), "–".join(map(str, epochs[:: max(1, len(epochs) - 1)])),
                     percent(every["train_accuracy"]), percent(every["val_accuracy"]),
                     f"**{percent(every['test_accuracy'])}**", *extreme_classes(group),
                     f"{statistics.mean(every['seconds']) / 60:.0f}"])

    facts = ("{parameters:,} parameters", "{recipe[epochs]} epochs", "{train_images:,} training images",
             "{processor} (threads: {threads}, {precision}, torch {torch})")
    made = [" or ".join(sorted({text.format(**run) for group in groups for run in group})) for text in facts]
    return markdown(head, rows) + (
        f"\nMean ± standard deviation over seeds; {', '.join(made)}. Best epoch: that of the lowest validation loss. "
        "Training accuracy is without augmentation.\n")


def extreme_classes(group):
    """Return the most and the least accurate class of a group of runs with its mean accuracy, as texts."""
    if not all(run["per_class_accuracy"] for run in group):
        return "–", "–"
    mean = {name: statistics.mean(run["per_class_accuracy"][name] for run in group) for name in cifar10.CLASSES}
    return [f"{name} {mean[name]:.1%}" for name in (max(mean, key=mean.get), min(mean, key=mean.get))]


def references_table(groups):
    """Return a table of our test accuracy next to the figures of others."""
    names = runs.variants()
    ours = {group[0]["variant"]: f"**{percent([run['test_accuracy'] for run in group])}**" for group in groups}
    rows = [[who, *(values.get(name, "–") for name in names), chosen] for who, values, chosen in
            [("this project", ours, "validation set"), *REFERENCES]]
    return markdown(["test accuracy, % (unless noted)", *map(str.upper, names), "epoch chosen on"], rows) + (
        "\nAll have fewer than 50,000 parameters and at most 20 epochs. ±: over seeds. Unlike the others, "
        "this project's scripts have Muon, an EMA of the weights, Hardswish and different augmentation. Only this "
        "project's and woncoh1's networks have skip connections; woncoh1's layers differ.\n")


# --- The report ---


def report(groups):
    """Return a report on groups of runs in the form of the assignment's course notes, as Markdown."""
    found = {group[0]["variant"]: group for group in groups}
    parts = ["# Results\n\nWritten by `make` from the saved runs. In the section of a normalization, plots and numbers "
             "are of one run, with mean ± standard deviation of n seeds in parentheses; in lines with *study*, all "
             "numbers are such means. Accuracy and loss in these lists are of the EMA, without augmentation. In the "
             "network of the course assignment ([README](../README.md)), C is a 3x3 convolution, c a 1x1 convolution, "
             "P a 2x2 max pool, GAP global average pooling.\n"]
    for variant in runs.variants():
        parts.append(f"## {NAMES.get(variant, variant.upper())}\n")
        parts.append(section(found[variant]) if variant in found else
                     f"{runs.script_error(variant) or f'No tested run: `make {variant}` trains it'}.\n")
    parts.append(f"## The variants compared\n\n{runs_table(groups)}\n{references_table(groups)}\n"
                 "![Validation loss and accuracy of the variants per epoch](comparison.png)\n")
    lines = []
    for module in STUDIES:
        results = results_of(module)
        text = (f"{study.findings_text(module, results)}{origin(module)}" if results else
                f"Not measured yet: `make study-{target_of(module)}`.")
        lines.append(f"- **{study.title_of(module)}** ({setting_of(module)}). {text}\n")
    return "\n".join([*parts, f"## Findings\n\nFrom [the studies](studies.md). {stats.DEFINITION}\n",
                      "".join(lines), f"## Links\n\n{LINKS}"])


def section(group):
    """Return the sections Target, Results and Misclassified images of a variant, from the runs of its seeds."""
    run, name = group[0], group[0]["run"]
    recipe, best, history = run["recipe"], run["best_epoch"], run["history"]
    layers = " ".join(common.LAYERS)
    special = [f"normalized by `{recipe['norm']}`", f"skip connections: {recipe['skip']}"]
    special += [f"number of groups: {recipe['groups']}"] * (recipe["groups"] is not None)
    special += [f"channel dropout: {recipe['dropout']:g} after {recipe['dropout_after']}"] * bool(recipe["dropout"])

    def mean(key, text="{:.2f}", scale=100):
        many = f" ({mean_and_sd([scale * run[key] for run in group], text)}, n = {len(group)})" * (len(group) > 1)
        return f"{text.format(scale * run[key])}{' %' * (scale == 100)}{many}"

    lines = [f"- {title} accuracy {mean(f'{part}_accuracy')}, loss {mean(f'{part}_loss', '{:.3f}', 1)}"
             for part, title in (("train", "Training"), ("val", "Validation"), ("test", "Test"))
             if run[f"{part}_accuracy"] is not None]
    if run["test_accuracy"] is not None:
        counts = plots.confusion_counts(runs.load_tensors(files.RESULTS / name, "predictions")).fill_diagonal_(0)
        pairs = [divmod(index, len(counts)) for index in counts.flatten().topk(2).indices.tolist()]
        confusions = [f"{cifar10.CLASSES[a]} → {cifar10.CLASSES[b]}: {counts[a, b]}" for a, b in pairs]
        lines += ["- Best class by test accuracy: {}; worst class: {}".format(*extreme_classes([run])),
                  f"- Most frequent confusions of test images (true → predicted): {', '.join(confusions)}"]
    lines.append(f"- Early stopping: after epoch {run['epochs']}, since the validation loss had not fallen for "
                 f"{recipe['patience']} epochs; best epoch {best}" if run["stopped_early"] else
                 f"- Early stopping did not occur: the lowest validation loss, {history['val_loss'][best - 1]:.3f}, "
                 f"was reached in epoch {best} of {run['epochs']}")
    lines += [effect(dropout, run["variant"], "Channel dropout after c3, c7 and C10",
                     {rate: f"rate {rate:g}" for rate in dropout.RATES}),
              effect(connections, run["variant"], "Skip connections", connections.NAMES)]
    figures = [f"![{title} of {name}]({name}/{file}.png)\n" for title, file in (
        ("Loss and accuracy per epoch", "curves"), ("Confusion matrix", "confusion"), ("Mistakes", "misclassified"))]
    figures = figures if run["test_accuracy"] is not None else [figures[0], "", "This run was not tested.\n"]
    return "\n".join([
        f"### Target\n\nTrain the network `{layers}` with fewer than {common.MAX_PARAMETERS:,} parameters (it has "
        f"{run['parameters']:,}) in at most {common.MAX_EPOCHS} epochs (here {recipe['epochs']}, on "
        f"{run['train_images']:,} images, seed {run['seed']}), {'; '.join(special)}.\n",
        "### Results\n", *lines, "", *figures[:2], "### Misclassified images\n", figures[2]])


def effect(module, variant, title, names):
    """Return a line on what a study measured for a variant, or on how to measure it."""
    cells = {names[x]: group for (line, x), group in (by_cell(module) or {}).items() if line == variant}
    if not cells:
        return f"- {title}: not measured for this variant" + f": `make study-{target_of(module)}`" * (variant in NAMES)
    reached = ", ".join(f"{mean_and_sd(accuracies(group))} % ({x})" for x, group in cells.items())
    apart = ", ".join(mean_and_sd(gaps(group)) for group in cells.values())
    group = next(iter(cells.values()))
    setting = f"{group[0]['train_images']:,} training images, {group[0]['recipe']['epochs']} epochs, n = {len(group)}"
    return (f"- {title} ([study](studies.md), {setting}): validation accuracy {reached}; training minus validation "
            f"accuracy, in the same order, {apart} percentage points{origin(module, variant)}")


def studies_page():
    """Return results/studies.md, with a section for each study."""
    parts = [f"# Studies\n\nOne question each, with what theory expects. Written from the files in results/studies/. "
             f"{stats.DEFINITION}\n"]
    for module in STUDIES:
        theory = "\n\n".join(" ".join(text.split()) for text in module.__doc__.strip().split("\n\n")[1:])
        title, name, results = study.title_of(module), name_of(module), results_of(module)
        parts.append(f"## {title}\n\n{theory}\n")
        if results:
            setting = " ".join(module.SETTING.split())
            parts += [f"![{title}]({name}.png)\n"] * hasattr(module, "plot")
            tables = f"{module.table(results)}\n" if hasattr(module, "table") else ""
            parts.append(f"{study.findings_text(module, results)}{origin(module)}\n\n{tables}"
                         f"Setting: {setting}{study.made_on(module)}. Run by `make study-{target_of(module)}`.\n")
        else:
            parts.append(f"Not measured yet: `make study-{target_of(module)}`.\n")
    return "\n".join(parts)


def setting_of(module):
    """Return the first part of a study's setting, up to a semicolon; in a caption, it may be that of the left axes."""
    return module.SETTING.partition(";")[0].removeprefix("left: ")


def headlines():
    """Return the list of findings in README.md."""
    lines = [f"- {study.findings_text(module, results, 1)} ({setting_of(module)}){origin(module)}\n"
             for module in STUDIES if name_of(module) in HEADLINES and (results := results_of(module))]
    return "".join(lines) + (
        "\nSquare brackets: 95 % confidence intervals, not corrected for multiple comparisons. All "
        "differences with an interval are significant: p < 0.05 in a t-test, after Holm's correction of p.\n")


def pages():
    """Return the pages that results/ yields, {path: text}. Raises RunError if README.md lacks its markers."""
    groups, readme = runs.published(), files.ROOT / "README.md"
    if not groups:
        raise RunError("nothing to compare yet: type `make all`")
    text = readme.read_text(encoding="utf-8")
    for name, content in ("results", runs_table(groups)), ("findings", headlines()):
        block = re.search(f"<!-- {name}: [^\n]*-->\n(.*)<!-- end of {name} -->", text, re.DOTALL)
        if not block:
            raise RunError(f"README.md must have the two markers of the block of {name}")
        text = text[: block.start(1)] + content + text[block.end(1):]
    texts = {readme: text, files.RESULTS / "README.md": report(groups), files.RESULTS / "studies.md": studies_page(),
             files.RESULTS / "bench.md": bench.saved_page()}
    return {path: text for path, text in texts.items() if text}


def write_pages():
    """Write comparison.png and all pages, and print the tables and which runs were left out."""
    texts, groups = pages(), runs.published()
    plots.plot_comparison(groups, files.RESULTS / "comparison.png")
    for path, text in texts.items():
        write_file(path, text.encode())
    print(runs_table(groups))
    print(*runs.left_out(groups), f"see {files.RESULTS / 'README.md'}", sep="\n")


def plot_all():
    """Plot every figure and write every page again from the saved results."""
    for folder in runs.folders():
        predictions = (folder / "predictions.pt").exists() and runs.load_tensors(folder, "predictions")
        plots.plot_run(folder, runs.read(folder), predictions)
    for module in STUDIES:
        plot_study(module)
    write_pages()


def show(args):
    """Write a report on the variants' runs with the flags `args`, results/README-<flags>.md, and print its table."""
    names = [cli.parse_args(runs.load_script(variant), args)[1].run for variant in runs.variants()]
    if names == runs.variants():  # flags that change nothing
        return write_pages()
    groups = [[runs.read(files.RESULTS / name)] for name in names]
    path = files.RESULTS / f"README-{max(name.partition('-')[2] for name in names)}.md"
    plots.plot_comparison(groups, path.with_suffix(".png"))
    write_file(path, report(groups).replace("(comparison.png)", f"({path.stem}.png)").encode())
    print(f"{runs_table(groups)}\nsee {path}")


# --- Check, and smaller commands ---


def check():
    """Evaluate all saved weights on the test set again, compare the pages, and name all that does not agree."""
    texts, test_set, problems = pages(), cifar10.load("test"), []
    for folder in runs.folders():
        try:
            check_run(folder, test_set)
        except RunError as error:
            problems.append(f"{folder.name}: {error}")
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            problems.append(f"{path} does not agree with the saved results: type `make plots`")
    problems += [f"{name_of(module)}: these results do not support: {sentence}"
                 for module in STUDIES for sentence in study.unsupported(module)]
    if problems:
        raise RunError("\n  ".join(["this does not agree:", *problems]))
    print("README.md, the pages in results/ and all findings agree with the saved results")


def check_run(folder, test_set):
    """Raise RunError unless a run has the recipe that its name says, and its weights reach the saved metrics."""
    metrics = runs.read(folder)
    if metrics["variant"] not in runs.variants():
        return print(f"{folder.name}: there is no {metrics['variant']}.py, so it is left out of the pages")
    if folder.name == metrics["variant"] and runs.recipe_of(metrics) != runs.load_script(folder.name):
        raise RunError(f"another recipe than {folder.name}.py's: type `make {folder.name}`")
    if metrics["test_accuracy"] is None or not (folder / "model.pt").exists():
        return print(f"{folder.name}: has no weights or was not tested")
    loss, accuracy, _ = common.evaluate(common.load_model(folder), *test_set)
    change = round(abs(accuracy - metrics["test_accuracy"]) * len(test_set[0]))
    print(f"{folder.name}: test accuracy {accuracy:.2%}, loss {loss:.4f}; correct answers differ by {change}")
    if change > 10 or not abs(loss - metrics["test_loss"]) <= 1e-3:
        raise RunError(f"saved test accuracy {metrics['test_accuracy']:.2%}, loss {metrics['test_loss']:.4f}, but its "
                       "weights do not reach that here")


def summary():
    """Print torchinfo's table of every variant, and the budget."""
    for variant in runs.variants():
        print(f"{variant}.py")
        try:
            text, parameters, _ = inspection.summarize(common.build_model(runs.load_script(variant)))
        except RunError as error:
            print(error)
            continue
        print(f"{text}\n{parameters:,} parameters, fewer than {common.MAX_PARAMETERS:,}\n")


def main(argv=None):
    commands = {"data": lambda: print(f"data: {len(cifar10.load('train')[0]):,} images to train, all digests right"),
                "summary": summary, "plots": plot_all, "reports": write_pages, "check": check, "show": show}
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=commands, help="data: download CIFAR-10 if it is missing, and check it; "
                        "summary: print the layers; plots: plot all figures, and write the reports; reports: write "
                        "only the reports and comparison.png; check: evaluate the saved weights again, and check the "
                        "reports; show FLAGS: print the table of the runs made with FLAGS, and write "
                        "a report on them, such as results/README-epochs=5.md")
    parser.add_argument("args", nargs=argparse.REMAINDER, metavar="FLAGS", help="such as --epochs 5")
    options = parser.parse_args(argv)
    with cli.exit_on_error(options.command, "run the same command again"):
        commands[options.command](*([options.args] if options.command == "show" else []))


if __name__ == "__main__":
    main()
