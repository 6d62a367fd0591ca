"""The pages, made from results/ alone: tables, pictures, and the check that what is published is what the saved weights
give. For `make all`, plots, check, summary, data. Run as `python -m tools.report COMMAND`."""

import argparse
import re
import statistics
import sys

import torch

import common
from studies import ablation, findings
from studies.study import published
from studies.trainings import variants
from support import cifar10, pictures, runs, scripts, storage
from support.layers import receptive_fields
from support.runs import markdown, mean_and_sd, percent
from support.storage import RunError, write_file
from tools import bench

OTHERS = [  # test accuracy in per cent, as their authors give it; the budget of the first two is the assignment's
    ("best public answer to the assignment that we found", {"bn": "81.7", "gn": "75.0", "ln": "73.7"},
     "< 50,000", "≤ 20", "test set"),
    ("the assignment's course notes (validation accuracy)", {"bn": "76", "gn": "70", "ln": "–"},
     "< 50,000", "≤ 20", "early stopping"),
    ("MLPerf Tiny's quality target (not a result), and its reference network", {"bn": "85"}, "78,000", "500", ""),
]
README = common.ROOT / "README.md"


# --- Tables ---


def table(groups):
    """A Markdown table with a row for each group of metrics of equal recipe, and a line on how they came about."""
    head = ("run", "n", "parameters", "epochs (kept)", "train accuracy, %", "val accuracy, %", "**test accuracy, %**",
            "train loss", "val loss", "**test loss**", "best class", "worst class", "minutes")
    rows = []
    for group in groups:
        first, diverged = group[0], [m["epochs"] for m in group if m["diverged"]]
        every = {key: [m[key] for m in group] for key in first}
        epochs = (f"diverged in {diverged[0]}" if diverged else
                  ", ".join(sorted({f"{m['epochs']} ({m['best_epoch']})" for m in group})))
        classes = class_accuracies(group)
        extremes = [pick(classes, key=classes.get) for pick in (max, min)] if classes else []
        rows.append([
            first["run"], str(len(group)), f"{first['parameters']:,}", epochs,
            percent(every["train_accuracy"]), percent(every["val_accuracy"]), f"**{percent(every['test_accuracy'])}**",
            *(mean_and_sd(every[f"{part}_loss"], "{:.3f}") for part in ("train", "val")),
            f"**{mean_and_sd(every['test_loss'], '{:.3f}')}**",
            *([f"{name} {classes[name]:.1%}" for name in extremes] or "––"),
            f"{statistics.mean(every['seconds']) / 60:.0f}" if None not in every["seconds"] else "–"])
    everything = [metrics for group in groups for metrics in group]
    images = sorted({f"{m['train_images']:,}" for m in everything})
    machines = sorted({f"{m['device']}, {m['threads']} thread{'s' * (m['threads'] > 1)}, {m['precision']}, "
                       f"torch {m['torch']}" for m in everything})
    seeds = ", ".join(map(str, sorted({m["seed"] for m in everything})))
    memory = max(m.get("peak_memory_mb") or 0 for m in everything)
    how = ("One run each, seed" if all(len(group) == 1 for group in groups) else
           "Mean ± sample standard deviation of n runs, seeds")
    return markdown(head, rows) + (
        f"\n{how} {seeds}, on {' or '.join(images)} training images ({'; '.join(machines)}). The epoch is chosen by "
        "validation loss; the test images are read once, after training. Losses are cross-entropy in nats, train's "
        "with the kept weights and without augmentation. Minutes are those of training and testing"
        + (f"; the process held {memory / 1000:.2f} GB of memory at most.\n" if memory else ".\n"))


def class_accuracies(group):
    """Test accuracy of each class, the mean over a group of metrics; empty if one was not tested."""
    tested = [m["per_class_accuracy"] for m in group if m["per_class_accuracy"]]
    if len(tested) < len(group):
        return {}
    return {name: statistics.mean(accuracies[name] for accuracies in tested) for name in common.CLASSES}


def beside_others(groups):
    """A Markdown table of our test accuracy beside the figures of others."""
    head = ["", *(f"{variant.upper()}, %" for variant in variants()), "parameters", "epochs", "epoch chosen on"]
    reached = {group[0]["variant"]: f"**{percent([m['test_accuracy'] for m in group])}**" for group in groups}
    cells = [reached.get(variant, "–") for variant in variants()]
    parameters = " or ".join(sorted({f"{group[0]['parameters']:,}" for group in groups}))
    counts = sorted({len(group) for group in groups})
    count = f"mean of {' or '.join(map(str, counts))} seeds" if counts != [1] else "one seed"
    ours = [f"this project ({count})", *cells, parameters, str(groups[0][0]["max_epochs"]), "validation set"]
    others = [[name, *(cells.get(variant, "") for variant in variants()), *rest] for name, cells, *rest in OTHERS]
    return markdown(head, [ours, *others])


def all_tables(groups):
    """Both tables, from groups of runs."""
    metrics = [[run.metrics for run in group] for group in groups]
    return beside_others(metrics) + "\n" + table(metrics)


# --- Pages ---


def pages(groups):
    """What results/ yields: path -> text. Raises RunError if README.md lacks a marker."""
    studies, results = findings.complete(), common.RESULTS
    texts = {README: readme_with(README.read_text(encoding="utf-8"), all_tables(groups), findings.findings(studies)),
             results / "README.md": results_page(groups, findings.sections(studies)),
             results / "bench.md": bench.saved_page(), results / "ablation.md": ablation.page()}
    return {path: text for path, text in texts.items() if text}


def results_page(groups, sections):
    """results/README.md: the tables, the pictures of each variant's own run, and the sections about studies."""
    parts = ["# Results\n\nWritten by `make all`, `make seeds` and `make plots` from the files of the runs.\n",
             all_tables(groups),
             "![Validation loss and accuracy of the variants, epoch by epoch](comparison.png)\n"]
    if (common.RESULTS / "augmentation.png").exists():
        parts.append("## What the network sees\n\n![The first image of each class, as it is and as it is drawn in the "
                     "first and the last epoch](augmentation.png)\n\n`make augmentation` draws it, by any flags.\n")
    for group in groups:
        name = group[0].metrics["run"]
        parts.append(f"## {name}\n\n![Loss and accuracy of {name}, epoch by epoch]({name}/curves.png)\n\n"
                     f"![Confusion matrix of {name}]({name}/confusion.png)\n\n"
                     f"![Test images that {name} gets wrong]({name}/misclassified.png)\n")
    return "\n".join(parts + sections)


def readme_with(text, results, findings):
    """The text of README.md with its two blocks written anew, each between two markers. Raises RunError without."""
    for name, lines in ("results", results), ("findings", findings):
        block = re.search(f"<!-- {name}: [^\n]*-->\n(.*)<!-- end of {name} -->", text, re.DOTALL)
        if not block:
            raise RunError(f"{README} lacks the two markers of the block of {name}")
        text = text[: block.start(1)] + lines + text[block.end(1):]
    return text


def write_pages():
    """Write comparison.png and the pages from the published runs, and print the tables."""
    groups = published()
    if not groups:
        raise RunError("nothing to compare yet: type `make all`")
    findings.draw_all(lambda study: study.read)  # what the published runs show, without a study of its own
    pictures.draw_comparison(groups, scripts.colours(common.ROOT), common.RESULTS / "comparison.png")
    for path, text in pages(groups).items():
        write_file(path, text.encode())
    print(all_tables(groups))


def plots():
    """Redraw every picture and page from the saved results, and what augmentation does if the data set is here."""
    for folder in runs.complete(common.RESULTS):
        storage.verify(folder, pictures=False)
        if variant_of(folder) in variants() and (folder / "model.pt").exists():  # if not, only its numbers were kept
            pictures.draw_run(folder, scripts.colours(common.ROOT))
            storage.sign(folder)
    if cifar10.complete(common.DATA):
        augmentation()
    findings.draw_all(lambda study: not study.read)
    write_pages()


def variant_of(folder):
    """The variant of a run. Says so if its script is gone."""
    variant = runs.read(folder).metrics["variant"]
    if variant not in variants():
        print(f"{folder.name}: there is no {variant}.py, so it is left out of the pages")
    return variant


def augmentation(args=()):
    """Draw what the network sees in training, by the recipe of the first script with the flags `args`:
    results/augmentation.png, or with flags augmentation-<flags>.png."""
    script = common.script_of(variants()[0])
    recipe, options = common.parse_args(script, args)
    images, targets = common.load_data("train")
    images = images[(targets == torch.arange(len(common.CLASSES))[:, None]).int().argmax(1)]  # the first of each class
    rows, generator = {"as it is": images}, torch.Generator().manual_seed(options.seed)
    for epoch, name in (1, "first epoch"), (recipe.epochs, "last epoch"):
        draws = common.draw_augmentation(len(images), recipe, epoch, generator)
        rows[f"{name}: up to {common.crop_of(recipe, epoch)} pixels"] = common.augment(images, *draws, recipe.cutout)
    name = common.run_name(recipe, script, options.limit, options.seed, options.test)
    path = common.RESULTS / f"augmentation{name.removeprefix(script.variant)}.png"
    blanked = f"half of them with a square of {recipe.cutout} pixels blanked" if recipe.cutout else "none blanked"
    title = (f"What the network sees in training: images shifted by up to {recipe.crop} pixels in the first epoch and "
             f"{recipe.final_crop} in the last,\n{'half of them' if recipe.flip else 'none'} mirrored, {blanked}")
    path.parent.mkdir(exist_ok=True)
    pictures.draw_images(rows, title, path)
    print(f"see {path}")


# --- Checks ---


def check():
    """Verify all that is saved, evaluate the weights on the test set again, and compare the pages."""
    folders = runs.complete(common.RESULTS)
    if not folders:
        raise RunError(f"there is nothing to check in {common.RESULTS}: type `make all`")
    test_set = common.load_data("test")
    for folder in folders:
        check_run(folder, test_set)
    signed = storage.signed_files(common.RESULTS / runs.STUDIES)
    print(f"results/studies: {len(signed)} files as signed")
    check_pages()


def check_run(folder, test_set):
    """Raise RunError unless a run is what was signed, of its script's recipe, and its weights as good as it says."""
    storage.verify(folder)
    metrics, _ = runs.read(folder)
    if variant_of(folder) not in variants():
        return
    recipe = common.recipe_of(metrics)
    if folder.name == metrics["variant"] and recipe != common.script_of(metrics["variant"]):
        raise RunError(f"{folder} has another recipe than {folder.name}.py: type `make {folder.name}`")
    if metrics["test_accuracy"] is None or not (folder / "model.pt").exists():
        print(f"{folder.name}: files as signed; no weights, or not tested")
        return
    loss, accuracy, _ = common.evaluate(common.load_model(folder), *test_set)
    differing = round(abs(accuracy - metrics["test_accuracy"]) * len(test_set[0]))
    print(f"{folder.name}: files as signed; test accuracy {accuracy:.2%}, loss {loss:.4f}; {differing} images differ")
    if differing > 10 or not abs(loss - metrics["test_loss"]) <= 1e-3:
        raise RunError(f"{folder.name} published accuracy {metrics['test_accuracy']:.2%}, loss "
                       f"{metrics['test_loss']:.4f}: its weights do not reach that here")


def check_pages():
    """Raise RunError unless the pages are what results/ yields."""
    texts = pages(published())
    for path, text in texts.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise RunError(f"{path} is not what results/ yields: type `make plots`")
    path = common.RESULTS / "ablation.md"
    if path.exists() and path not in texts:
        raise RunError(f"{path} is about recipes that are no longer those of the scripts: type `make ablation`")
    print(f"{', '.join(str(path.relative_to(README.parent)) for path in texts)}: as results/ yields")


# --- Smaller commands ---


def summary():
    """Print torchinfo's table of every variant, with what each layer sees, and the budget."""
    columns = {f"({name})": f"{f'{field}x{field}':>16}{jump or '–':>8}"
               for name, (field, jump) in seen_by_layers().items()}
    columns["(var_name)"] = f"{'Receptive field':>16}{'Jump':>8}"
    for variant in variants():
        info = common.describe(common.script_of(variant))
        print(f"{variant}.py")
        for line in str(info).splitlines():
            print(line.ljust(140) + next((text for layer, text in columns.items() if layer in line), ""))
        print(f"{info.total_params:,} parameters, fewer than {common.MAX_PARAMETERS:,}; receptive field and jump in "
              "pixels of the image\n")


def seen_by_layers():
    """Layer -> its receptive field and its jump in pixels of the image; no jump where there is only one output."""
    sizes = {"C": (3, 1), "c": (1, 1), "P": (2, 2), "G": (8, 8)}  # kernel and stride; GAP takes all 8x8 positions
    found = receptive_fields([sizes[name[0]] for name in common.LAYERS])
    return {name: (field, jump if name not in ("GAP", "c11") else None)
            for name, (field, jump) in zip(common.LAYERS, found, strict=True)}


def data():
    """Get the data set and check it."""
    images = sum(len(common.load_data(split)[0]) for split in ("train", "test"))
    print(f"data: {images:,} images in {common.DATA}, all digests right")


def show(args):
    """Print the table of the variants' runs with the flags `args`."""
    groups = []
    for variant in variants():
        script = common.script_of(variant)
        recipe, options = common.parse_args(script, args)
        folder = common.RESULTS / common.run_name(recipe, script, options.limit, options.seed, options.test)
        storage.verify(folder, pictures=False)
        groups.append([runs.read(folder).metrics])
    print(table(groups))


def main(argv=None):
    commands = {"data": data, "summary": summary, "plots": plots, "pages": write_pages, "check": check}
    with_flags = {"show": show, "augmentation": augmentation}
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("command", choices=commands | with_flags)
    parser.add_argument("args", nargs=argparse.REMAINDER, help="for show and augmentation: flags of a script")
    options = parser.parse_args(argv)
    try:
        scripts.check(common.ROOT)
        if options.command in with_flags:
            with_flags[options.command](options.args)
        else:
            commands[options.command]()
    except (RunError, OSError) as error:
        sys.exit(f"{options.command}: {error}")


if __name__ == "__main__":
    main()
