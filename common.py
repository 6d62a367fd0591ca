"""What bn.py, gn.py and ln.py share, from top to bottom as a picture flows through it, for whoever has read a script:

    recipe -> data -> model -> training -> run

A script hands its Recipe to main(). Importing this file changes nothing and downloads nothing. What a training stands
on, but a first reading can take as given, is in support/.
"""

import argparse
import dataclasses
import math
import re
import signal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchinfo
from torch import nn
from tqdm import tqdm

from support import cifar10, machine, pictures, runs, scripts, storage
from support.averaging import MovingAverage
from support.cifar10 import CLASSES
from support.flags import add_flags, add_options, first_invalid, setting
from support.images import as_batch, augment, normalize
from support.layers import Concatenate, fault_of, folded
from support.muon import Muon
from support.storage import RunError

ROOT = Path(__file__).resolve().parent
DATA, RESULTS = ROOT / "data", ROOT / "results"
MAX_PARAMETERS, MAX_EPOCHS = 50_000, 20  # the assignment: fewer than 50,000 parameters, at most 20 epochs
LAYERS = ("C1", "C2", "c3", "P1", "C4", "C5", "C6", "c7", "P2", "C8", "C9", "C10", "GAP", "c11")
CONVOLUTIONS = [name for name in LAYERS if name[0] in "Cc" and name != "c11"]  # those that a norm follows
CONCATENATED = [name for name in LAYERS if name[0] == "C" and name != "C1"]  # the 3x3 ones: C1 sees the image itself


class RecipeError(RunError, ValueError):
    """A value that the network or the training can't take."""


# --- Recipe: what a script chooses; every field but the first is a flag as well ---


@dataclasses.dataclass(frozen=True)
class Recipe:
    script: str  # its file, __file__, whose name is the variant's
    norm: Callable[..., nn.Module] | None  # makes the layer from the number of channels; None: no normalization
    groups: int | str | None = setting(
        None, "groups of channels to normalize together, or 'channels': one each",
        lambda groups: groups in (None, "channels") or (isinstance(groups, int) and groups > 0),
        lambda text: text if text == "channels" else int(text))
    dropout: float = setting(0.0, "probability in [0, 1) that a channel of an image is zeroed", lambda p: 0 <= p < 1)
    dropout_after: str = setting(
        "c3 c7 C10", "convolutions that dropout follows", lambda names: set(CONVOLUTIONS).issuperset(names.split()))
    connections: str = setting(
        "add", "concatenate the input of C2, C4 to C6 and C8 to C10 and their output, add input and output "
        "where they have as many channels, or none",
        lambda how: how in ("concatenate", "add", "none"))
    widths: tuple[int, ...] = setting(
        (16, 16, 16, 16, 32, 32, 32, 32, 32, 32), "channels of C1 to C10: ten multiples of 8, fastest if of 16",
        lambda widths: len(widths) == 10 and all(width > 0 and width % 8 == 0 for width in widths),
        lambda text: tuple(int(width) for width in text.split(",")))
    activation: str = setting(
        "Hardswish", "ReLU, Hardswish, SiLU or GELU", lambda name: name in ("ReLU", "Hardswish", "SiLU", "GELU"))
    epochs: int = setting(20, f"1 to {MAX_EPOCHS} passes over the training images", lambda n: 1 <= n <= MAX_EPOCHS)
    batch_size: int = setting(128, "images in a training step, 1 or more", lambda n: n >= 1)
    optimizer: str = setting("Muon", "of the filters: Muon or SGD; everything else has SGD",
                             lambda name: name in ("Muon", "SGD"))
    max_lr: float = setting(0.04, "peak of the filters' learning rate, above 0", lambda rate: 0 < rate < math.inf)
    aux_lr: float = setting(0.5, "that of scales, shifts and c11", lambda rate: 0 < rate < math.inf)
    warmup: float = setting(0.2, "share of the steps before that peak, in [0, 1]", lambda share: 0 <= share <= 1)
    decay_power: float = setting(
        2.0, "of the fall from that peak: 1 is a line, 2 a parabola", lambda power: 0 < power < math.inf)
    zero_mean: bool = setting(False, "under Muon, filters keep a mean of zero")
    momentum: float = setting(0.9, "Nesterov momentum, in (0, 1)", lambda m: 0 < m < 1)
    weight_decay: float = setting(0.0, "L2 penalty on filters under SGD, 0 or more", lambda w: 0 <= w < math.inf)
    ema: float = setting(0.995, "decay a step of the moving average of weights that is kept, in [0, 1); 0: no average",
                         lambda decay: 0 <= decay < 1)
    crop: int = setting(
        4, "training images are shifted by up to this many pixels in the first epoch, 0 to 31", lambda n: 0 <= n <= 31)
    final_crop: int = setting(0, "and in the last epoch; in between it changes evenly", lambda n: 0 <= n <= 31)
    cutout: int = setting(
        8, "side of the square blanked in half of the training images, 0 to 32 pixels", lambda n: 0 <= n <= 32)
    flip: bool = setting(True, "mirror half of the training images, drawn anew each epoch")
    patience: int = setting(8, "epochs without a better validation loss before stopping, 1 or more", lambda n: n >= 1)

    @property
    def variant(self):
        return Path(self.script).stem

    @property
    def norm_name(self):
        return getattr(self.norm, "__name__", type(self.norm).__name__) if self.norm else "none"

    def values(self):
        """Every field but the script, as JSON has them."""
        names = [field.name for field in dataclasses.fields(self)[1:]]
        return {name: getattr(self, name) for name in names} | {"norm": self.norm_name, "widths": list(self.widths)}


# --- Data: 50,000 training images, of which validation keeps some, and 10,000 test images ---

VAL_PER_CLASS = 500  # of the 5,000 training images of each class


def load_data(split):
    """The images of "train" or "test", uint8 (N, 3, 32, 32), and their labels, int64 (N,). Raises RunError."""
    return cifar10.load(DATA, split)


def split_indices(targets):
    """Indices of training and validation images: validation has the last VAL_PER_CLASS of each class in file order."""
    is_val = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(len(CLASSES)):
        is_val[torch.where(targets == label)[0][-VAL_PER_CLASS:]] = True
    return torch.where(~is_val)[0], torch.where(is_val)[0]


def crop_of(recipe, epoch):
    """The largest shift of an epoch (from 1), in pixels: from `crop` evenly to `final_crop`.

    With a final crop of 0 the training ends on images placed as those that are evaluated."""
    passed = (epoch - 1) / max(1, recipe.epochs - 1)
    return round(recipe.crop + passed * (recipe.final_crop - recipe.crop))


def draw_augmentation(count, recipe, epoch, generator):
    """One independent draw an image for augment(): flip is bool (count,), the others are pixels, int64 (count,)."""
    crop = crop_of(recipe, epoch)
    down, right = torch.randint(-crop, crop + 1, (2, count), generator=generator)
    top, left = torch.randint(32 - recipe.cutout + 1, (2, count), generator=generator)
    top[torch.rand(count, generator=generator) < 0.5] = 32  # below the image: no square in this one
    return down, right, (torch.rand(count, generator=generator) < 0.5) & recipe.flip, top, left


# --- Model: C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11 ---


class Network(nn.Module):
    """The assignment's network: C is a 3x3 convolution, c a 1x1 convolution, P a 2x2 max pool, GAP the mean over H, W.

    Skip connections hand on a layer's input beside its output. Concatenated, all later layers up to the next 1x1
    convolution see it (Huang et al. 2017, "Densely Connected Convolutional Networks"); added to the output, it needs as
    many channels (He et al. 2016, "Deep Residual Learning for Image Recognition"). Maps float (N, 3, 32, 32) to logits
    (N, 10)."""

    def __init__(self, recipe):
        super().__init__()
        self.connections, self.skip_connections = recipe.connections, []  # how, and the names of the layers
        widths, channels = iter(recipe.widths), 3
        for name in LAYERS:
            if name in ("P1", "P2"):
                layer = nn.MaxPool2d(2)
            elif name == "GAP":
                layer = nn.AdaptiveAvgPool2d(1)
            elif name == "c11":
                layer = nn.Conv2d(channels, len(CLASSES), 1)
            else:
                before, channels = channels, next(widths)
                layer = convolution(name, before, channels, recipe)
                if recipe.connections == "concatenate" and name in CONCATENATED:
                    self.skip_connections.append(name)
                    channels += before
                elif recipe.connections == "add" and before == channels:
                    self.skip_connections.append(name)
            self.add_module(name, layer)

    def forward(self, x):
        for name, layer in self.named_children():
            y = layer(x)
            if name in self.skip_connections:
                y = Concatenate.apply(x, y) if self.connections == "concatenate" else x + y
            x = y
        return x.flatten(1)  # (N, 10, 1, 1) -> (N, 10)


def convolution(name, before, channels, recipe):
    """Convolution, norm, activation, and dropout where the recipe asks for it."""
    size = 3 if name.startswith("C") else 1
    layers = {"conv": nn.Conv2d(before, channels, size, padding=size // 2, bias=not recipe.norm)}  # a norm has a shift
    if recipe.norm:
        layers["norm"] = norm_layer(recipe, channels)
    layers["act"] = getattr(nn, recipe.activation)()
    if name in recipe.dropout_after.split() and recipe.dropout:
        layers["dropout"] = nn.Dropout2d(recipe.dropout)
    return nn.Sequential(OrderedDict(layers))


def norm_layer(recipe, channels):
    """The norm of a recipe for so many channels, in its number of groups if it has one."""
    if recipe.groups is None:
        return recipe.norm(channels)
    return recipe.norm(channels, channels if recipe.groups == "channels" else recipe.groups)


def check_norm(recipe):
    """Raise RecipeError for groups that don't fit, and for a norm that can't stand behind the convolutions."""
    for name, channels in zip(CONVOLUTIONS, recipe.widths, strict=True):
        if recipe.groups not in (None, "channels") and channels % recipe.groups:
            raise RecipeError(f"groups: {recipe.groups} groups don't divide the {channels} channels of {name}")
    if fault := fault_of(lambda channels: norm_layer(recipe, channels), recipe.widths):
        raise RecipeError(f"the norm {recipe.norm_name} {fault}")


def build_model(recipe):
    """The network of a recipe, with fresh weights drawn from torch's global generator.

    Raises RecipeError for a value that doesn't fit, and for MAX_PARAMETERS parameters or more."""
    if invalid := first_invalid(recipe):
        raise RecipeError(invalid)
    if recipe.norm:
        check_norm(recipe)
    model = Network(recipe)
    parameters = sum(p.numel() for p in model.parameters())
    if parameters >= MAX_PARAMETERS:
        of_norms = sum(p.numel() for name, p in model.named_parameters() if ".norm." in name)
        raise RecipeError(f"{parameters:,} parameters are too many: fewer than {MAX_PARAMETERS:,} are allowed; "
                          f"{of_norms:,} are those of the norm {recipe.norm_name}")
    return model


def describe(recipe):
    """torchinfo's summary of the network for one image: str() it, .total_params, .total_mult_adds."""
    columns = ("output_size", "kernel_size", "num_params", "mult_adds")
    return torchinfo.summary(build_model(recipe), (1, 3, 32, 32), col_names=columns, row_settings=["var_names"],
                             device="cpu", verbose=0)


# --- Training: Muon, one cycle of the learning rate, a moving average of the weights, early stopping ---


class Diverged(RunError):
    """The loss is no longer a finite number."""


class Training:
    """A training between two epochs. Its state_dict() is all that the rest of it depends on.

    `train_set` is a pair of images, uint8 (N, 3, 32, 32), and labels, int64 (N,), on the model's device."""

    def __init__(self, model, recipe, train_set, seed):
        self.model, self.recipe, self.train_set = model, recipe, train_set
        self.average = MovingAverage(model, recipe.ema)
        steps = len(train_set[0]) // recipe.batch_size * recipe.epochs
        self.optimizer, self.scheduler = build_optimizer(model, recipe, steps)
        self.parts = {"model": model, "average": self.average.module, "optimizer": self.optimizer,
                      "scheduler": self.scheduler}
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws for every device
        self.device = train_set[0].device.type
        self.dropout = torch.cuda if self.device == "cuda" else torch  # whose random state dropout draws from
        self.history = []  # a row of history.csv for every epoch
        self.best_weights = None  # the average's, after the epoch with the lowest validation loss

    def state_dict(self):
        return {name: part.state_dict() for name, part in self.parts.items()} | {
            "generator": self.generator.get_state(), "dropout": self.dropout.get_rng_state(),
            "device": self.device, "history": self.history, "best_weights": self.best_weights}

    def load_state_dict(self, state):
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        if self.device == state["device"]:
            self.dropout.set_rng_state(state["dropout"])
        self.history, self.best_weights = state["history"], state["best_weights"]


def build_optimizer(model, recipe, steps):
    """Muon or SGD for the filters, SGD for scales, shifts and c11, all with momentum; and the schedule of rates."""
    filters = [layer.conv.weight for layer in model.children() if hasattr(layer, "conv")]
    others = [p for p in model.parameters() if all(p is not weight for weight in filters)]
    groups = [{"params": filters, "orthogonalize": recipe.optimizer == "Muon", "zero_mean": recipe.zero_mean,
               "weight_decay": recipe.weight_decay},
              {"params": others, "orthogonalize": False, "lr": recipe.aux_lr}]
    optimizer = Muon(groups, lr=recipe.max_lr, momentum=recipe.momentum, nesterov=True, foreach=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe))


def one_cycle(step, steps, recipe):
    """The learning rate of a step (from 0) as a share of its peak: a line up, then a power of a line down.

    Smith and Topin 2018, "Super-Convergence"; they go down by lines, and PyTorch's OneCycleLR has no powers."""
    up = max(1, round(recipe.warmup * steps))
    return min((step + 1) / up, ((steps - step) / (steps - up + 1)) ** recipe.decay_power)


def train(training, val_set, save=lambda state: None):
    """Train to the last epoch, or until the validation loss has not fallen for `patience` epochs.

    After every epoch `save` is given the state. Returns training.best_weights. Raises Diverged."""
    recipe, history = training.recipe, training.history
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        best = min(history, key=lambda row: row["val_loss"], default={"epoch": 0, "val_loss": math.inf})
        if epoch - 1 - best["epoch"] >= recipe.patience:
            print(f"stopped early: the validation loss has not fallen since epoch {best['epoch']}", flush=True)
            break
        start = time.perf_counter()
        lr, train_loss, train_accuracy = train_epoch(training, epoch)
        val_loss, val_accuracy, _ = evaluate(training.average.module, *val_set)
        if not math.isfinite(val_loss):
            raise Diverged(f"epoch {epoch}: validation loss {val_loss} at learning rate {lr:.3g}: try a lower --max-lr")
        if val_loss < best["val_loss"]:
            averages = training.average.module.state_dict()
            training.best_weights = {name: value.clone() for name, value in averages.items()}
        seconds = time.perf_counter() - start
        row = (epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy, seconds)
        history.append(dict(zip(runs.HISTORY, row, strict=True)))
        print(f"epoch {epoch:2d}: training loss {train_loss:.4f}, accuracy {train_accuracy:.2%}; validation loss "
              f"{val_loss:.4f}, accuracy {val_accuracy:.2%}; learning rate {lr:.4f}; {seconds:.0f} s", flush=True)
        save(training.state_dict())
    return training.best_weights


def train_epoch(training, epoch):
    """One pass in random order; images that don't fill a last batch are left out this time.

    Returns the last step's learning rate, and the mean loss and accuracy of the steps. Raises Diverged."""
    model, recipe, (images, targets) = training.model, training.recipe, training.train_set
    device, size, steps = images.device, recipe.batch_size, len(images) // recipe.batch_size
    order = torch.randperm(len(images), generator=training.generator).to(device)
    draws = [draw.to(device) for draw in draw_augmentation(len(images), recipe, epoch, training.generator)]
    losses, correct, rates = torch.zeros(steps, device=device), torch.zeros(steps, device=device), []
    model.train()
    for step in tqdm(range(steps), desc=f"epoch {epoch:2d}/{recipe.epochs}", leave=False, disable=None):
        batch = slice(step * size, (step + 1) * size)
        chosen = order[batch]
        with machine.mixed_precision(device):
            some = images.index_select(0, chosen)  # images[chosen], but three times as fast
            logits = model(normalize(augment(some, *(draw[batch] for draw in draws), recipe.cutout)))
        loss = F.cross_entropy(logits.float(), targets[chosen])
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.average.update(training.scheduler.last_epoch)
        losses[step], correct[step] = loss.detach(), (logits.argmax(1) == targets[chosen]).float().mean()
        rates += training.scheduler.get_last_lr()[:1]
        training.scheduler.step()
    for step in torch.where(~losses.isfinite())[0].tolist():  # only now: within the epoch a GPU is never waited for
        raise Diverged(f"epoch {epoch}, step {step + 1} of {steps}: the loss is {losses[step].item()} "
                       f"at learning rate {rates[step]:.3g}: try a lower --max-lr")
    return rates[-1], losses.mean().item(), correct.mean().item()


@torch.no_grad()
def evaluate(model, images, targets):
    """Of uint8 images (N, 3, 32, 32): mean cross-entropy, accuracy in [0, 1], logits, float32 (N, 10) on the CPU."""
    model = folded(model.eval())
    with machine.mixed_precision(images.device):
        logits = [model(normalize(batch)) for batch in images.split(500)]
    logits = torch.cat(logits).float()
    accuracy = (logits.argmax(1) == targets).sum().item() / len(targets)
    return F.cross_entropy(logits, targets).item(), accuracy, logits.cpu()


# --- Run: what happens when a script is run. Its folder is saved whole, and pictures are drawn from what was saved ---

FORMAT = 6  # of checkpoints: raise it when the same recipe no longer trains to the same bits


def main(script, argv=None):
    """Run a script. Exits with 2 for wrong arguments, 1 for a failed run, 130 for Ctrl-C, 143 for SIGTERM."""
    recipe, options = parse_args(script, argv)
    run = run_name(recipe, script, options.limit, options.seed, options.test)
    machine.interrupt_on_sigterm()
    try:
        machine.keep_freed_memory()
        run_recipe(recipe, run, options)
    except (RunError, OSError) as error:
        print(f"{script.variant}.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RecipeError) else 1)
    except KeyboardInterrupt as signals:
        print(f"{script.variant}.py: interrupted; the same command goes on from the last whole epoch", file=sys.stderr)
        sys.exit(128 + (signals.args or [signal.SIGINT])[0])


def parse_args(script, argv=None):
    """The script's recipe with its overrides, and the options of the run. Exits with 2 if they can't be used."""
    parser = argparse.ArgumentParser(
        prog=f"{script.variant}.py", allow_abbrev=False, usage="%(prog)s [flag ...], see %(prog)s --help",
        description=f"Train the network by the recipe of {script.variant}.py; flags override it for this run.")
    add_options(parser, RESULTS)
    norms = [script.norm_name, "none"] if script.norm else ["none"]
    parser.add_argument("--norm", choices=norms, default=norms[0], help=f"after each convolution (default: {norms[0]})")
    add_flags(parser, script)
    options = parser.parse_args(argv)
    chosen = {key: value for key, value in vars(options).items() if hasattr(script, key)}
    recipe = dataclasses.replace(script, **chosen | {"norm": script.norm if options.norm != "none" else None})
    try:
        if fault := scripts.fault(script.variant, scripts.found(ROOT)):
            raise RecipeError(fault)
        build_model(recipe)
        if not 0 <= options.seed < 2**63:
            raise RecipeError(f"seed can't be {options.seed}: 0 or more, below 2**63")
        if options.limit is not None and options.limit < recipe.batch_size:
            raise RecipeError(f"limit can't be {options.limit}: no less than batch_size, {recipe.batch_size}")
    except RecipeError as error:
        parser.error(str(error))
    return recipe, options


def run_name(recipe, script, limit=None, seed=0, test=True):
    """The folder of a run: the variant, and every value in which `recipe` differs from the `script`'s own."""
    new, old = recipe.values(), script.values()
    parts = [f"{field}={re.sub('[.]0$', '', str(new[field]).strip('[]'))}" for field in new if new[field] != old[field]]
    parts += [f"limit={limit}"] * (limit is not None) + [f"seed={seed}"] * (seed != 0) + ["no-test"] * (not test)
    return "-".join([script.variant, *(re.sub(r"[^\w.=-]+", "+", part).strip("+") for part in parts)])


def run_recipe(recipe, run, options):
    """Train by a recipe, choose the epoch by validation, look at the test set once, and leave the run's folder behind.

    Raises RunError, and RecipeError for a batch or a limit larger than the training set."""
    place, code = options.results / run, scripts.code(ROOT, recipe.variant)
    finished = run in storage.finish_interrupted(options.results)
    if finished and runs.read(place).metrics["recipe"] == recipe.values() and not options.fresh:
        storage.stamp(place, code)
        return print(f"{run}: the interrupted run was complete; it is now in {place}")
    with storage.unfinished(place) as folder:
        train_set, val_set = load_sets(recipe, options)
        metrics = initial_metrics(recipe, run, options, len(train_set[0]))
        torch.manual_seed(options.seed)
        model = build_model(recipe).to(options.device, memory_format=torch.channels_last)
        with machine.interrupts_held():  # torch imports half of itself when it makes its first optimizer
            training = Training(model, recipe, train_set, options.seed)
        train_or_resume(training, val_set, folder, metrics, options)
        metrics, tensors = evaluate_run(training, val_set, metrics, options)
        save_run(training, metrics, tensors, folder, options)
        replaced = storage.put_in_place(folder)
    if not options.numbers_only:
        storage.stamp(place, code)
    runs.announce(metrics, place, replaced)


def load_sets(recipe, options):
    """Training and validation set, each a pair of images and labels on the device. Raises RunError, RecipeError."""
    images, targets = load_data("train")
    train_index, val_index = split_indices(targets)
    if max(recipe.batch_size, options.limit or 0) > len(train_index):
        raise RecipeError(f"batch_size and limit can't exceed the {len(train_index):,} training images")
    return [[data[index].to(options.device) for data in (images, targets)]
            for index in (train_index[: options.limit], val_index)]


def initial_metrics(recipe, run, options, train_images):
    """What metrics.json says of a run before it trains; what is only known later is None."""
    info = describe(recipe)
    metrics = dict.fromkeys(runs.METRICS) | machine.compute_settings(options.device) | {
        "variant": recipe.variant, "run": run, "recipe": recipe.values(), "parameters": info.total_params,
        "multiply_adds": info.total_mult_adds, "max_epochs": recipe.epochs, "stopped_early": False, "diverged": False,
        "train_images": train_images, "limit": options.limit, "seed": options.seed}
    print("{run}: {parameters:,} parameters, {train_images:,} images, {device}".format(**metrics), flush=True)
    return metrics


def train_or_resume(training, val_set, folder, metrics, options):
    """Train from the checkpoint in the folder if there is a fitting one, else from the start.

    Raises Diverged, having saved the numbers of the run if it has flags: the results of a script itself stay."""
    what = {key: metrics[key] for key in ("recipe", "seed", "limit")}
    what |= {"format": FORMAT, "data": " ".join(cifar10.DIGESTS.values())}
    where = machine.compute_settings(options.device) | {"CPU": machine.cpu_model()}
    checkpoint = storage.Checkpoint(folder / storage.CHECKPOINT, what, where)
    state = None if options.fresh else checkpoint.load()
    if state:
        training.load_state_dict(state)
        print(f"continuing after epoch {len(training.history)} of {training.recipe.epochs}", flush=True)
    try:
        train(training, val_set, checkpoint.save)
    except Diverged:
        checkpoint.path.unlink(missing_ok=True)
        if metrics["run"] != metrics["variant"]:
            metrics |= {"diverged": True, "epochs": len(training.history) + 1}
            save_run(training, metrics, {}, folder, options)
            storage.put_in_place(folder)
        raise


def evaluate_run(training, val_set, metrics, options):
    """The metrics of the chosen weights, and the tensors to save: "model", and "predictions" after a test."""
    start, history = time.perf_counter(), training.history
    training.model.load_state_dict(training.best_weights)
    tensors = {"model": {name: value.cpu().contiguous() for name, value in training.best_weights.items()}}
    best, seconds = min(history, key=lambda row: row["val_loss"]), sum(row["seconds"] for row in history)
    metrics |= {"epochs": len(history), "best_epoch": best["epoch"],
                "stopped_early": len(history) < training.recipe.epochs}
    for part, images_and_targets in ("train", training.train_set), ("val", val_set):
        metrics[f"{part}_loss"], metrics[f"{part}_accuracy"], _ = evaluate(training.model, *images_and_targets)
    if options.test:
        tested, tensors["predictions"] = test(training.model, options.device)
        metrics |= tested
    return metrics | {"seconds": round(seconds + time.perf_counter() - start, 1),
                      "seconds_per_epoch": round(seconds / len(history), 2),
                      "peak_memory_mb": machine.peak_memory_mb()}, tensors


def test(model, device):
    """The one look at the test set: its part of the metrics, and the predictions for the pictures."""
    images, targets = load_data("test")
    loss, accuracy, logits = evaluate(model, images.to(device), targets.to(device))
    predicted = logits.argmax(1)
    shown = pictures.confident_mistakes(logits, predicted, targets)
    metrics = {"test_loss": loss, "test_accuracy": accuracy} | runs.class_metrics(predicted, targets)
    return metrics, {"logits": logits.half(), "predicted": predicted, "targets": targets, "shown": shown,
                     "images": images[shown]}


def save_run(training, metrics, tensors, folder, options):
    """Write what a run leaves into its folder: its numbers, and unless only those are asked for, the rest."""
    runs.save(folder, metrics, training.history, {} if options.numbers_only else tensors)
    if not options.numbers_only:
        storage.write_file(folder / "summary.txt", f"{describe(training.recipe)}\n".encode())
        pictures.draw_run(folder, scripts.colours(ROOT))


# --- Saved networks ---


def script_of(variant):
    """The recipe of a script of this folder. Raises RunError if there is none, or if it can't be loaded."""
    return scripts.recipe(ROOT, variant)


def recipe_of(metrics):
    """The recipe that a saved run was trained by, overrides included. Raises RunError."""
    script, values = script_of(metrics["variant"]), dict(metrics["recipe"])
    if set(values) != set(script.values()):
        raise RunError(f"results/{metrics['run']} has other recipe fields than common.py: train it again")
    values["norm"] = None if values["norm"] == "none" else script.norm
    return dataclasses.replace(script, **values | {"widths": tuple(values["widths"])})


def load_model(folder):
    """The network of a run with its saved weights, in evaluation mode. Raises RunError if there is none, or damage."""
    folder = Path(folder)
    if not (folder / "model.pt").exists():
        raise RunError(f"{folder} has no weights: no run has that folder, or it kept its numbers only")
    storage.verify(folder, pictures=False)
    model = build_model(recipe_of(runs.read(folder).metrics))
    model.load_state_dict(runs.load_tensors(folder, "model"))
    return model.eval()


@torch.no_grad()
def classify(model, images):
    """Of PIL images or uint8 (N, 3, H, W), of any size: for each a dict from classes to probabilities, likeliest first.

    Raises ValueError for anything else."""
    images = as_batch(images).to(next(model.parameters()).device)
    probabilities, labels = model.eval()(normalize(images)).softmax(1).cpu().sort(descending=True)
    return [{CLASSES[label]: share for label, share in zip(*row, strict=True)}
            for row in zip(labels.tolist(), probabilities.tolist(), strict=True)]
