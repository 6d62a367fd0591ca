"""What the studies share: runs in parallel, their saved metrics, findings, tables and figures.

A study is a module: its docstring has a title and what theory expects; SETTING is what its runs have in common; plan()
returns the runs, {(line, x, seed): (variant, flags)}, or measure() returns numbers to save as <study>.json; table() and
plot() return Markdown and a figure of the results. findings() returns sentences written by hand, each with whether the
results support it. `python -m studies.run NAME` runs a study.

Each run leaves <run>.json in results/studies/.unfinished/; a study collects its runs in results/studies/runs.jsonl, a
line each, where other studies find them, too. A run that finished or diverged is not repeated unless the recipe of its
script changes, and an interrupted one resumes.
"""

import concurrent.futures
import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading

import torch

from studies import stats
from support import cifar10, cli, files, plots, runs
from support.files import RunError
from support.plots import mean_and_sd

VARIANTS, SEEDS = ("bn", "gn", "ln"), (0, 1, 2, 3, 4)
SHORT = "--train-images 10000 --epochs 10 --no-test"  # of several studies, which share equal runs if flags are equal
NO_NORM, UNSUPPORTED = "none", "A finding that stood here is not supported by these results"
DEPENDS = ", so the effect depends on the normalization: compare within the row of a normalization, not the averages"
LABELS = {"bn": "batch norm", "gn": "group norm", "ln": "layer norm", NO_NORM: "no norm"}
GRACE_SECONDS = 3  # for runs to end by themselves after Ctrl-C, which reaches all processes of a terminal


# --- A study is a module; `results` are the metrics of its runs by cell, else what measure() returned ---


def name_of(study):
    """Return the name of a study: of its module, its figure and its saved numbers."""
    return study.__name__.rpartition(".")[2]


def target_of(study):
    """Return the Make target of a study without "study-": its name with hyphens."""
    return name_of(study).replace("_", "-")


def title_of(study):
    """Return the first sentence of a study's docstring, without its full stop."""
    return study.__doc__.partition(".")[0]


def results_of(study):
    """Return the results of a study from the saved files, or None if something is missing. Raises RunError."""
    path = numbers_file(study)
    return by_cell(study) if hasattr(study, "plan") else runs.read_json(path)[0] if path.exists() else None


def findings(study, results):
    """Return pairs of a sentence and whether the results support it; none if they lack a variant."""
    with contextlib.suppress(KeyError):  # its script was deleted
        return study.findings(results)
    return []


def findings_text(study, results, count=None):
    """Return the first sentences of a study, by default all; those that the results do not support are replaced."""
    return " ".join(text if holds else f"({UNSUPPORTED}.)" for text, holds in findings(study, results)[:count])


def unsupported(study):
    """Return the sentences of a study that its saved results do not support. Raises RunError."""
    results = results_of(study)
    return [text for text, holds in (findings(study, results) if results else ()) if not holds]


def plot_study(study):
    """Write the figure of a study, if it has one and its results are complete; return its findings, or None."""
    if not (results := results_of(study)):
        return None
    if hasattr(study, "plot"):
        plots.save_figure(study.plot(results), title_of(study), files.RESULTS / f"{name_of(study)}.png", study.SETTING)
    return findings_text(study, results)


# --- Runs in parallel ---


def default_jobs():
    """Return how many runs to start at a time: one per core; on a GPU, one."""
    return 1 if torch.cuda.is_available() or torch.backends.mps.is_available() else torch.get_num_threads()


def run_all(commands, options, metrics_of):
    """Run {title: (script, *flags)}, options.jobs at a time, and print a line for each that ends; or list them.

    `metrics_of(title)` returns the metrics that a run left, or None. Raises RunError at the end if some left none.
    """
    if options.jobs is not None and options.jobs < 1:
        raise RunError(f"--jobs must be 1 or more, got {options.jobs}")
    commands = {title: [sys.executable, *command] for title, command in commands.items()}
    if options.list or not commands:
        return print("".join(f"{shlex.join(command)}\n" for command in commands.values()), end="", flush=True)
    cifar10.load("train")  # once, not in every run
    jobs = min(options.jobs or default_jobs(), len(commands))
    settings = {"cwd": files.ROOT, "text": True, "errors": "replace"}
    if jobs > 1:  # a single run at a time writes to the terminal itself, and has all threads
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT,
                     "env": os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // jobs))}}
    processes, interrupted, failures = [], threading.Event(), []

    def work(command):
        process = subprocess.Popen(command, **settings)
        processes.append(process)
        if interrupted.is_set():
            process.terminate()
        output, _ = process.communicate()
        return process.returncode, (output or "").strip().splitlines()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {}
        try:
            for title, command in commands.items():
                futures[pool.submit(work, command)] = title
            for count, future in enumerate(concurrent.futures.as_completed(futures), 1):
                (status, output), metrics = future.result(), metrics_of(futures[future])
                text = f"{futures[future]}: " + (
                    " ".join([*output[-1:], f"(status {status})"]) if not metrics else
                    f"diverged in epoch {metrics['epochs']}" if metrics["diverged"] else
                    f"validation accuracy {metrics['val_accuracy']:.2%}, {metrics['seconds']:.0f} s")
                failures += [] if metrics else [text]
                print(f"{count} of {len(commands)}: {text}", flush=True)
        except KeyboardInterrupt as interrupt:
            interrupted.set()
            pool.shutdown(wait=False, cancel_futures=True)
            concurrent.futures.wait(futures, 0 if interrupt.args else GRACE_SECONDS)
            for process in processes:
                process.terminate()
            raise
    if failures:
        raise RunError("\n  ".join([f"{len(failures)} of {len(commands)} runs failed:", *failures]))


def run_missing(study, options):
    """Run, or list, the planned runs that are missing or were made with an older recipe. Raises RunError."""
    staging_folder().mkdir(parents=True, exist_ok=True)
    with files.lock(staging_folder() / "lock", "a study is already being run"):
        wanted = {run: planned_run(*run) for run in study.plan().values()}
        collect(wanted)
        saved, save = saved_runs(), ["--metrics-only", "--output-dir", os.path.relpath(staging_folder(), files.ROOT)]
        missing = {f"{variant}.py {flags}": (variant, flags) for (variant, flags), (_, recipe) in wanted.items()
                   if saved.get((variant, flags), {}).get("recipe") != recipe}
        commands = {title: [f"{variant}.py", *shlex.split(flags), *save] for title, (variant, flags) in missing.items()}
        try:
            run_all(commands, options, lambda title: staged_run(*wanted[missing[title]]))
        finally:
            collect(wanted)


# --- Saved metrics: a line per run with its flags, so that it stays what it was when a script changes ---


def numbers_file(study):
    """Return the file of what a study measured."""
    return files.RESULTS / "studies" / f"{name_of(study)}.json"


def runs_file():
    """Return the file of the runs of all studies."""
    return files.RESULTS / "studies" / "runs.jsonl"


def staging_folder():
    """Return the folder in which runs leave their metrics."""
    return files.RESULTS / "studies" / ".unfinished"


def saved_runs():
    """Return the metrics of the runs of all studies, {(variant, flags): metrics}. Raises RunError."""
    lines = runs.read_json(runs_file()) if runs_file().exists() else []
    return {(line["variant"], line["flags"]): line for line in lines}


def planned_run(variant, flags):
    """Return the name and the recipe that today's script gives to a run of a study. Raises RunError."""
    _, options = cli.parse_args(runs.load_script(variant), shlex.split(flags))
    return options.run, options.identity["recipe"]


def staged_run(run, recipe):
    """Return the metrics that a run left in the staging folder, or None if there are none of this recipe."""
    path = staging_folder() / f"{run}.json"
    metrics = runs.read_json(path)[0] if path.exists() else None
    return metrics if metrics and metrics["recipe"] == recipe else None


def collect(wanted):
    """Move staged runs of {(variant, flags): planned_run()} to the file of all runs, by one atomic write."""
    staged = {key: staged_run(*planned) for key, planned in wanted.items()}
    if found := {key: run | {"flags": key[1]} for key, run in staged.items() if run}:
        lines = (saved_runs() | found).values()
        files.write_file(runs_file(), "".join(f"{json.dumps(line)}\n" for line in lines).encode())
    for key in found:
        (staging_folder() / f"{wanted[key][0]}.json").unlink()


def by_cell(study):
    """Return the metrics of a study's plan as {(line, x): a list over the seeds}, or None if a run is missing."""
    saved, results = saved_runs(), {}
    for (line, x, _), run in study.plan().items():
        results.setdefault((line, x), []).append(saved.get(run))
    return None if any(None in group for group in results.values()) else results


def runs_of(study, only=None):
    """Return the saved runs of a study's plan, or of one variant in it, {(variant, flags): metrics}."""
    planned, saved = study.plan().values() if hasattr(study, "plan") else (), saved_runs()
    return {run: saved[run] for run in planned if run in saved and only in (None, run[0])}


def origin(study, only=None):
    """Return in brackets how the recipes of a study's runs (of one variant) differ from today's; empty if equal."""
    changes = {}
    for (variant, flags), metrics in runs_of(study, only).items():
        try:
            found = files.differences(metrics["recipe"], planned_run(variant, flags)[1])
        except RunError as error:
            found = [str(error) if variant in runs.variants() else "deleted since"]
        changes.setdefault(variant, {}).update(dict.fromkeys(found))
    texts = [f"an earlier {variant}.py: {', '.join(found)}" for variant, found in changes.items() if found]
    return f" [made with {'; '.join(texts)}]" if texts else ""


def made_on(study):
    """Return "; made on" the machines and versions of PyTorch of a study's runs, or nothing if it has none."""
    found = sorted({f"{run['processor']}, {run['precision']}, torch {run['torch']}" for run in runs_of(study).values()})
    return f"; made on {' and '.join(found)}" if found else ""


# --- Tables and figures ---


def accuracies(group, part="val"):
    """Return the accuracy of each run in percent; chance for one that diverged."""
    chance = 1 / len(cifar10.CLASSES)
    return [100 * (chance if metrics["diverged"] else metrics[f"{part}_accuracy"]) for metrics in group]


def losses(group):
    """Return the validation loss of each run."""
    return [metrics["val_loss"] for metrics in group]


def gaps(group):
    """Return the generalization gap of each run: training (without augmentation) minus validation accuracy."""
    return [train - val for train, val in zip(accuracies(group, "train"), accuracies(group), strict=True)]


def bold_if(condition, text):
    return f"**{text}**" if condition else text


def markdown(head, rows, align="---"):
    """Return a table as Markdown; `align` is the rule below all columns but the first."""
    rule = ["---"] + [align] * (len(head) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, rule, *rows])


def table(results, measure, row_header, columns, reference, factor, digits=2):
    """Return a table of measure(runs), a row per line, a column per x of `columns`, and its tests against a reference.

    The last row, averaged over the lines, is corrected by itself; `factor` names the columns in the F-test.
    """
    cells = {(line, x): measure(group) for (line, x), group in results.items()}
    lines, tests, text = dict.fromkeys(line for line, _ in cells), stats.against(cells, reference), f"{{:.{digits}f}}"
    rows = [[LABELS.get(line, line), *(bold_if(x != reference and tests[line, x].significant,
                                               mean_and_sd(cells[line, x], text)) for x in columns)] for line in lines]
    overall, p = stats.main_effects(cells, reference), stats.interaction(cells)
    texts = {x: bold_if(test.significant, test.text(digits)) for x, test in overall.items()}
    rows.append(["difference, averaged over the normalizations", *(texts.get(x, "") for x in columns)])
    return (markdown([row_header, *columns.values()], rows, "---:") +
            f"\nBold: significant, compared with {columns[reference]}. F-test of the interaction of {factor} and "
            f"normalization: p = {p:.2g}{DEPENDS * (p < stats.LEVEL)}.\n")


def plot_line(ax, line, xs, values, title=None, **style):
    """Plot the means of lists of values as a line of a study, with a band of one standard deviation."""
    plots.plot_means(ax, xs, values, plots.color_of(line), label=title or LABELS.get(line, line), **style)


def plot_lines(ax, results, measure):
    """Plot all lines of the results."""
    for line in dict.fromkeys(line for line, _ in results):
        xs = [x for other, x in results if other == line]
        plot_line(ax, line, xs, [measure(results[line, x]) for x in xs], marker="o", markersize=3)
    ax.grid(alpha=0.3)


def plot_intervals(ax, cells, columns):
    """Plot the means of {(line, x): values} side by side for each x of `columns`, with 95 % confidence intervals."""
    for place, line in enumerate(dict.fromkeys(line for line, _ in cells)):
        means = [stats.contrast(cells, {(line, x): 1}) for x in columns]
        ax.errorbar([column + 0.18 * (place - 1) for column in range(len(columns))], [mean.estimate for mean in means],
                    [mean.estimate - mean.low for mean in means], fmt="o", capsize=3, color=plots.color_of(line),
                    label=LABELS.get(line, line))
    ax.set_xticks(range(len(columns)), columns.values())
    ax.grid(alpha=0.3, axis="y")
