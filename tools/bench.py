"""How fast training and evaluation are on this machine, and beside what, for whoever wants to make them faster. Writes
results/bench.json and bench.md.

    python -m tools.bench            speed: medians over rounds in which every implementation has its turn (8 minutes)
    python -m tools.bench accuracy   what its speed-ups cost in accuracy: short trainings of three seeds (15 minutes)
    python -m tools.bench race       the time to 81.7 % of the validation images, one training a side (30 minutes)

Every implementation lives in a process of its own, since the allocator is set per process, and waits while others work.
"The usual way" is that of most notebooks: PIL images through torchvision's transforms, a DataLoader, the loss read at
every step, and PyTorch's defaults; with the same network, batch size and optimizer.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import common
import gn
from support import averaging, jobs, machine, runs, storage
from support.images import MEAN, STD
from support.runs import beyond_noise, markdown, mean_and_sd
from support.storage import RunError, write_file
from tools import attempts

ROUNDS, STEPS, WARMUP = 5, 30, 6  # of every implementation; the first steps of a turn are not timed
EVALUATED = 4000  # images
MATRIX = 2048  # rows and columns of the product whose rate is taken for the machine's
COPIED = 2**28  # bytes of the copy whose rate is taken for its memory's
TRAINING, VALIDATION = 45_000, 5_000  # images
SEEDS, SHORT = (0, 1, 2), 3  # of the accuracy check: seeds, epochs
TARGET = 0.817  # validation accuracy to race to: the test accuracy of the best public answer to the assignment
USUAL_EPOCHS = 20

OURS = {variant: (variant, {}) for variant in ("bn", "gn", "ln")}
USUAL = {"usual, 0 workers": ("usual", {"workers": 0}), "usual, 2 workers": ("usual", {"workers": 2})}
FAST = {"channels_last": True, "allocator": True, "bfloat16": True}
WITHOUT = {  # ours without one of the things that make it fast
    "bn without batches augmented as tensors (PIL images and a DataLoader instead)": ("usual", {"workers": 0} | FAST),
    "bn without channels_last": ("bn", {"without": "channels_last"}),
    "bn without bfloat16": ("bn", {"without": "bfloat16"}),
    "bn without batch norm folded into the convolutions, in evaluation": ("bn", {"without": "folded"}),
    "bn without freed memory kept by the allocator": ("bn", {"without": "allocator"}),
    "gn without dropping whole channels (single activations instead)": ("gn", {"without": "Dropout2d"}),
    "gn without contiguous activations in GroupNorm": ("gn", {"without": "contiguous"}),
}
TRIED = {  # with what was tried and dropped
    "bn with additions in place": ("bn", {"attempt": "add_in_place"}),
    "bn with norm, activation and addition compiled to one pass": ("bn", {"attempt": "compile_between"}),
    "bn with its norm written in few passes": ("bn", {"attempt": "own_norms"}),
    "gn with its norm written in few passes, without changes of layout": ("gn", {"attempt": "own_norms"}),
    "bn with 2x2 maxima instead of the pools, in evaluation": ("bn", {"attempt": "maxima_in_evaluation"}),
}
IMPLEMENTATIONS = OURS | USUAL | WITHOUT | TRIED


# --- An implementation: a process that is told on its standard input what to do, and answers with a line of JSON ---


class UsualConcatenate:
    """As support.layers.Concatenate, with the gradients of torch.cat."""

    @staticmethod
    def apply(x, y):
        return torch.cat([x, y], 1)


class Ours:
    """The training and evaluation of common.py, as they are, without one of the speed-ups, or with one more."""

    def __init__(self, variant, without=None, attempt=None):
        if without != "allocator":
            machine.keep_freed_memory()
        if without == "bfloat16":
            machine.precision = lambda device: "float32"
        if without == "Dropout2d":
            nn.Dropout2d = nn.Dropout
        if without == "folded":
            common.folded = lambda model: model
        if without == "contiguous":
            gn.GroupNorm = nn.GroupNorm
        recipe = common.script_of(variant)
        self.model = common.build_model(recipe)
        if without != "channels_last":
            self.model.to(memory_format=torch.channels_last)
        else:
            common.Concatenate, normalize = UsualConcatenate, common.normalize
            common.normalize = lambda images: normalize(images).contiguous()
        if attempt:
            getattr(attempts, attempt)(self.model)
        images, targets = common.load_data("train")
        train, val = common.split_indices(targets)
        self.train_set, self.val_set = ((images[index], targets[index]) for index in (train, val[:EVALUATED]))
        self.training = common.Training(self.model, recipe, self.train_set, seed=0)
        self.batch_size = recipe.batch_size

    def steps(self, count):
        self.training.train_set = [data[: count * self.batch_size] for data in self.train_set]
        common.train_epoch(self.training, 1)

    def train(self):
        self.steps(WARMUP)
        start = time.perf_counter()
        self.steps(STEPS)
        return (time.perf_counter() - start) / (STEPS * self.batch_size)

    def evaluate(self):
        start = time.perf_counter()
        common.evaluate(self.model, *self.val_set)
        return (time.perf_counter() - start) / EVALUATED

    def multiply_adds_a_second(self):
        """Of a product of two matrices, in the precision of the training and in float32."""
        matrices, rates = torch.randn(2, MATRIX, MATRIX), {}
        for precision in machine.precision(matrices.device), "float32":
            a, b = matrices.to(getattr(torch, precision))
            rates[precision] = MATRIX**3 / duration(lambda a=a, b=b: a @ b)
        return rates

    def bytes_a_second(self):
        """Of a large copy: what it reads and what it writes."""
        old, new = torch.ones(2, COPIED, dtype=torch.uint8)
        return 2 * COPIED / duration(lambda: new.copy_(old))

    def parts(self):
        """Seconds a step of each part of it, the steps written out once more with a clock between their lines."""
        self.model.train()
        training, recipe = self.training, self.training.recipe
        seconds = dict.fromkeys(("augmentation", "forward", "backward", "optimizer"), 0.0)
        for _ in range(STEPS):
            chosen = torch.randint(len(self.train_set[0]), (self.batch_size,), generator=training.generator)
            times = [time.perf_counter()]
            draws = common.draw_augmentation(len(chosen), recipe, 1, training.generator)
            images = self.train_set[0].index_select(0, chosen)
            images = common.normalize(common.augment(images, *draws, recipe.cutout))
            times.append(time.perf_counter())
            with machine.mixed_precision(images.device):
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), self.train_set[1][chosen])
            times.append(time.perf_counter())
            training.optimizer.zero_grad()
            loss.backward()
            times.append(time.perf_counter())
            training.optimizer.step()
            training.average.update(training.scheduler.last_epoch)
            training.scheduler.step()
            times.append(time.perf_counter())
            for part, begin, end in zip(seconds, times, times[1:], strict=False):
                seconds[part] += (end - begin) / STEPS
        return seconds

    def convolutions(self):
        """Seconds a step that torch's profiler sees in convolutions, forward and backward."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            self.steps(10)
        events = [event for event in profile.key_averages() if "convolution" in event.key]
        return sum(event.self_cpu_time_total for event in events) / 1e6 / 10

    def checkpoint_unflushed(self):
        """Seconds to save one, if nobody waits until it is on the disk itself."""
        flush, storage.flush = storage.flush, lambda path: None
        try:
            return self.checkpoint()
        finally:
            storage.flush = flush

    def checkpoint(self):
        """Seconds to save one."""
        path, state = common.RESULTS / ".bench-checkpoint.pt", self.training.state_dict()
        state["best_weights"] = self.model.state_dict()
        start = time.perf_counter()
        storage.Checkpoint(path, {}, {}).save(state)
        seconds = time.perf_counter() - start
        path.unlink()
        return seconds


def duration(work, times=5):
    """Seconds that it takes to do some work, after it was done once."""
    work()
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


class Pictures(torch.utils.data.Dataset):
    """Pairs of a transformed PIL image and its label, of a split's images that `index` names."""

    def __init__(self, index, transform):
        images, targets = common.load_data("train")
        self.pictures = [Image.fromarray(image) for image in images[index].permute(0, 2, 3, 1).contiguous().numpy()]
        self.targets, self.transform = targets[index].tolist(), transform

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return self.transform(self.pictures[index]), self.targets[index]


class Usual:
    """The usual way of writing the training of bn.py, with the usual augmentation or that of the recipe."""

    def __init__(self, workers, channels_last=False, allocator=False, bfloat16=False, seed=0, by_recipe=False):
        from torchvision import transforms  # heavy: only in the process that uses it

        if allocator:
            machine.keep_freed_memory()
        if not channels_last:
            common.Concatenate = UsualConcatenate
        torch.manual_seed(seed)
        self.recipe = common.script_of("bn")
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.precision = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
        self.model = common.build_model(self.recipe).to(memory_format=self.format)
        last = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect" if by_recipe else "constant")
        share = self.recipe.cutout**2 / 32**2
        cutout = [transforms.RandomErasing(0.5, (share, share), (1, 1))] if by_recipe else []
        train, val = common.split_indices(common.load_data("train")[1])
        size = self.recipe.batch_size
        self.loader, self.val_loader = (
            torch.utils.data.DataLoader(Pictures(index, transforms.Compose(steps)), size, num_workers=workers, **order)
            for index, steps, order in (
                (train, [self.crop, transforms.RandomHorizontalFlip(), *last, *cutout],
                 {"shuffle": True, "drop_last": True}),
                (val, last, {})))
        self.optimizer, self.scheduler = common.build_optimizer(self.model, self.recipe, 10**6)
        self.average = averaging.MovingAverage(self.model, self.recipe.ema)

    def step(self, images, targets):
        with self.precision:
            logits = self.model(images.to(memory_format=self.format))
        loss = F.cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        share = averaging.share(self.recipe.ema, self.scheduler.last_epoch)
        for mean, value in zip(self.average.means, averaging.floats(self.model), strict=True):
            mean.lerp_(value, share)
        self.scheduler.step()
        return loss.item()

    def train(self):
        self.model.train()
        for step, batch in zip(range(WARMUP + STEPS), self.loader, strict=False):
            if step == WARMUP:
                start = time.perf_counter()
            self.step(*batch)
        return (time.perf_counter() - start) / (STEPS * self.recipe.batch_size)

    @torch.no_grad()
    def accuracy(self, batches=None):
        """Of the validation images in the first `batches`, and seconds an image."""
        self.average.module.eval()
        correct = seen = 0
        start = time.perf_counter()
        for _, (images, targets) in zip(range(batches or len(self.val_loader)), self.val_loader, strict=False):
            with self.precision:
                logits = self.average.module(images.to(memory_format=self.format))
            correct += (logits.argmax(1) == targets).sum().item()
            seen += len(targets)
        return correct / seen, (time.perf_counter() - start) / seen

    def evaluate(self):
        return self.accuracy(EVALUATED // self.recipe.batch_size)[1]

    def learn(self, epochs, padding=lambda epoch: 4):
        """Train whole epochs, each (from 1) with its padding; seconds and validation accuracy at the end of each."""
        start, reached = time.perf_counter(), []
        for epoch in range(epochs):
            self.crop.padding = padding(epoch + 1)
            self.model.train()
            for batch in self.loader:
                self.step(*batch)
            reached.append((time.perf_counter() - start, self.accuracy()[0]))
            seconds, accuracy = reached[-1]
            print(f"the usual way, epoch {epoch + 1}: {accuracy:.2%} after {seconds:.0f} s", file=sys.stderr)
        return reached

    def learn_by_recipe(self, epochs):
        """As learn(), with the optimizer, the schedule and the shifts of bn.py."""
        self.recipe = dataclasses.replace(self.recipe, epochs=epochs)
        self.optimizer, self.scheduler = common.build_optimizer(self.model, self.recipe, epochs * len(self.loader))
        return self.learn(epochs, lambda epoch: common.crop_of(self.recipe, epoch))

    def learn_by_steps(self, epochs):
        """As learn(), with the optimizer and the steps of the learning rate that are customary."""
        epoch, self.average = len(self.loader), averaging.MovingAverage(self.model, 0.0)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [10 * epoch, 15 * epoch], 0.1)
        return self.learn(epochs)


def work(kind, options):
    """The life of an implementation's process: every line it reads is a method's name and arguments."""
    implementation = Usual(**options) if kind == "usual" else Ours(kind, **options)
    for line in sys.stdin:
        method, *args = json.loads(line)
        print(json.dumps(getattr(implementation, method)(*args)), flush=True)


class Implementation:
    """A handle to an implementation's process, which may have threads of its own number."""

    def __init__(self, kind, options, threads=None):
        own = {"OMP_NUM_THREADS": str(threads)} if threads else {}
        self.process = subprocess.Popen([sys.executable, "-m", "tools.bench", "work", kind, json.dumps(options)],
                                        cwd=common.ROOT, env=os.environ | own, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, *call):
        self.ask(*call)
        return self.answer()

    def ask(self, *call):
        print(json.dumps(call), file=self.process.stdin, flush=True)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RunError("an implementation ended while at work")
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.wait()


# --- The three measurements, each a dict of plain numbers ---


def speed():
    """Seconds an image of every implementation, round by round, and of BN alone what a step and an epoch consist of."""
    jobs_at_once, threads = jobs.fitting(), torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Implementation(*how)) for name, how in IMPLEMENTATIONS.items()}
        together = [stack.enter_context(Implementation(*OURS["bn"], threads=jobs.threads_each(threads, jobs_at_once)))
                    for _ in range(jobs_at_once)]
        seconds = {name: {"train": [], "evaluate": []} for name in IMPLEMENTATIONS}
        seconds_together = {"train": [], "evaluate": []}
        details = {"parts": [], "multiply_adds_a_second": [], "bytes_a_second": [], "checkpoint": [],
                   "checkpoint_unflushed": []}
        profile = {"convolutions": []}  # in a process apart, since a profiler leaves its traces
        processes |= {name: stack.enter_context(Implementation(*OURS["bn"])) for name in ("details", "profile")}
        for turn in range(ROUNDS + 1):  # the first is for warming up
            for name in random.Random(turn).sample(list(processes), len(processes)):  # the place in a round tells
                process = processes[name]
                for method, values in (seconds | {"details": details, "profile": profile})[name].items():
                    value = process(method)
                    values += [value] if turn else []
            for method, values in seconds_together.items():
                for process in together:
                    process.ask(method)
                value = statistics.mean([process.answer() for process in together])
                values += [value] if turn else []
            print(f"round {turn} of {ROUNDS}" if turn else "warmed up", flush=True)
    details["start_up"] = [start_up() for _ in range(ROUNDS)]
    recipe = common.script_of("bn")
    return {"seconds": seconds, "details": details | profile, "side_by_side": seconds_together, "jobs": jobs_at_once,
            "threads": threads, "batch_size": recipe.batch_size, "epochs": recipe.epochs, "train_images": TRAINING,
            "multiply_adds": convolution_multiply_adds(recipe), "bytes": activation_bytes(recipe)}


def convolution_multiply_adds(recipe):
    """Of all convolutions in a training step, an image: the output, the gradient of the weights and of the input."""
    layers = common.describe(recipe).summary_list
    macs = [layer.macs for layer in layers if layer.class_name == "Conv2d"]
    return 3 * sum(macs) - macs[0]  # the images themselves need no gradient


def activation_bytes(recipe):
    """What a training step must move through memory at least, an image: the output of each layer, and its gradient,
    written once and read once, if all that a layer does is done on the way."""
    elements = sum(math.prod(layer.output_size) for layer in common.describe(recipe).summary_list if layer.depth == 1)
    return 4 * elements * getattr(torch, machine.precision(torch.device("cpu"))).itemsize


def start_up():
    """Seconds from the command to the end of the first training step."""
    code = """if True:
        import bn, common, sys
        def first_step(training, epoch):
            training.train_set = [data[:training.recipe.batch_size] for data in training.train_set]
            train_epoch(training, epoch)
            sys.exit()
        train_epoch, common.train_epoch = common.train_epoch, first_step
        common.main(bn.RECIPE, ["--no-test", "--fresh", "--patience", "999"])"""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def train_ours(epochs, seed=0):
    """Seconds of the whole command, and the best validation accuracy of its run."""
    flags = ["--epochs", str(epochs), "--seed", str(seed), "--no-test", "--fresh"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "bn.py", *flags], cwd=common.ROOT, check=True)
    seconds = time.perf_counter() - start
    script = common.script_of("bn")
    run = common.run_name(dataclasses.replace(script, epochs=epochs), script, seed=seed, test=False)
    reached = runs.read(common.RESULTS / run).metrics["val_accuracy"]
    shutil.rmtree(common.RESULTS / run)
    return seconds, reached


def accuracy():
    """Validation accuracy of short trainings by the recipe, with all that makes them fast and without any of it."""
    ours, usual = [], []
    for seed in SEEDS:
        ours.append(train_ours(SHORT, seed)[1])
        with Implementation("usual", {"workers": 0, "seed": seed, "by_recipe": True}) as process:
            usual.append(process("learn_by_recipe", SHORT)[-1][1])
    return {"epochs": SHORT, "seeds": SEEDS, "ours": ours, "usual": usual}


def race():
    """The shortest training of ours that reaches TARGET, and the usual way's."""
    for epochs in range(SHORT + 1, common.MAX_EPOCHS + 1):  # SHORT is too short, as accuracy() shows
        seconds, reached = train_ours(epochs)
        if reached >= TARGET:
            break
    with Implementation("usual", {"workers": 0}) as process:
        start = time.perf_counter()
        epochs_of_usual = process("learn_by_steps", USUAL_EPOCHS)
        whole = time.perf_counter() - start
    return {"target": TARGET, "ours": [epochs, seconds, reached], "usual": epochs_of_usual, "usual_seconds": whole}


# --- The report: results/bench.md, from the numbers in results/bench.json ---


def ratio(slow, fast):
    """Of two implementations that took turns: the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def speed_report(saved):
    yield from images_a_second(saved["seconds"], saved["train_images"])
    yield from side_by_side(saved)
    yield from where_time_goes(saved, **saved["details"])
    yield from floors(saved, saved["details"])


def images_a_second(seconds, train_images):
    rows = []
    for name in [*OURS, *USUAL]:
        train, evaluate = (statistics.median(seconds[name][method]) for method in ("train", "evaluate"))
        rows.append([name, f"{1 / train:,.0f}", f"{1 / evaluate:,.0f}", f"{train * train_images:.1f}"])
    yield "## Images a second\n"
    yield markdown(["", "training", "evaluation", f"seconds for {TRAINING:,} training images"], rows, "---:")
    ratios = [{name: ratio(seconds[name][method], seconds["gn" if name.startswith("gn") else "bn"][method])
               for name in [*USUAL, *WITHOUT, *TRIED]} for method in ("train", "evaluate")]
    train, evaluate = (min(part[name] for name in USUAL) for part in ratios)
    yield (f"`bn` trains {train:.2f}x and evaluates {evaluate:.2f}x as fast as the better of the usual ways "
           f"(medians of the ratios in each of {len(seconds['bn']['train'])} rounds).\n")
    yield "## What each speed-up is worth\n"
    yield markdown(["", "training", "evaluation"],
                   [[name, *(f"{part[name]:.2f}x as long" for part in ratios)] for name in [*WITHOUT, *TRIED]], "---:")
    yield "What is \"with\" something was tried and dropped: tools/attempts.py.\n"


def side_by_side(saved):
    yield "## Side by side\n"
    alone, together = (saved["epochs"] * sum(epoch_of(saved, seconds))
                       for seconds in (saved["seconds"]["bn"], saved["side_by_side"]))
    rows = []
    for count, seconds in (1, alone), (saved["jobs"], together):
        threads = jobs.threads_each(saved["threads"], count)
        rows.append([f"{count} at a time, {threads} thread{'s' * (threads > 1)} each", f"{count * 3600 / seconds:.1f}",
                     f"{seconds / 60:.1f}"])
    yield markdown([f"trainings of bn, {saved['epochs']} epochs", "trainings an hour", "minutes for one"], rows, "---:")


def epoch_of(saved, seconds):
    """The seconds of an epoch, from those of an image: all its steps, and the evaluation after it."""
    steps = saved["train_images"] // saved["batch_size"]
    return (steps * saved["batch_size"] * statistics.median(seconds["train"]),
            VALIDATION * statistics.median(seconds["evaluate"]))


def where_time_goes(saved, parts, convolutions, checkpoint, checkpoint_unflushed, start_up, **others):
    steps = saved["train_images"] // saved["batch_size"]
    convolutions, checkpoint, unflushed, start_up = map(
        statistics.median, (convolutions, checkpoint, checkpoint_unflushed, start_up))
    training, evaluation = epoch_of(saved, saved["seconds"]["bn"])
    step, parts = training / steps, medians(parts)
    whole = sum(parts.values())
    yield "## Where the time of BN goes\n"
    yield markdown(["part of a step", "ms", "share"],
                   [[name, f"{1e3 * value:.1f}", f"{value / whole:.1%}"] for name, value in parts.items()], "---:")
    others = 1 - (parts["forward"] + parts["backward"]) / whole
    yield (f"All but forward and backward take {others:.1%} of a step. (Those that were timed part by part took "
           f"{1e3 * whole:.1f} ms; undisturbed ones, which also keep account of loss and accuracy, "
           f"{1e3 * step:.1f} ms.) The profiler sees {1e3 * convolutions:.1f} ms of a step in convolutions, "
           f"{convolutions / step:.0%}. An epoch takes {training + evaluation + checkpoint:.1f} s: {steps} steps "
           f"{training:.1f} s, evaluation of {VALIDATION:,} validation images {evaluation:.2f} s, the checkpoint "
           f"{checkpoint:.3f} s, of which {max(0, checkpoint - unflushed):.3f} s to flush it to the disk, so that a "
           f"power cut can't take it. From the command to the end of the first step: {start_up:.1f} s.\n")
def medians(rows):
    """Of dicts with the same keys, the median of each key."""
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def floors(saved, details):
    """What an epoch takes at least on this machine."""
    images = saved["train_images"] // saved["batch_size"] * saved["batch_size"]
    epoch = sum(epoch_of(saved, saved["seconds"]["bn"])) + statistics.median(details["checkpoint"])
    rates, copied = medians(details["multiply_adds_a_second"]), statistics.median(details["bytes_a_second"])
    least = {f"arithmetic in {precision}": (f"{2 * rate / 1e9:,.0f} GFLOP/s", saved["multiply_adds"] * images / rate)
             for precision, rate in rates.items()}
    least["memory"] = f"{copied / 1e9:,.0f} GB/s", saved["bytes"] * images / copied
    yield "## The floors of this machine\n"
    yield markdown(["what binds", "at the rate of", "s an epoch at least", "an epoch takes"],
                   [[name, rate, f"{seconds:.2f}", f"{epoch / seconds:.1f}x as long"]
                    for name, (rate, seconds) in least.items()], "---:")
    arithmetic, memory = next(iter(rates)), least["memory"][1]
    bound = least[f"arithmetic in {arithmetic}"][1]
    binding, bound = (f"arithmetic in {arithmetic}", bound) if bound > memory else ("memory", memory)
    yield (f"Arithmetic: the convolutions need {saved['multiply_adds'] / 1e6:.1f} M multiply-adds an image, forward "
           f"and backward; the rate is that of a product of two {MATRIX}x{MATRIX} matrices. Memory: the output of each "
           f"layer and its gradient, written once and read once, are {saved['bytes'] / 1e6:.2f} MB an image; the rate "
           f"is that of a copy of {COPIED / 2**20:.0f} MiB, read and written. Of the two that hold for the training, "
           f"{binding} binds here, and an epoch takes {epoch / bound:.1f}x as long as it must.\n")


def accuracy_report(saved):
    ours, usual = saved["ours"], saved["usual"]
    rows = [[str(seed), f"{our:.2%}", f"{other:.2%}"]
            for seed, our, other in zip(saved["seeds"], ours, usual, strict=True)]
    last = ["mean ± standard deviation", *(mean_and_sd(values, "{:.2%}") for values in (ours, usual))]
    yield "## What speed costs in accuracy\n"
    yield markdown(["seed", "all of it", "none of it"], [*rows, last], "---:")
    difference = statistics.mean(ours) - statistics.mean(usual)
    verdict = "more" if beyond_noise(ours, usual) else "no more"
    yield (f"Validation accuracy of BN's recipe after a training of {saved['epochs']} epochs, with all that makes it "
           "fast, and written the usual way with none of it (same augmentation, optimizer and schedule): a difference "
           f"of {100 * difference:+.2f} points, {verdict} than twice the standard deviation over seeds.\n")


def race_report(saved):
    (epochs, seconds, reached), usual = saved["ours"], saved["usual"]
    crossed = next(((time, epoch + 1) for epoch, (time, value) in enumerate(usual) if value >= saved["target"]), None)
    best = max(value for _, value in usual)
    yield f"## Time to {saved['target']:.1%} of the validation images\n"
    yield (f"`bn.py --epochs {epochs}` is the shortest training of ours that gets there: {reached:.2%} after "
           f"{seconds:.0f} s, start to end. The usual way ({len(usual)} epochs of SGD, learning rate 0.1, a tenth of "
           f"it from epoch 11 and again from epoch 16) takes {saved['usual_seconds']:.0f} s for {usual[-1][1]:.2%}, "
           f"{best:.2%} in its best epoch; "
           + (f"it first got there in epoch {crossed[1]}, after {crossed[0]:.0f} s: {crossed[0] / seconds:.1f}x as "
              "long." if crossed else "it never got there.") + " One training a side.\n")


MEASUREMENTS = {"speed": (speed, speed_report), "accuracy": (accuracy, accuracy_report), "race": (race, race_report)}


def page(results):
    """results/bench.md: every measurement that was made, with its machine."""
    parts = ["# Speed\n", (
        "Written by `make bench` from bench.json. `bn`, `gn` and `ln` are the scripts as they stood then. The usual "
        "way is that of most notebooks: PIL images through torchvision's transforms, a DataLoader, the loss read at "
        "every step, and PyTorch's defaults, with the same network, batch size and optimizer as `bn`.\n")]
    for name, (_, report) in MEASUREMENTS.items():
        if name in results:
            parts += [*report(results[name]), f"Measured on: {results[name]['machine']}.\n"]
    return "\n".join(parts)


def numbers():
    return common.RESULTS / "bench.json"


def saved_page():
    """The text of results/bench.md from the saved numbers; None if there are none."""
    return page(json.loads(numbers().read_text())) if numbers().exists() else None


def main():
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", nargs="?", default="speed", choices=MEASUREMENTS)
    measurement = parser.parse_args().measurement
    try:
        measure, _ = MEASUREMENTS[measurement]
        saved = measure()
        results = json.loads(numbers().read_text()) if numbers().exists() else {}
        results[measurement] = saved | {"machine": machine.in_words()}
        write_file(numbers(), (json.dumps(results, indent=1) + "\n").encode())
        write_file(common.RESULTS / "bench.md", saved_page().encode())
    except (RunError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench: {error}")
    print(page({measurement: results[measurement]}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
