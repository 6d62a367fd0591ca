"""Measure the speed on this machine, in about 5 minutes: `make bench`.

Writes results/bench.json and results/bench.md. How many images per second are trained and evaluated by bn.py,
gn.py and ln.py, and by tools/baseline.py? What is each speed-up worth? How near is the training to the processor's
peak rate of matrix products?

In each round every implementation has a turn, in random order, in a process of its own. An implementation without one
of the speed-ups replaces parts of PyTorch or of this project in its process.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

import common
from support import cifar10, cli, files, inspection, machine, runs
from support.files import RunError, write_file
from tools import baseline

ROUNDS, STEPS, WARMUP = 4, 30, 6  # a turn trains WARMUP steps untimed, then STEPS
MATRIX = 2048  # rows and columns of the matrices whose product shows the processor's peak

VARIANTS = ("bn", "gn", "ln")
BASELINES = {"baseline, 0 workers": 0, "baseline, 2 workers": 2}
SPEED_UPS = {  # implementation without a speed-up: the speed-up, and what replaces it
    "bn without tensors": ("batches augmented as tensors", "PIL images and a DataLoader"),
    "bn without channels_last": ("channels_last layout", "contiguous layout"),
    "bn without bfloat16": ("bfloat16", "float32"),
    "gn without contiguous": ("GroupNorm on contiguous memory", "GroupNorm on channels_last memory"),
    "gn without Dropout2d": ("dropout of whole channels", "dropout of single activations"),
}
IMPLEMENTATIONS = (*VARIANTS, *BASELINES, *SPEED_UPS)


def measure(name):
    """Return the seconds per image that an implementation takes to train and to evaluate."""
    return measure_baseline(BASELINES[name]) if name in BASELINES else measure_ours(*name.split(" without "))


def duration(function, *args):
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def measure_ours(variant, speed_up=None):
    """Time training and evaluation of a script, without one of its speed-ups."""
    recipe = runs.load_script(variant)
    remove(speed_up)
    train_set, val_set = common.load_splits(recipe, argparse.Namespace(device="cpu", train_images=None))
    model = common.build_model(recipe).to(memory_format=torch.channels_last)
    training = common.Training(model, recipe, train_set, seed=0)
    for steps in WARMUP, STEPS:
        training.train_set = [values[: steps * recipe.batch_size] for values in train_set]
        train = duration(common.train_epoch, training, 1) / (steps * recipe.batch_size)
        evaluate = duration(common.evaluate, model, *val_set) / len(val_set[0])
    return {"train": train, "evaluate": evaluate}


def remove(speed_up):
    """Replace a speed-up in this process."""
    if speed_up == "tensors":
        common.augment, common.normalize = lambda images, *_: images, through_pil
    elif speed_up == "channels_last":
        torch.channels_last = torch.contiguous_format
    elif speed_up == "bfloat16":
        common.precision = lambda device: "float32"
    elif speed_up == "contiguous":
        sys.modules["gn"].GroupNorm = nn.GroupNorm
    elif speed_up == "Dropout2d":
        nn.Dropout2d = nn.Dropout


def through_pil(images):
    """Return uint8 (N, 3, 32, 32) as the baseline's DataLoader does, float32; augmented in training only."""
    transform = baseline.AUGMENT if torch.is_grad_enabled() else baseline.NORMALIZE
    dataset = baseline.PILImages(images, torch.zeros(len(images)), transform)
    batch, _ = next(iter(torch.utils.data.DataLoader(dataset, len(images))))
    return batch.contiguous(memory_format=torch.channels_last)


def measure_baseline(workers):
    """Time training and evaluation of tools/baseline.py."""
    train_loader, val_loader = baseline.build_loaders(workers)
    model = common.build_model(runs.load_script("bn"))
    optimizer, batches = baseline.build_optimizer(model), iter(train_loader)
    for steps in WARMUP, STEPS:
        seconds = duration(baseline.train, model, itertools.islice(batches, steps), optimizer)
        train = seconds / (steps * baseline.BATCH_SIZE)
        evaluate = duration(baseline.evaluate, model, val_loader) / len(val_loader.dataset)
    return {"train": train, "evaluate": evaluate}


# --- All rounds ---


def measure_all():
    """Return what bench.json holds; its lists have a value per round. Raises RunError."""
    seconds, rates = {name: {"train": [], "evaluate": []} for name in IMPLEMENTATIONS}, []
    for turn in range(1, ROUNDS + 1):
        rates.append(matrix_rate())
        for name in random.sample(IMPLEMENTATIONS, len(IMPLEMENTATIONS)):
            for part, value in run_turn(name).items():
                seconds[name][part].append(value)
        print(f"round {turn} of {ROUNDS}", flush=True)
    precision = common.precision(torch.device("cpu"))
    return {"machine": machine.summary(precision), "note": "", "precision": precision,
            "bn_macs_per_image": convolution_macs(), "matrix_macs_per_second": rates, "seconds_per_image": seconds}


def run_turn(name):
    """Measure an implementation in a new process. Raises RunError if it fails."""
    command = [sys.executable, "-m", "tools.bench", "--only", name]
    process = subprocess.run(command, cwd=files.ROOT, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise RunError(f"cannot measure {name!r}: its process ended with status {process.returncode}")
    return json.loads(process.stdout)


def matrix_rate():
    """Return the multiply-accumulates per second of a matrix product in the precision of the training."""
    a, b = torch.randn(2, MATRIX, MATRIX).to(getattr(torch, common.precision(torch.device("cpu"))))
    return MATRIX**3 / statistics.median(duration(torch.matmul, a, b) for _ in range(7))


def convolution_macs():
    """Return the multiply-accumulates of bn's convolutions per training image, forward and backward."""
    layers = inspection.summarize(common.build_model(runs.load_script("bn"))).summary_list
    macs = [layer.macs for layer in layers if layer.class_name == "Conv2d"]
    return 3 * sum(macs) - macs[0]  # output, gradient of weights, gradient of input; the image needs no gradient


# --- The page ---


def page(saved):
    """Return the text of bench.md from the contents of bench.json."""
    seconds, parts = saved["seconds_per_image"], ("train", "evaluate")

    def ratios(name, reference):  # median of the ratios in each round, for training and evaluation
        pairs = (zip(seconds[name][part], seconds[reference][part], strict=True) for part in parts)
        return [statistics.median(a / b for a, b in pair) for pair in pairs]

    rates = {name: [1 / statistics.median(seconds[name][part]) for part in parts] for name in (*VARIANTS, *BASELINES)}
    faster = [min(both) for both in zip(*(ratios(name, "bn") for name in BASELINES), strict=True)]
    macs, peak = saved["bn_macs_per_image"], statistics.median(saved["matrix_macs_per_second"])
    worth = {name: ratios(name, name.partition(" ")[0]) for name in SPEED_UPS}
    return "\n".join([
        "# Speed\n",
        "Written by `make bench` from bench.json. The baseline, `tools/baseline.py`, trains the network of `bn` with a "
        "standard script: PIL images, torchvision's transforms, a DataLoader, PyTorch's defaults.\n",
        f"Measured on: {saved['machine']}. Every number is a median (rounds: {len(seconds['bn']['train'])}). "
        f"{saved['note']}".rstrip() + "\n",
        "## Images per second\n",
        "|  | training | evaluation |\n| --- | ---: | ---: |",
        *(f"| {name} | {train:,.0f} | {evaluate:,.0f} |" for name, (train, evaluate) in rates.items()),
        f"\n`bn` trains {faster[0]:.2f}x and evaluates {faster[1]:.2f}x as fast as the faster of the two baselines.\n",
        "## What each speed-up is worth\n",
        "| variant | speed-up | what replaces it | training then takes | evaluation then takes |\n"
        "| --- | --- | --- | ---: | ---: |",
        *(f"| {name.partition(' ')[0]} | {' | '.join(SPEED_UPS[name])} | {train:.2f}x as long | "
          f"{evaluate:.2f}x as long |" for name, (train, evaluate) in worth.items()),
        "\n## Fraction of the processor's peak\n",
        f"Forward and backward, the convolutions of `bn` need {macs / 1e6:.1f} million multiply-accumulates (MACs) per "
        f"training image.\nThe product of two {MATRIX}x{MATRIX} matrices in {saved['precision']} runs at "
        f"{2 * peak / 1e9:,.0f} GFLOP/s (a MAC is two operations).\nThe training of `bn` runs at "
        f"{macs * rates['bn'][0] / peak:.0%} of that rate.\n"])


def saved_page():
    """Return the text of bench.md from results/bench.json, or None if there is no such file."""
    path = files.RESULTS / "bench.json"
    return page(runs.read_json(path)[0]) if path.exists() else None


def main(argv=None):
    """Run all rounds and write the page, or measure one implementation and print the result."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description="Measure the speed on this machine.")
    parser.add_argument("--only", choices=IMPLEMENTATIONS, help="measure this alone, once; print seconds per image")
    options = parser.parse_args(argv)
    with cli.exit_on_error("bench", "nothing was saved"):
        if options.only:
            print(json.dumps(measure(options.only)))
            return
        cifar10.load("train")  # downloads the data set if it is missing, before anything is measured
        write_file(files.RESULTS / "bench.json", runs.to_json(measure_all()))
        write_file(files.RESULTS / "bench.md", saved_page().encode())
        print(f"see {files.RESULTS / 'bench.md'}")


if __name__ == "__main__":
    main()
