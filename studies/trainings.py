"""Trainings that are done once, side by side or on other machines. For all studies, and for other seeds of the scripts.

A training that is finished, or has diverged, is not trained again unless its script's recipe has changed; one that was
interrupted goes on. Of a study's trainings, a line of numbers each is kept in results/studies/<study>.jsonl; those that
are a script's own, with no change, are not trained for a study: their numbers are those published.
"""

import itertools
import os
import shlex
import sys

import common
from support import jobs, machine, runs, scripts
from support.storage import RunError


def add_options(parser):
    """The flags of every command that trains."""
    parser.add_argument("--jobs", type=int, metavar="N",
                        help="trainings at a time (default: one for each core and 2 GB of free memory; on a GPU, one)")
    parser.add_argument("--list", action="store_true",
                        help="train nothing: print the command of each training that is missing, a line each")


def train(commands, count, result):
    """Run the trainings {name: command}, `count` at a time; None: as many as the machine has room for.

    `result(name)` is the metrics of one that has ended, or None. Raises RunError if interrupted, and at the end if some
    have ended without a result; to diverge is one."""
    machine.interrupt_on_sigterm()  # else a kill would leave the trainings at work
    if count is not None and count < 1:
        raise RunError(f"jobs can't be {count}: 1 or more")
    failed = []

    def ended(name, status, text):
        metrics = result(name)
        if metrics:
            return f"{name}: {reached(metrics)}"
        lines = text.strip().splitlines()
        failed.append(f"{name}: {lines[-1]} (status {status})" if lines else f"{name}: ended with status {status}")
        return failed[-1]

    try:
        if commands:
            common.load_data("train")  # so that not every one of them gets it
            jobs.run(commands, count or jobs.fitting(), common.ROOT, ended)
    except KeyboardInterrupt:
        raise RunError("interrupted; the same command goes on from there") from None
    if failed:
        raise RunError("\n  ".join([f"{len(failed)} of {len(commands)} trainings failed:", *failed]))


def reached(metrics):
    """What is printed of a training that has ended."""
    if metrics["diverged"]:
        return f"diverged in epoch {metrics['epochs']}"
    return f"validation accuracy {metrics['val_accuracy']:.2%}, {metrics['epochs']} epochs, {metrics['seconds']:.0f} s"


def command_of(variant, flags):
    """The command line of a training, to be run in the project's folder."""
    return [below_root(sys.executable), f"{variant}.py", *flags]


def print_commands(commands):
    try:
        print("".join(f"{shlex.join(command)}\n" for command in commands.values()), end="", flush=True)
    except BrokenPipeError:  # as by `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end


def below_root(path):
    """A path as seen from the project's folder, if it is in it."""
    return os.path.relpath(path, common.ROOT) if str(path).startswith(f"{common.ROOT}{os.sep}") else str(path)


# --- Of a study ---


def numbers_file(name, ending="jsonl"):
    return common.RESULTS / runs.STUDIES / f"{name}.{ending}"


def waiting_folder(name):
    """Where a study's trainings leave their numbers, for `runs.collect`."""
    return common.RESULTS / runs.STUDIES / ".running" / name


def variants():
    """The names of the scripts."""
    return scripts.names(common.ROOT)


def plan(variant, flags):
    """The name and the recipe of a training."""
    script = common.script_of(variant)
    recipe, options = common.parse_args(script, shlex.split(flags))
    return common.run_name(recipe, script, options.limit, options.seed, options.test), recipe


def published():
    """For each variant the runs of its script, seed by seed. Raises RunError for damaged files."""
    groups = [runs.over_seeds(common.RESULTS, variant) for variant in variants()]
    return [group for group in groups if group]


def saved_trainings(name):
    """The metrics of a study's trainings and of those published, by the name of a training. Raises RunError."""
    saved = runs.read_lines(numbers_file(name))
    for run in itertools.chain.from_iterable(published()):
        if run.metrics["recipe"] == common.script_of(run.metrics["variant"]).values():
            saved[f"{run.metrics['run']}-no-test"] = runs.as_line(run)
    return saved


def finished(saved, variant, flags):
    """The metrics of a training; None if it is missing, or by a recipe that is no longer its script's."""
    name, recipe = plan(variant, flags)
    return saved[name] if name in saved and saved[name]["recipe"] == recipe.values() else None


def pooled(name, trainings):
    """The metrics of all trainings of a study, {(line, x): a list over the seeds}; None if one is missing."""
    saved, found = saved_trainings(name), {}
    if not {variant for variant, _ in trainings.values()} <= set(variants()):
        return None
    for (line, x, _), training in trainings.items():
        metrics = finished(saved, *training)
        if not metrics:
            return None
        found.setdefault((line, x), []).append(metrics)
    return found


def missing(name, trainings):
    """What results/studies/<name>.jsonl lacks of {key: (variant, flags)}, each by its name: "bn.py flags"."""
    runs.collect(waiting_folder(name), numbers_file(name))
    saved = saved_trainings(name)
    return {f"{variant}.py {flags}": (variant, flags)
            for variant, flags in trainings.values() if not finished(saved, variant, flags)}


def commands_of(name, lacking):
    """The command of each training that `missing` named."""
    to_waiting = ["--numbers-only", "--results", below_root(waiting_folder(name))]
    return {title: command_of(variant, [*shlex.split(flags), *to_waiting])
            for title, (variant, flags) in lacking.items()}


def print_missing(name, trainings):
    """Print the command line of each training that a study lacks, and nothing else."""
    print_commands(commands_of(name, missing(name, trainings)))


def train_missing(name, trainings, count=None):
    """Train what a study lacks, `count` at a time. Raises RunError, see `train`."""
    lacking = missing(name, trainings)

    def result(title):
        runs.collect(waiting_folder(name), numbers_file(name))
        return finished(runs.read_lines(numbers_file(name)), *lacking[title])

    train(commands_of(name, lacking), count, result)
