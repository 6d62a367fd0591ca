"""Measure the speed on this machine, in about 3 minutes: `make bench`.

Writes results/bench.json and results/bench.md: how many images per second are trained and evaluated by the scripts, and
by a standard script, the baseline: torchvision augments images one at a time, a DataLoader collects them, and SGD
trains the network of bn.py in PyTorch's defaults, contiguous layout and float32. In each round every implementation has
a turn, in random order.
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
NORMALIZE = transforms.Compose([transforms.ToTensor(), transforms.Normalize(common.MEAN, common.STD)])
AUGMENT = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), NORMALIZE])


class PILImages(Dataset):
    """Pairs of a transformed PIL image and its label, as torchvision.datasets.CIFAR10 returns them."""

    def __init__(self, images, targets, transform):
        self.images = images.permute(0, 2, 3, 1).contiguous().numpy()  # uint8 (N, 32, 32, 3)
        self.targets, self.transform = targets.tolist(), transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.targets[index]


def build_loaders(workers):
    """Return the DataLoaders of our training images, augmented and shuffled, and of our validation images."""
    images, targets = cifar10.load("train")
    train, val = common.split_indices(targets)
    train_set = PILImages(images[train], targets[train], AUGMENT)
    val_set = PILImages(images[val], targets[val], NORMALIZE)
    return (DataLoader(train_set, BATCH_SIZE, shuffle=True, num_workers=workers),
            DataLoader(val_set, BATCH_SIZE, num_workers=workers))


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


@torch.no_grad()
def evaluate_baseline(model, batches):
    """Return the accuracy, in [0, 1]."""
    model.eval()
    correct = count = 0
    for images, targets in batches:
        correct += (model(images).argmax(1) == targets).sum().item()
        count += len(targets)
    return correct / count


# --- The benchmark ---


def duration(function, *args):
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def measure_script(variant):
    """Time training and evaluation of a script."""
    recipe = runs.load_script(variant)
    train_set, val_set = common.load_splits(recipe, argparse.Namespace(device="cpu", train_images=None))
    model = common.build_model(recipe).to(memory_format=torch.channels_last)
    training = common.Training(model, recipe, train_set, seed=0)
    for steps in WARMUP, STEPS:
        training.train_set = [values[: steps * recipe.batch_size] for values in train_set]
        train = duration(common.train_epoch, training, 1) / (steps * recipe.batch_size)
        evaluate = duration(common.evaluate, model, *val_set) / len(val_set[0])
    return {"train": train, "evaluate": evaluate}


def measure_baseline(workers):
    """Time training and evaluation of the baseline."""
    train_loader, val_loader = build_loaders(workers)
    model = common.build_model(runs.load_script("bn"))
    optimizer, batches = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4), iter(train_loader)
    for steps in WARMUP, STEPS:
        seconds = duration(train_baseline, model, itertools.islice(batches, steps), optimizer)
        train = seconds / (steps * BATCH_SIZE)
        evaluate = duration(evaluate_baseline, model, val_loader) / len(val_loader.dataset)
    return {"train": train, "evaluate": evaluate}


def measure_all():
    """Return what bench.json holds: the machine, and lists with a value per round."""
    seconds = {name: {"train": [], "evaluate": []} for name in IMPLEMENTATIONS}
    for turn in range(1, ROUNDS + 1):
        for name in random.sample(IMPLEMENTATIONS, len(IMPLEMENTATIONS)):
            measured = measure_baseline(BASELINES[name]) if name in BASELINES else measure_script(name)
            for part, value in measured.items():
                seconds[name][part].append(value)
        print(f"round {turn} of {ROUNDS}", flush=True)
    return {"machine": machine.summary(common.precision(torch.device("cpu"))), "seconds_per_image": seconds}


def saved_page():
    """Return the text of bench.md from results/bench.json, or None if there is no such file."""
    path = files.RESULTS / "bench.json"
    if not path.exists():
        return None
    saved, parts = runs.read_json(path)[0], ("train", "evaluate")
    seconds = saved["seconds_per_image"]
    rates = {name: [1 / statistics.median(values[part]) for part in parts] for name, values in seconds.items()}

    def times_as_fast(part):  # as the faster baseline: the median of the ratios in each round
        return min(statistics.median(a / b for a, b in zip(seconds[name][part], seconds["bn"][part], strict=True))
                   for name in BASELINES)

    return "\n".join([
        "# Speed\n",
        "Written by `make bench` from bench.json. The baseline, `the baseline`, trains the network of `bn` with a "
        "standard script: PIL images, torchvision's transforms, a DataLoader, PyTorch's defaults.\n",
        f"Measured on: {saved['machine']}. Every number is the median of {len(seconds['bn']['train'])} rounds.\n",
        "| images per second | training | evaluation |\n| --- | ---: | ---: |",
        *(f"| {name} | {train:,.0f} | {evaluate:,.0f} |" for name, (train, evaluate) in rates.items()),
        f"\n`bn` trains {times_as_fast('train'):.2f} times and evaluates {times_as_fast('evaluate'):.2f} times as fast "
        "as the faster of the two baselines.\n"])


def main():
    """Run all rounds and write the page."""
    with cli.exit_on_error("bench", "nothing was saved"):
        write_file(files.RESULTS / "bench.json", runs.to_json(measure_all()))
        write_file(files.RESULTS / "bench.md", saved_page().encode())
        print(f"see {files.RESULTS / 'bench.md'}")


if __name__ == "__main__":
    main()
