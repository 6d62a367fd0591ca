"""What the studies share: runs in parallel, their saved metrics, statistics, tables and figures.

A study is a module: its docstring has a title and what theory expects; SETTING is what its runs have in common; plan()
returns the runs, {(line, x, seed): (variant, flags)}, or measure() returns numbers to save, or it has both; finding(),
table() and plot() return a sentence, Markdown and a figure of the results. `python -m studies.run NAME` runs one.

Each run of a study leaves <run>.json in results/studies/.unfinished/<study>/; the study collects them in one file,
results/studies/<study>.jsonl, a line each. A run that finished or diverged is not repeated unless the recipe of its
script changes, and an interrupted one resumes. A run without any change to its script is that of the published results.
"""

import concurrent.futures
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import torch

from support import cifar10, cli, files, machine, plots, runs
from support.files import RunError
from support.plots import mean_and_sd

SEEDS = (0, 1, 2)
MORE_SEEDS = (0, 1, 2, 3, 4)  # of runs that take a minute or two
NO_NORM = "none"
LABELS = {"bn": "batch norm", "gn": "group norm", "ln": "layer norm", NO_NORM: "no norm"}
GRACE_SECONDS = 3  # for runs to end by themselves after Ctrl-C, which reaches all processes of a terminal


# --- A study is a module; `results` are the metrics of its runs by cell, else what measure() returned ---


def name_of(study):
    """Return the name of a study: of its module, its figure and its saved metrics."""
    return study.__name__.rpartition(".")[2]


def results_of(study):
    """Return the results of a study from the saved files, or None if something is missing. Raises RunError."""
    if hasattr(study, "measure") and not measured(study):
        return None
    return by_cell(study) if hasattr(study, "plan") else measured(study)


def plot_study(study):
    """Write the figure of a study if its results are complete; return the finding, or None."""
    if not (results := results_of(study)):
        return None
    finding = study.finding(results)
    plots.save_figure(study.plot(results), f"{finding}\n{study.SETTING}", files.RESULTS / f"{name_of(study)}.png")
    return finding


# --- Runs in parallel ---


def default_jobs():
    """Return how many runs fit on this machine at a time: one per core and 2 GB of memory; on a GPU, one."""
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # bytes
    with contextlib.suppress(OSError, ValueError):  # a container's limit, where there is one
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return max(1, min(torch.get_num_threads(), memory // (2 * 10**9)))


def run_all(commands, options, metrics_of):
    """Run {title: (script, *flags)}, options.jobs at a time, and print a line for each that ends; or list them.

    `metrics_of(title)` returns the metrics that a run left, or None. A single run at a time writes to the terminal
    itself. Raises RunError at the end if some left no metrics; one that diverged does.
    """
    if options.jobs is not None and options.jobs < 1:
        raise RunError(f"--jobs must be 1 or more, got {options.jobs}")
    commands = {title: [sys.executable, *command] for title, command in commands.items()}
    if options.list or not commands:
        return print("".join(f"{shlex.join(command)}\n" for command in commands.values()), end="", flush=True)
    cifar10.load("train"), runs.checkout_id()  # once, not in every run
    jobs = min(options.jobs or default_jobs(), len(commands))
    environment = os.environ | {machine.PARENT: str(os.getpid())}
    parallel = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if jobs > 1 else {}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
    processes, interrupted, failures = [], threading.Event(), []

    def work(command):
        process = subprocess.Popen(command, cwd=files.ROOT, env=environment, text=True, errors="replace", **parallel)
        processes.append(process)
        if interrupted.is_set():
            process.terminate()
        output, _ = process.communicate()
        return process.returncode, (output or "").strip().splitlines()

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(work, command): title for title, command in commands.items()}
        try:
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
    """Run what is missing of a study's plan, or made by other recipes than today's, or list it. Raises RunError."""
    folder, wanted = staging_folder(study), planned_runs(study)
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder / "lock", f"the study {name_of(study)} is already being run"):
        collect(study, wanted)
        saved, save = saved_runs(study), ["--metrics-only", "--output-dir", os.path.relpath(folder, files.ROOT)]
        missing = {f"{variant}.py {flags}": (variant, flags) for (variant, flags), (_, recipe) in wanted.items()
                   if saved.get((variant, flags), {}).get("recipe") != recipe}
        commands = {title: [f"{variant}.py", *shlex.split(flags), *save] for title, (variant, flags) in missing.items()}
        try:
            run_all(commands, options, lambda title: finished_runs(study, wanted).get(missing[title]))
        finally:
            collect(study, wanted)


# --- Saved metrics: a line per run with its flags, so that it stays what it was when a script changes ---


def results_file(study, ending="jsonl"):
    """Return the file of a study's runs, or with "json" of its measurement."""
    return files.RESULTS / "studies" / f"{name_of(study)}.{ending}"


def staging_folder(study):
    """Return the folder in which the runs of a study leave their metrics."""
    return files.RESULTS / "studies" / ".unfinished" / name_of(study)


def measured(study):
    """Return what a study's measurement returned when it was last made, or None. Raises RunError."""
    path = results_file(study, "json")
    return runs.read_json(path)[0] if path.exists() else None


def saved_runs(study):
    """Return the metrics in a study's file, {(variant, flags): metrics}. Raises RunError."""
    lines = runs.read_json(results_file(study)) if results_file(study).exists() else []
    return {(line["variant"], line["flags"]): line for line in lines}


def planned_run(variant, flags):
    """Return the name and the recipe that today's script gives to a run of a study. Raises RunError."""
    _, options = cli.parse_args(runs.load_script(variant), shlex.split(flags))
    return options.run, options.identity["recipe"]


def planned_runs(study):
    """Return what today's scripts make of a study's plan, {(variant, flags): (run, recipe)}. Raises RunError."""
    return {planned: planned_run(*planned) for planned in study.plan().values()}


def finished_runs(study, wanted):
    """Return the runs of planned_runs() that wait to be collected or are published, {(variant, flags): metrics}."""
    available = {f"{run['run']}-no-test": run for group in runs.published() for run in group}
    available |= {path.stem: runs.read_json(path)[0] for path in staging_folder(study).glob("*.json")}
    return {key: available[run] for key, (run, recipe) in wanted.items()
            if run in available and available[run]["recipe"] == recipe}


def collect(study, wanted):
    """Add finished runs to a study's file by one atomic write, then delete their files in the staging folder."""
    saved, found = saved_runs(study), finished_runs(study, wanted)
    lines = saved | {key: run | {"flags": key[1]} for key, run in found.items()}
    if lines != saved:
        files.write_file(results_file(study), "".join(f"{json.dumps(line)}\n" for line in lines.values()).encode())
    for key in found:
        (staging_folder(study) / f"{wanted[key][0]}.json").unlink(missing_ok=True)


def by_cell(study):
    """Return the metrics of a study's plan as {(line, x): a list over the seeds}, or None if a run is missing."""
    saved, results = saved_runs(study), {}
    for (line, x, _), run in study.plan().items():
        results.setdefault((line, x), []).append(saved.get(run))
    return None if any(None in group for group in results.values()) else results


def origin(study, only=None):
    """Return in brackets how the recipes of a study's runs (of one variant) differ from today's; empty if equal."""
    saved, changes = saved_runs(study), {}
    planned = study.plan().values() if hasattr(study, "plan") else ()
    for variant, flags in (run for run in planned if run in saved and only in (None, run[0])):
        try:
            found = files.differences(saved[variant, flags]["recipe"], planned_run(variant, flags)[1])
        except RunError as error:
            found = [str(error)]
        changes.setdefault(variant, {}).update(dict.fromkeys(found))
    texts = [f"of an earlier {variant}.py: {', '.join(found)}" for variant, found in changes.items() if found]
    return f" [{'; '.join(texts)}]" if texts else ""


# --- Statistics, tables, figures ---


def accuracies(group, part="val"):
    """Return the accuracy of each run in percent; chance for one that diverged."""
    chance = 1 / len(cifar10.CLASSES)
    return [100 * (chance if metrics["diverged"] else metrics[f"{part}_accuracy"]) for metrics in group]


def losses(group):
    """Return the validation loss of each run."""
    return [metrics["val_loss"] for metrics in group]


def gaps(group):
    """Return the generalization gap of each run: training (without noise) minus validation accuracy, in points."""
    return [train - val for train, val in zip(accuracies(group, "train"), accuracies(group), strict=True)]


def differs(a, b):
    """Return whether the means of two lists differ by more than twice the larger standard deviation."""
    return abs(statistics.mean(a) - statistics.mean(b)) > 2 * max(statistics.stdev(a), statistics.stdev(b))


def exceeds(a, b):
    """Return whether the mean of the first list is higher by more than that."""
    return differs(a, b) and statistics.mean(a) > statistics.mean(b)


def bold_if(condition, text):
    return f"**{text}**" if condition else text


def markdown(head, rows, align="---"):
    """Return a table as Markdown; `align` is the rule below all columns but the first."""
    rule = ["---"] + [align] * (len(head) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [head, rule, *rows])


def table(results, measure, row_header, columns, reference):
    """Return a table of measure(runs), a row per line and a column per x; bold differs from x = reference."""
    rows = []
    for line in dict.fromkeys(line for line, _ in results):
        values = {x: measure(results[line, x]) for x in columns}
        rows.append([LABELS.get(line, line), *(bold_if(differs(values[x], values[reference]), mean_and_sd(values[x]))
                                    for x in columns)])
    return markdown([row_header, *columns.values()], rows, "---:")


def plot_line(ax, line, xs, values, title=None, **style):
    """Plot the means of lists of values as a line of a study, with a band of one standard deviation."""
    plots.plot_means(ax, xs, values, plots.color_of(line), label=title or LABELS.get(line, line), **style)


def plot_lines(ax, results, measure):
    """Plot all lines of the results; a run that diverged is marked by a cross."""
    for line in dict.fromkeys(line for line, _ in results):
        xs = [x for other, x in results if other == line]
        plot_line(ax, line, xs, [measure(results[line, x]) for x in xs], marker="o", markersize=3)
        lost = [(x, *measure([metrics])) for x in xs for metrics in results[line, x] if metrics["diverged"]]
        ax.plot([x for x, _ in lost], [y for _, y in lost], "x", markersize=8, color=plots.color_of(line))
    ax.grid(alpha=0.3)
