"""What bn.py, gn.py and ln.py share, from top to bottom as a picture flows through it:

    recipe -> data -> model -> training -> results -> command line

A script hands its Recipe to main(). Importing this file changes nothing and downloads nothing.
"""

import argparse
import contextlib
import copy
import csv
import dataclasses
import functools
import hashlib
import io
import json
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
from torch import nn
from tqdm import tqdm

from tools import pictures, storage
from tools.muon import Muon
from tools.storage import RunError, write_file

ROOT = Path(__file__).resolve().parent
DATA, RESULTS = ROOT / "data", ROOT / "results"
COLOURS = {"bn": "#1f77b4", "gn": "#d95f02", "ln": "#2a9d55"}  # of each variant, in every picture
MAX_PARAMETERS, MAX_EPOCHS = 50_000, 20  # the assignment: fewer than 50,000 parameters, at most 20 epochs
LAYERS = "C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11".split()
CONVOLUTIONS = {name for name in LAYERS if name[0] in "Cc" and name != "c11"}  # those that a norm follows


class RecipeError(RunError, ValueError):
    """A value that the network or the training can't take."""


# --- Recipe: what a script chooses; every field but the first is a flag as well (batch_size: --batch-size) ---


def setting(default, help, valid=lambda value: True):
    return dataclasses.field(default=default, metadata={"help": help, "valid": valid})


@dataclasses.dataclass(frozen=True)
class Recipe:
    variant: str  # the script's name
    norm: Callable[..., nn.Module] | None  # makes the layer from the number of channels; None: no normalization
    groups: int | str | None = setting(
        None, "groups of channels to normalize together, or 'channels': one each",
        lambda groups: groups in (None, "channels") or isinstance(groups, int) and groups > 0)
    dropout: float = setting(0.0, "probability in [0, 1) that a channel of an image is zeroed", lambda p: 0 <= p < 1)
    dropout_after: str = setting(
        "c3 c7 C10", "convolutions that dropout follows", lambda names: CONVOLUTIONS.issuperset(names.split()))
    additions: str = setting(
        "C2 c3 C4 C6 c7 C8 C9 C10", "convolutions whose input is added to their output",
        lambda names: CONVOLUTIONS.issuperset(names.split()))
    widths: tuple[int, ...] = setting(
        (16, 16, 16, 16, 32, 32, 32, 32, 32, 32), "channels of C1 to C10: ten multiples of 8, fastest if of 16",
        lambda widths: len(widths) == 10 and all(width > 0 and width % 8 == 0 for width in widths))
    activation: str = setting(
        "Hardswish", "ReLU, Hardswish, SiLU or GELU", lambda name: name in ("ReLU", "Hardswish", "SiLU", "GELU"))
    epochs: int = setting(20, f"1 to {MAX_EPOCHS} passes over the training images", lambda n: 1 <= n <= MAX_EPOCHS)
    batch_size: int = setting(128, "images in a training step, 1 or more", lambda n: n >= 1)
    optimizer: str = setting("Muon", "of the filters: Muon or SGD; everything else has SGD",
                             lambda name: name in ("Muon", "SGD"))
    max_lr: float = setting(0.04, "peak of the filters' learning rate, above 0", lambda rate: 0 < rate < math.inf)
    other_lr: float = setting(0.5, "that of scales, shifts and c11", lambda rate: 0 < rate < math.inf)
    warmup: float = setting(0.2, "share of the steps before that peak, in [0, 1]", lambda share: 0 <= share <= 1)
    power: float = setting(2.0, "of the fall from that peak: 1 is a line, 2 a parabola", lambda p: 0 < p < math.inf)
    zero_mean: bool = setting(False, "under Muon, filters keep a mean of zero")
    momentum: float = setting(0.9, "Nesterov momentum, in (0, 1)", lambda m: 0 < m < 1)
    weight_decay: float = setting(0.0, "L2 penalty on filters under SGD, 0 or more", lambda w: 0 <= w < math.inf)
    ema: float = setting(0.995, "decay a step of the moving average of weights that is kept, in [0, 1); 0: no average",
                         lambda decay: 0 <= decay < 1)
    crop: int = setting(
        4, "training images are shifted by up to this many pixels in the first epoch, 0 to 31", lambda n: 0 <= n <= 31)
    last_crop: int = setting(0, "and in the last epoch; in between it changes evenly", lambda n: 0 <= n <= 31)
    cutout: int = setting(
        8, "side of the square blanked in half of the training images, 0 to 32 pixels", lambda n: 0 <= n <= 32)
    flip: bool = setting(True, "mirror half of the training images, drawn anew each epoch")
    patience: int = setting(8, "epochs without a better validation loss before stopping, 1 or more", lambda n: n >= 1)

    def values(self):
        """Every field but the variant, as JSON has them."""
        names = [field.name for field in dataclasses.fields(self)[1:]]
        values = {name: getattr(self, name) for name in names}
        return values | {"norm": self.norm.__name__ if self.norm else "none", "widths": list(self.widths)}

    def validate(self):
        """Raise RecipeError for a value outside its field's range."""
        for field in dataclasses.fields(self)[2:]:
            if not field.metadata["valid"](getattr(self, field.name)):
                raise RecipeError(f"{field.name} can't be {getattr(self, field.name)!r}: {field.metadata['help']}")


# --- Data: six files of 10,000 images; tools/fetch.py gets them, by whichever way, with the same bytes ---

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VAL_PER_CLASS = 500  # of the 5,000 training images of each class
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # the customary ones of R, G, B in [0, 1]
DIGESTS = {  # MD5 of the files of CIFAR-10's official binary version, which we keep in data/
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def load_data(split):
    """The images of "train" (50,000) or "test" (10,000), uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    Reads and checks all six files, so that damage is found before a training, not after it.
    Raises RunError if they are damaged, or neither in data/ nor to be had."""
    if not all((DATA / name).exists() for name in DIGESTS):
        from tools import fetch
        fetch.fetch_data()
    batches = {name: read_batch(name) for name in DIGESTS}
    records = torch.cat([batches[name] for name in DIGESTS if name.startswith("test") == (split == "test")])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def read_batch(name):
    """A file as uint8 (10,000, 3073): label, then 32x32 of red, of green, of blue. Raises RunError if it is damaged."""
    try:
        data = bytearray((DATA / name).read_bytes())
    except OSError as error:
        raise RunError(f"cannot read {DATA / name} ({error.strerror}): delete it and type `make data`") from None
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != DIGESTS[name]:
        raise RunError(f"{DATA / name} is damaged (wrong MD5): delete it and type `make data`")
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, 3073)


def split_indices(targets):
    """Indices of training and validation images: validation has the last VAL_PER_CLASS of each class in file order."""
    is_val = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(len(CLASSES)):
        is_val[torch.where(targets == label)[0][-VAL_PER_CLASS:]] = True
    return torch.where(~is_val)[0], torch.where(is_val)[0]


def crop_of(recipe, epoch):
    """The largest shift of an epoch (from 1), in pixels: from `crop` evenly to `last_crop`.

    With a last crop of 0 the training ends on images placed as those that are evaluated."""
    passed = (epoch - 1) / max(1, recipe.epochs - 1)
    return round(recipe.crop + passed * (recipe.last_crop - recipe.crop))


def draw_augmentation(count, recipe, epoch, generator):
    """One independent draw an image for augment(): flip is bool (count,), the others are pixels, int64 (count,)."""
    crop = crop_of(recipe, epoch)
    down, right = torch.randint(-crop, crop + 1, (2, count), generator=generator)
    top, left = torch.randint(32 - recipe.cutout + 1, (2, count), generator=generator)
    top[torch.rand(count, generator=generator) < 0.5] = 32  # below the image: no square in this one
    return down, right, (torch.rand(count, generator=generator) < 0.5) & recipe.flip, top, left


def augment(images, down, right, flip, top, left, cutout):
    """Mirror, crop with a reflected border, and blank a square of side `cutout` by the mean colour, each image by its
    own draw: uint8 (N, 3, 32, 32) -> the same. DeVries and Taylor 2017, "Improved Regularization of Convolutional
    Neural Networks with Cutout"; here the square is always whole."""
    last = images.shape[-1] - 1
    pixel = torch.arange(last + 1, device=images.device)
    rows = pixel + down[:, None]  # (N, 32): where each output row comes from; -2 stands for 2, 33 for 29
    columns = pixel + right[:, None]
    rows, columns = (last - (last - index.abs()).abs() for index in (rows, columns))
    columns = torch.where(flip[:, None], last - columns, columns)
    source = (rows[:, :, None] * (last + 1) + columns[:, None, :]).flatten(1)  # (N, 1024)
    images = images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    rows, columns = (((pixel >= start[:, None]) & (pixel < start[:, None] + cutout)).byte() for start in (top, left))
    blank = rows[:, None, :, None] * columns[:, None, None]  # (N, 1, 32, 32): 1 inside the square
    return images * (1 - blank) + on_device(images.device)[0].byte() * blank  # ten times as fast as torch.where


def normalize(images):
    """uint8 (N, 3, 32, 32) -> float32 of about zero mean and unit variance, (x / 255 - MEAN) / STD, channels last."""
    mean, std = on_device(images.device)
    return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@functools.cache
def on_device(device):
    """255 * MEAN and 255 * STD as tensors (3, 1, 1), copied to the device only once."""
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


# --- Model: C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11 ---


class Network(nn.Module):
    """The assignment's network: C is a 3x3 convolution, c a 1x1 convolution, P a 2x2 max pool, GAP the mean over H, W.

    Maps float (N, 3, 32, 32) to logits (N, 10)."""

    def __init__(self, recipe):
        super().__init__()
        self.additions = recipe.additions.split()
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
                if name in self.additions and before != channels:
                    raise RecipeError(f"additions: {name} has {before} channels before it and {channels} behind it")
            self.add_module(name, layer)

    def forward(self, x):
        for name, layer in self.named_children():
            x = x + layer(x) if name in self.additions else layer(x)
        return x.flatten(1)  # (N, 10, 1, 1) -> (N, 10)


def convolution(name, before, channels, recipe):
    """Convolution, norm, activation, and dropout where the recipe asks for it."""
    size = 3 if name.startswith("C") else 1
    layers = {"conv": nn.Conv2d(before, channels, size, padding=size // 2, bias=not recipe.norm)}  # a norm has a shift
    if recipe.groups is not None and recipe.norm:
        if recipe.groups != "channels" and channels % recipe.groups:
            raise RecipeError(f"groups: {recipe.groups} groups don't divide the {channels} channels of {name}")
        layers["norm"] = recipe.norm(channels, channels if recipe.groups == "channels" else recipe.groups)
    elif recipe.norm:
        layers["norm"] = recipe.norm(channels)
    layers["act"] = getattr(nn, recipe.activation)()
    if name in recipe.dropout_after.split() and recipe.dropout:
        layers["dropout"] = nn.Dropout2d(recipe.dropout)
    return nn.Sequential(OrderedDict(layers))


def build_model(recipe):
    """The network of a recipe, with fresh weights drawn from torch's global generator.

    Raises RecipeError for a value that doesn't fit, and for MAX_PARAMETERS parameters or more."""
    recipe.validate()
    model = Network(recipe)
    parameters = sum(p.numel() for p in model.parameters())
    if parameters >= MAX_PARAMETERS:
        raise RecipeError(f"{parameters:,} parameters are too many: fewer than {MAX_PARAMETERS:,} are allowed")
    return model


def describe(recipe):
    """torchinfo's summary of the network for one image: str() it, .total_params, .total_mult_adds."""
    import torchinfo

    columns = ("output_size", "kernel_size", "num_params", "mult_adds")
    return torchinfo.summary(build_model(recipe), (1, 3, 32, 32), col_names=columns, row_settings=["var_names"],
                             device="cpu", verbose=0)


# --- Training: Muon, one cycle of the learning rate, early stopping ---


class Diverged(RunError):
    """The loss is no longer a finite number."""


def train(model, recipe, train_set, val_set, seed, history, save=lambda state: None, saved=None):
    """Train `model` in place, appending a row of history.csv for every epoch, and stop early when it pays no more.

    A set is a pair of images, uint8 (N, 3, 32, 32), and labels, int64 (N,), on the model's device. After every epoch
    `save` is given all that the rest depends on; handed back as `saved`, it lets the training go on to the same bits.
    Returns the averaged weights of the epoch with the lowest validation loss. Raises Diverged."""
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws for every device
    optimizer, scheduler = build_optimizer(model, recipe, len(train_set[0]) // recipe.batch_size * recipe.epochs)
    average = copy.deepcopy(model)
    parts = {"model": model, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    device, best_weights = train_set[0].device.type, None
    dropout = torch.cuda if device == "cuda" else torch  # whose random state dropout draws from
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        generator.set_state(saved["draws"])
        if device == saved["device"]:
            dropout.set_rng_state(saved["dropout"])
        history += saved["history"]
        best_weights = saved["best_weights"]
        print(f"continuing after epoch {len(history)} of {recipe.epochs}", flush=True)
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        best = min(history, key=lambda row: row["val_loss"], default={"epoch": 0, "val_loss": math.inf})
        if epoch - 1 - best["epoch"] >= recipe.patience:
            print(f"stopped early: the validation loss has not fallen since epoch {best['epoch']}", flush=True)
            break
        start = time.perf_counter()
        lr, train_loss, train_accuracy = train_epoch(
            model, average, recipe, train_set, optimizer, scheduler, generator, epoch)
        val_loss, val_accuracy, _ = evaluate(average, *val_set)
        if not math.isfinite(val_loss):
            raise Diverged(f"epoch {epoch}: validation loss {val_loss} at learning rate {lr:.3g}: try a lower --max-lr")
        if val_loss < best["val_loss"]:
            best_weights = {name: value.clone() for name, value in average.state_dict().items()}
        seconds = time.perf_counter() - start
        history.append(dict(zip(HISTORY, (epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy, seconds))))
        print(f"epoch {epoch:2d}: training loss {train_loss:.4f}, accuracy {train_accuracy:.2%}; validation loss "
              f"{val_loss:.4f}, accuracy {val_accuracy:.2%}; learning rate {lr:.4f}; {seconds:.0f} s", flush=True)
        save({name: part.state_dict() for name, part in parts.items()} | {
            "draws": generator.get_state(), "dropout": dropout.get_rng_state(), "device": device,
            "history": history, "best_weights": best_weights})
    return best_weights


def build_optimizer(model, recipe, steps):
    """Muon or SGD for the filters, SGD for scales, shifts and c11, all with momentum; and the schedule of rates."""
    filters = [layer.conv.weight for layer in model.children() if hasattr(layer, "conv")]
    others = [p for p in model.parameters() if all(p is not weight for weight in filters)]
    groups = [{"params": filters, "turn": recipe.optimizer == "Muon", "zero_mean": recipe.zero_mean,
               "weight_decay": recipe.weight_decay},
              {"params": others, "turn": False, "lr": recipe.other_lr}]
    optimizer = Muon(groups, lr=recipe.max_lr, momentum=recipe.momentum, nesterov=True, foreach=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe))


def one_cycle(step, steps, recipe):
    """The learning rate of a step (from 0) as a share of its peak: a line up, then a power of a line down.

    Smith and Topin 2018, "Super-Convergence"; they go down by lines."""
    up = max(1, round(recipe.warmup * steps))
    return min((step + 1) / up, ((steps - step) / (steps - up + 1)) ** recipe.power)


def train_epoch(model, average, recipe, train_set, optimizer, scheduler, generator, epoch):
    """One pass in random order; images that don't fill a last batch are left out this time.

    Returns the last step's learning rate, and the mean loss and accuracy of the steps. Raises Diverged."""
    images, targets = train_set
    device, size, steps = images.device, recipe.batch_size, len(images) // recipe.batch_size
    order = torch.randperm(len(images), generator=generator).to(device)
    draws = [draw.to(device) for draw in draw_augmentation(len(images), recipe, epoch, generator)]
    losses, correct, rates = torch.zeros(steps, device=device), torch.zeros(steps, device=device), []
    averages, weights = floats(average), floats(model)
    model.train()
    for step in tqdm(range(steps), desc=f"epoch {epoch:2d}/{recipe.epochs}", leave=False, disable=None):
        batch = slice(step * size, (step + 1) * size)
        chosen = order[batch]
        with mixed_precision(device):
            some = images.index_select(0, chosen)  # images[chosen], but three times as fast
            logits = model(normalize(augment(some, *(draw[batch] for draw in draws), recipe.cutout)))
        loss = F.cross_entropy(logits.float(), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(averages, weights, average_share(recipe.ema, scheduler.last_epoch))
        losses[step], correct[step] = loss.detach(), (logits.argmax(1) == targets[chosen]).float().mean()
        rates += scheduler.get_last_lr()[:1]
        scheduler.step()
    for step in torch.where(~losses.isfinite())[0].tolist():  # only now: within the epoch a GPU is never waited for
        raise Diverged(f"epoch {epoch}, step {step + 1} of {steps}: the loss is {losses[step].item()} "
                       f"at learning rate {rates[step]:.3g}: try a lower --max-lr")
    return rates[-1], losses.mean().item(), correct.mean().item()


def floats(model):
    """Weights and statistics, but not batch norm's count of batches: tensors that change as the model does."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def average_share(decay, step):
    """How far an exponential moving average moves in a step (from 0): 1 - decay, and more in the first steps.

    Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; theirs is a plain mean."""
    return max(1 - decay, 10 / (10 + step))


def precision(device):
    """What convolutions compute in: bfloat16 where the hardware has instructions for it, else float32.

    bfloat16 halves what goes through memory, of which there is more than of arithmetic. Weights stay in float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and storage.cpu_has("avx512_bf16")
    return "bfloat16" if fast else "float32"


def mixed_precision(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == "bfloat16")


@torch.no_grad()
def evaluate(model, images, targets):
    """Of uint8 images (N, 3, 32, 32): mean cross-entropy, accuracy in [0, 1], logits, float32 (N, 10) on the CPU."""
    model.eval()
    with mixed_precision(images.device):
        logits = [model(normalize(batch)) for batch in images.split(500)]
    logits = torch.cat(logits).float()
    accuracy = (logits.argmax(1) == targets).sum().item() / len(targets)
    return F.cross_entropy(logits, targets).item(), accuracy, logits.cpu()


# --- Results: a run is saved whole, and its pictures (tools/pictures.py) are drawn from what was saved ---

FORMAT = 4  # of checkpoints: raise it when the same recipe no longer trains to the same bits
HISTORY = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
MACHINE = ("device", "precision", "threads", "torch")  # what the last bits of a training depend on
METRICS = """variant run recipe parameters multiply_adds epochs max_epochs best_epoch stopped_early diverged
    train_images limit seed device precision threads torch seconds seconds_per_epoch peak_memory_mb
    train_loss train_accuracy val_loss val_accuracy test_loss test_accuracy
    per_class_accuracy most_accurate_class least_accurate_class""".split()


def run_name(recipe, script, limit=None, seed=0, test=True):
    """The folder of a run: the variant, and every value in which `recipe` differs from the `script`'s own."""
    new, old = recipe.values(), script.values()
    parts = [f"{field}={re.sub('[.]0$', '', str(new[field]).strip('[]'))}" for field in new if new[field] != old[field]]
    parts += [f"limit={limit}"] * (limit is not None) + [f"seed={seed}"] * (seed != 0) + ["no-test"] * (not test)
    return "-".join([script.variant, *(re.sub(r"[^\w.=-]+", "+", part).strip("+") for part in parts)])


def save_numbers(folder, metrics, history, only):
    """Write metrics.json and history.csv; if `only`, delete what else the run has left."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: round(value, 6) for key, value in row.items()} for row in history)
    write_file(folder / "history.csv", text.getvalue().encode())
    write_file(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
    if only:
        storage.keep(folder, "metrics.json", "history.csv")


def save_tensors(path, tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    write_file(path, buffer.getvalue())


def read_run(folder):
    """The numbers of a run: metrics, a dict, and history, a list of dicts of floats."""
    rows = csv.DictReader((folder / "history.csv").read_text().splitlines())
    history = [{key: float(value) for key, value in row.items()} for row in rows]
    return json.loads((folder / "metrics.json").read_text()), history


# --- Command line: what happens when a script is run ---


def main(script, argv=None):
    """Run a script. Exits with 2 for wrong arguments, 1 for a failed run, 130 for Ctrl-C, 143 for SIGTERM."""
    recipe, options = parse_args(script, argv)
    run = run_name(recipe, script, options.limit, options.seed, options.test)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        storage.keep_freed_memory()
        run_recipe(recipe, run, options)
    except (RunError, OSError) as error:
        print(f"{script.variant}.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, RecipeError) else 1)
    except KeyboardInterrupt as signals:
        print(f"{script.variant}.py: interrupted; the same command goes on from the last whole epoch", file=sys.stderr)
        sys.exit(128 + (signals.args or [signal.SIGINT])[0])


def interrupt(number, frame):
    raise KeyboardInterrupt(number)


def parse_args(script, argv=None):
    """The script's recipe with its overrides, and the options of the run. Exits with 2 if they can't be used."""
    parser = argparse.ArgumentParser(
        prog=f"{script.variant}.py", allow_abbrev=False, usage="%(prog)s [flag ...], see %(prog)s --help",
        description=f"Train the network by the recipe of {script.variant}.py; flags override it for this run.")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    parser.add_argument("--limit", type=int, metavar="N", help="train on the first N training images only")
    parser.add_argument("--fresh", action="store_true", help="start over even if an interrupted run could go on")
    parser.add_argument("--no-test", dest="test", action="store_false", help="stop after validation")
    parser.add_argument("--numbers-only", action="store_true", help="keep metrics and history, no weights or pictures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to save in (default: results)")
    norms = [script.norm.__name__, "none"] if script.norm else ["none"]
    parser.add_argument("--norm", choices=norms, default=norms[0], help=f"after each convolution (default: {norms[0]})")
    kinds = {"groups": lambda text: text if text == "channels" else int(text),
             "widths": lambda text: tuple(int(width) for width in text.split(","))}
    for field in dataclasses.fields(Recipe)[2:]:
        default = getattr(script, field.name)
        if field.name == "groups" and default is None:
            continue  # of no use to this variant, so an error
        kind = {"type": kinds.get(field.name, type(default))}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        text = f"{field.metadata['help']} (default: {str(default).strip('()')})"
        parser.add_argument("--" + field.name.replace("_", "-"), default=default, help=text, **kind)
    options = parser.parse_args(argv)
    chosen = {key: value for key, value in vars(options).items() if hasattr(script, key)}
    recipe = dataclasses.replace(script, **chosen | {"norm": script.norm if options.norm != "none" else None})
    try:
        build_model(recipe)
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        device = options.device or best
        options.device = torch.zeros(1, device=device).device  # fails where there is none
        if not 0 <= options.seed < 2**63:
            raise RecipeError(f"seed can't be {options.seed}: 0 or more, below 2**63")
        if options.limit is not None and options.limit < recipe.batch_size:
            raise RecipeError(f"limit can't be {options.limit}: no less than batch_size, {recipe.batch_size}")
    except RecipeError as error:
        parser.error(str(error))
    except (RuntimeError, AssertionError) as error:
        parser.error(f"no device {device!r} here: {str(error).splitlines()[0]}")
    return recipe, options


def run_recipe(recipe, run, options):
    """Train by a recipe, choose the epoch by validation, look at the test set once, and leave the run's folder behind.

    Raises RunError, and RecipeError for a batch or a limit larger than the training set."""
    place = options.results / run
    finished = storage.finish_interrupted(options.results)
    if run in finished and read_run(place)[0]["recipe"] == recipe.values() and not options.fresh:
        return print(f"{run}: the interrupted run was complete; it is now in {place}")
    with storage.unfinished(place) as folder:
        images, targets = load_data("train")
        train_index, val_index = split_indices(targets)
        if max(recipe.batch_size, options.limit or 0) > len(train_index):
            raise RecipeError(f"batch_size and limit can't exceed the {len(train_index):,} training images")
        train_set, val_set = ([data[index].to(options.device) for data in (images, targets)]
                              for index in (train_index[: options.limit], val_index))
        info, history = describe(recipe), []
        metrics = dict.fromkeys(METRICS) | {
            "variant": recipe.variant, "run": run, "recipe": recipe.values(), "parameters": info.total_params,
            "multiply_adds": info.total_mult_adds, "max_epochs": recipe.epochs, "stopped_early": False,
            "diverged": False, "train_images": len(train_set[0]), "limit": options.limit, "seed": options.seed,
            "device": options.device.type, "threads": torch.get_num_threads(), "torch": str(torch.__version__),
            "precision": precision(options.device)}
        print("{run}: {parameters:,} parameters, {train_images:,} images, {device}".format(**metrics), flush=True)
        write_file(folder / "summary.txt", f"{info}\n".encode())

        torch.manual_seed(options.seed)
        model = build_model(recipe).to(options.device, memory_format=torch.channels_last)
        training = {key: metrics[key] for key in ("recipe", "seed", "limit")}
        training |= {"format": FORMAT, "data": " ".join(DIGESTS.values())}
        machine = {key: metrics[key] for key in MACHINE} | {"CPU": storage.cpu_model()}
        checkpoint = storage.Checkpoint(folder / storage.CHECKPOINT, training, machine)
        saved = None if options.fresh else checkpoint.load()
        try:
            weights = train(model, recipe, train_set, val_set, options.seed, history, checkpoint.save, saved)
        except Diverged:
            checkpoint.path.unlink(missing_ok=True)
            if run != recipe.variant:  # the results of the script itself stay
                save_numbers(folder, metrics | {"diverged": True, "epochs": len(history) + 1}, history,
                             options.numbers_only)
                storage.put_in_place(folder)
            raise

        start = time.perf_counter()
        model.load_state_dict(weights)
        save_tensors(folder / "model.pt", {name: value.cpu().contiguous() for name, value in weights.items()})
        best, seconds = min(history, key=lambda row: row["val_loss"]), sum(row["seconds"] for row in history)
        metrics |= {"epochs": len(history), "best_epoch": best["epoch"], "stopped_early": len(history) < recipe.epochs}
        metrics["train_loss"], metrics["train_accuracy"], _ = evaluate(model, *train_set)
        metrics["val_loss"], metrics["val_accuracy"], _ = evaluate(model, *val_set)
        if options.test:
            metrics |= test(model, folder, options.device)
        metrics |= {"seconds": round(seconds + time.perf_counter() - start, 1),
                    "seconds_per_epoch": round(seconds / len(history), 2), "peak_memory_mb": storage.peak_memory_mb()}
        save_numbers(folder, metrics, history, options.numbers_only)
        if not options.numbers_only:
            pictures.draw_run(folder)
        before = None
        with contextlib.suppress(RunError):
            storage.verify(place)
            before = read_run(place)[0]["test_accuracy"]
        storage.put_in_place(folder)
    print(f"{run}: kept epoch {best['epoch']}, validation accuracy {metrics['val_accuracy']:.2%}; see {place}")
    if options.test:
        print(f"test accuracy {metrics['test_accuracy']:.2%}" + (
            f"; the run before had {before:.2%} (kept in {place.parent / '.previous' / run})" if before else ""))


def test(model, folder, device):
    """The one look at the test set: its part of the metrics, and predictions.pt for the pictures."""
    images, targets = load_data("test")
    loss, accuracy, logits = evaluate(model, images.to(device), targets.to(device))
    predicted = logits.argmax(1)
    shown = pictures.confident_mistakes(logits, predicted, targets)
    save_tensors(folder / "predictions.pt", {
        "logits": logits.half(), "predicted": predicted, "targets": targets, "shown": shown, "images": images[shown]})
    share = {name: (predicted[targets == label] == label).double().mean().item() for label, name in enumerate(CLASSES)}
    return {"test_loss": loss, "test_accuracy": accuracy, "per_class_accuracy": share,
            "most_accurate_class": max(share, key=share.get), "least_accurate_class": min(share, key=share.get)}
