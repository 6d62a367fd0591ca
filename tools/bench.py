"""Measure the speed on this machine, in about 3 minutes: `make bench`.

Writes results/bench.json and results/bench.md: how many images per second are trained by the scripts, and by a standard
script, the baseline: torchvision augments images one at a time, a DataLoader collects them, and SGD trains the network
of bn.py in PyTorch's defaults, contiguous layout and float32. In each round every implementation has a turn, in random
order.
"""

import argparse
import itertools
import random
import statistics
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import common
from support import cifar10, cli, files, machine, runs
from support.files import write_file

ROUNDS, STEPS, WARMUP = 4, 30, 6  # a turn trains WARMUP steps untimed, then STEPS
BASELINES = {"baseline, 0 workers": 0, "baseline, 2 workers": 2}
IMPLEMENTATIONS = ("bn", "gn", "ln", *BASELINES)

# --- The baseline ---

BATCH_SIZE = 128
AUGMENT = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                              transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)])


class PILImages(Dataset):
    """Pairs of an augmented PIL image and its label, as torchvision.datasets.CIFAR10 returns them."""

    def __init__(self, images, targets):
        self.images, self.targets = images.permute(0, 2, 3, 1).contiguous().numpy(), targets.tolist()  # (N, 32, 32, 3)

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return AUGMENT(Image.fromarray(self.images[index])), self.targets[index]


def build_loader(workers):
    """Return the DataLoader of our training images, augmented and shuffled."""
    images, targets = cifar10.load("train")
    train, _ = common.split_indices(targets)
    return DataLoader(PILImages(images[train], targets[train]), BATCH_SIZE, shuffle=True, num_workers=workers)


def train_baseline(model, batches, optimizer):
    """Train on each batch once; return the mean loss over the steps."""
    model.train()
    losses = []
    for images, targets in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


# --- The benchmark ---


def duration(function, *args):
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def measure_script(variant):
    """Return the seconds per image that training by a script takes."""
    recipe = runs.load_script(variant)
    train_set, _ = common.load_splits(recipe, argparse.Namespace(device="cpu", train_images=None))
    model = common.build_model(recipe).to(memory_format=torch.channels_last)
    training = common.Training(model, recipe, train_set, seed=0)
    for steps in WARMUP, STEPS:
        training.train_set = [values[: steps * recipe.batch_size] for values in train_set]
        seconds = duration(common.train_epoch, training, 1)
    return seconds / (STEPS * recipe.batch_size)


def measure_baseline(workers):
    """Return the seconds per image that training by the baseline takes."""
    model = common.build_model(runs.load_script("bn"))
    optimizer, batches = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4), iter(build_loader(workers))
    for steps in WARMUP, STEPS:
        seconds = duration(train_baseline, model, itertools.islice(batches, steps), optimizer)
    return seconds / (STEPS * BATCH_SIZE)


def measure_all():
    """Return what bench.json holds: the machine, and a list with a value per round for each implementation."""
    seconds = {name: [] for name in IMPLEMENTATIONS}
    for turn in range(1, ROUNDS + 1):
        for name in random.sample(IMPLEMENTATIONS, len(IMPLEMENTATIONS)):
            seconds[name].append(measure_baseline(BASELINES[name]) if name in BASELINES else measure_script(name))
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
    seconds = saved["seconds_per_image"]
    faster = min(statistics.median(a / b for a, b in zip(seconds[name], seconds["bn"], strict=True))
                 for name in BASELINES)  # medians of the ratios in each round
    rows = [f"| {name} | {1 / statistics.median(values):,.0f} |" for name, values in seconds.items()]
    return "\n".join([
        "# Speed\n",
        "Written by `make bench` from bench.json. The baseline trains the network of `bn` with a standard script: PIL "
        "images, torchvision's transforms, a DataLoader, PyTorch's defaults.\n",
        f"Measured on: {saved['machine']}. Every number is the median of {len(seconds['bn'])} rounds.\n",
        "|  | training images per second |\n| --- | ---: |", *rows,
        f"\n`bn` trains {faster:.1f} times as fast as the faster of the two baselines.\n"])


def main():
    """Run all rounds and write the page."""
    with cli.exit_on_error("bench", "nothing was saved"):
        write_file(files.RESULTS / "bench.json", runs.to_json(measure_all()))
        write_file(files.RESULTS / "bench.md", saved_page().encode())
        print(f"see {files.RESULTS / 'bench.md'}")


if __name__ == "__main__":
    main()
