"""Measure the speed on this machine, in a minute or two: `make bench`.

In each round, every script has a turn, in random order. Writes results/bench.json and results/bench.md.
"""

import argparse
import random
import statistics
import time

import torch

import common
from studies.study import markdown
from support import cli, files, machine, runs
from support.files import write_file

ROUNDS, STEPS, WARMUP = 5, 30, 6  # a turn trains WARMUP steps untimed, then STEPS


def measure(variant):
    """Return the seconds per image that training by a script takes on the CPU."""
    recipe = runs.load_script(variant)
    train_set, _ = common.load_splits(recipe, argparse.Namespace(device="cpu", train_images=None))
    model = common.build_model(recipe).to(memory_format=torch.channels_last)
    training = common.Training(model, recipe, train_set, seed=0)
    for steps in WARMUP, STEPS:
        training.train_set = [values[: steps * recipe.batch_size] for values in train_set]
        start = time.perf_counter()
        common.train_epoch(training, 1)
    return (time.perf_counter() - start) / (STEPS * recipe.batch_size)


def measure_all():
    """Return what bench.json holds: the machine, and a list with a value per round for each script."""
    seconds = {name: [] for name in runs.variants()}
    for turn in range(1, ROUNDS + 1):
        for name in random.sample(list(seconds), len(seconds)):
            seconds[name].append(measure(name))
        print(f"round {turn} of {ROUNDS}", flush=True)
    made = machine.environment(torch.device("cpu"), common.precision(torch.device("cpu")))
    return {"machine": "{processor}, {threads} threads, {precision}, torch {torch}".format(**made),
            "seconds_per_image": seconds}


def saved_page():
    """Return the text of bench.md from results/bench.json, or None if there is no such file."""
    path = files.RESULTS / "bench.json"
    if not path.exists():
        return None
    saved = runs.read_json(path)[0]
    rows = [[name, f"{1 / statistics.median(values):,.0f}", f"{min(values) / max(values):.0%}"]
            for name, values in saved["seconds_per_image"].items()]
    head = ["", f"training images per second, median of {ROUNDS} rounds", "speed of slowest round, % of fastest"]
    return f"# Speed\n\nWritten by `make bench`. Measured on: {saved['machine']}.\n\n{markdown(head, rows, '---:')}"


def main():
    with cli.exit_on_error("bench", "nothing was saved"):
        write_file(files.RESULTS / "bench.json", runs.to_json(measure_all()))
        write_file(files.RESULTS / "bench.md", saved_page().encode())
        print(f"see {files.RESULTS / 'bench.md'}")


if __name__ == "__main__":
    main()
