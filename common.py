"""Everything that bn.py, gn.py and ln.py share and that affects training and evaluation.

    recipe -> data -> model -> optimizer -> training -> evaluation -> run -> loading

A script passes its Recipe to main(). Importing this file changes nothing and downloads nothing. support/ has the rest:
command line, data set on disk, files, figures.
"""

import dataclasses
import functools
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from support import cifar10, cli, files, inspection, machine, runs
from support.cifar10 import CLASSES
from support.cli import RecipeError, option
from support.files import RunError

MAX_PARAMETERS, MAX_EPOCHS = 50_000, 20  # the assignment: fewer than 50,000 parameters, at most 20 epochs
LAYERS = {  # C: 3x3 convolution, c: 1x1 convolution, with output channels; P: 2x2 max pool; add layers here
    "C1": 16, "C2": 16, "c3": 16, "P1": None, "C4": 16, "C5": 32, "C6": 32, "c7": 32, "P2": None,
    "C8": 32, "C9": 32, "C10": 32, "GAP": None, "c11": None}
HIDDEN = [name for name, width in LAYERS.items() if width]  # hidden convolutions: all but c11
OPTIMIZERS = {  # optimizer -> default hidden_lr, other_lr, weight_decay
    "Muon": (0.03, 0.3, 0.0), "SGD": (0.05, 0.05, 5e-4), "Adam": (0.01, 0.01, 0.0), "AdamW": (0.01, 0.01, 0.05)}


# --- Recipe: the values that a script chooses; those made with option() are flags as well ---


@dataclasses.dataclass(frozen=True)
class Recipe(cli.Options):
    """All choices of a script. A float value may be written as int. Raises RecipeError for invalid values."""

    script: str  # the script's file, __file__; its name is the variant's
    norm: Callable[..., nn.Module] | None  # norm(channels[, groups]) returns the layer; None: no normalization
    groups: int | str | None = option(None, "number of groups; 'channels': one per channel", parse=cli.int_or_text)
    dropout: float = option(0.0, "probability that a channel of activations is zeroed in training", "[0, 1)")
    dropout_after: str = option("c3 c7 C10", "layers followed by dropout, before a skip connection is added", HIDDEN)
    skip: str = option("add", "skip connections; concat needs smaller widths", ("none", "add", "concat"))
    widths: tuple[int, ...] = option(tuple(filter(None, LAYERS.values())),
                                     "output channels of all convolutions except c11", parse=cli.integers)
    activation: str = option("Hardswish", "activation of hidden layers", ("ReLU", "Hardswish", "SiLU", "GELU"))
    epochs: int = option(20, "passes over the training images", f"[1, {MAX_EPOCHS}]")
    batch_size: int = option(128, "images per training step", "[1, inf)")
    optimizer: str = option("Muon", "optimizer; sets default learning rates and weight decay; with Muon, SGD "
                            "trains c11, biases and norm parameters", tuple(OPTIMIZERS))
    hidden_lr: float = option(None, "peak learning rate of all convolution weights except c11's", "(0, inf)", float)
    other_lr: float = option(None, "peak learning rate of all other parameters", "(0, inf)", float)
    warmup_fraction: float = option(0.2, "fraction of the steps before the learning rate peaks", "[0, 1]")
    decay_power: float = option(2.0, "exponent of the learning-rate decay: 1 = linear, 0 = none", "[0, inf)")
    momentum: float = option(0.9, "Nesterov momentum of Muon and SGD, beta1 of Adam and AdamW", "[0, 1)")
    weight_decay: float = option(None, "weight decay of convolutions except c11; ignored by Muon", "[0, inf)", float)
    ema_decay: float = option(0.995, "weights' EMA: decay per step, lower in the first epochs; 0 = no EMA", "[0, 1)")
    translate: int = option(4, "maximum translation of training images in the first epoch, in pixels", "[0, 31]")
    final_translate: int = option(0, "maximum translation in the last epoch, reached linearly", "[0, 31]")
    cutout: int = option(8, "side in pixels of a square that is blanked with probability 0.5 per image", "[0, 32]")
    flip: bool = option(True, "flip training images horizontally with probability 0.5")
    patience: int = option(8, "epochs without a lower validation loss before training stops", "[1, inf)")

    def check(self):
        """Fill in the optimizer's defaults, convert numbers and lists, and raise RecipeError for invalid values."""
        defaults = OPTIMIZERS.get(self.optimizer, ())
        for name, default in zip(("hidden_lr", "other_lr", "weight_decay"), defaults, strict=False):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        cli.check_options(self)
        if not (self.groups in (None, "channels") or (type(self.groups) is int and self.groups > 0)):
            raise RecipeError(f"groups must be a positive integer or 'channels', got {self.groups!r}")
        if len(self.widths) != len(HIDDEN) or not all(type(n) is int and n > 0 for n in self.widths):
            raise RecipeError(f"widths must be {len(HIDDEN)} positive integers, got {self.widths}")

    def replace(self, **changes):
        """Return a recipe with changes; another optimizer brings its own learning rates and weight decay."""
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            changes = {"hidden_lr": None, "other_lr": None, "weight_decay": None} | changes
        return dataclasses.replace(self, **changes)


# --- Data: 45,000 images for training and 5,000 for validation, both from the training files; 10,000 for the test ---

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # the usual ones of CIFAR-10: R, G, B in [0, 1]


def split_indices(targets):
    """Return the indices of training and validation images: validation has the last tenth of each class."""
    is_val = torch.zeros(len(targets), dtype=torch.bool)
    for label in range(len(CLASSES)):
        of_class = torch.where(targets == label)[0]
        is_val[of_class[-(len(of_class) // 10):]] = True
    return torch.where(~is_val)[0], torch.where(is_val)[0]


def load_splits(recipe, options):
    """Return training and validation set, pairs of images and labels on the device. Raises RunError, RecipeError."""
    images, targets = cifar10.load("train")
    train, val = split_indices(targets)
    for flag, count in ("--batch-size", recipe.batch_size), ("--train-images", options.train_images or 0):
        if count > len(train):
            raise RecipeError(f"{flag} must be at most {len(train):,}, got {count}")
    return [(images[index].to(options.device), targets[index].to(options.device))
            for index in (train[: options.train_images], val)]


def sample_augmentation(count, recipe, epoch, generator):
    """Return independent random parameters of augment() per image: flip is bool (count,), the others int64 (count,)."""
    progress = (epoch - 1) / max(1, recipe.epochs - 1)  # 0 in the first epoch, 1 in the last
    max_translation = round(recipe.translate + progress * (recipe.final_translate - recipe.translate))
    dy, dx = torch.randint(-max_translation, max_translation + 1, (2, count), generator=generator)
    top, left = torch.randint(32 - recipe.cutout + 1, (2, count), generator=generator)
    top[torch.rand(count, generator=generator) < 0.5] = 32  # below the image: no square in this one
    return dy, dx, (torch.rand(count, generator=generator) < 0.5) & recipe.flip, top, left


def augment(images, dy, dx, flip, top, left, cutout):
    """Flip, translate with reflection padding, and cut out, each image by its own parameters: uint8 (N, 3, 32, 32).

    Pixel (y, x) of the output shows pixel (y + dy, x + dx) of the image, or of the flipped image.
    Cutout blanks a square with the mean color. In DeVries and Taylor 2017, "Improved Regularization of Convolutional
    Neural Networks with Cutout", it may cross the border; here it does not.
    """
    last = images.shape[-1] - 1
    pixel = torch.arange(last + 1, device=images.device)
    rows = pixel + dy[:, None]  # (N, 32): the row that each output row shows; -2 means 2, 33 means 29
    columns = pixel + dx[:, None]
    rows, columns = (last - (last - index.abs()).abs() for index in (rows, columns))
    columns = torch.where(flip[:, None], last - columns, columns)
    source = (rows[:, :, None] * (last + 1) + columns[:, None, :]).flatten(1)  # (N, 1024)
    images = images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    rows, columns = (((pixel >= start[:, None]) & (pixel < start[:, None] + cutout)).byte() for start in (top, left))
    blank = rows[:, None, :, None] * columns[:, None, None]  # (N, 1, 32, 32): 1 inside the square
    return images * (1 - blank) + mean_and_std(images.device)[0].byte() * blank  # ten times as fast as torch.where


def normalize(images):
    """Return (x / 255 - MEAN) / STD of uint8 (N, 3, 32, 32), float32 in channels_last memory format."""
    mean, std = mean_and_std(images.device)
    return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@functools.cache
def mean_and_std(device):
    """Return 255 * MEAN and 255 * STD as tensors (3, 1, 1) on the device."""
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


# --- Model: C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11 ---


class Network(nn.Module):
    """The assignment's layers with optional skip connections: float (N, 3, 32, 32) -> logits (N, 10).

    "add": the input of each conv_block() is added to its output if both have the same number of channels (He et al.
    2016, "Deep Residual Learning for Image Recognition"); "concat": input and output of each 3x3 conv_block() except C1
    are concatenated (Huang et al. 2017, "Densely Connected Convolutional Networks").
    """

    def __init__(self, recipe):
        super().__init__()
        self.skip, self.skip_layers = recipe.skip, []  # names of the layers with a skip connection
        widths, channels = iter(recipe.widths), 3
        for name in LAYERS:
            if name.startswith("P"):
                layer = nn.MaxPool2d(2)
            elif name == "GAP":
                layer = nn.AdaptiveAvgPool2d(1)
            elif name == "c11":
                layer = nn.Conv2d(channels, len(CLASSES), 1)
            else:
                in_channels, channels = channels, next(widths)
                layer = conv_block(name, in_channels, channels, recipe)
                if recipe.skip == "concat" and name.startswith("C") and name != "C1":  # C1: its input is the image
                    self.skip_layers.append(name)
                    channels += in_channels
                elif recipe.skip == "add" and in_channels == channels:
                    self.skip_layers.append(name)
            self.add_module(name, layer)

    def forward(self, x):
        for name, layer in self.named_children():
            y = layer(x)
            if name in self.skip_layers:
                y = torch.cat([x, y], 1) if self.skip == "concat" else x + y
            x = y
        return x.flatten(1)  # (N, 10, 1, 1) -> (N, 10)


def conv_block(name, in_channels, out_channels, recipe):
    """Return a convolution with normalization, activation, and dropout where the recipe asks for it."""
    size = 3 if name.startswith("C") else 1
    bias = not recipe.norm  # normalization usually has its own
    layers = {"conv": nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)}
    if not recipe.norm:  # variance 1 / fan_in (LeCun et al. 1998, "Efficient BackProp")
        nn.init.kaiming_normal_(layers["conv"].weight, nonlinearity="linear")
        nn.init.zeros_(layers["conv"].bias)
    if recipe.norm:
        layers["norm"] = build_norm(recipe, out_channels)
    layers["act"] = getattr(nn, recipe.activation)()
    if name in recipe.dropout_after.split() and recipe.dropout:
        layers["dropout"] = nn.Dropout2d(recipe.dropout)
    return nn.Sequential(OrderedDict(layers))


def build_norm(recipe, channels):
    """Return the normalization of a recipe for this number of channels."""
    if recipe.groups is None:
        return recipe.norm(channels)
    return recipe.norm(channels, channels if recipe.groups == "channels" else recipe.groups)


def build_model(recipe):
    """Return the network of a recipe with random weights. Raises RecipeError if it is too large or cannot be used."""
    try:
        model = Network(recipe)
        if (parameters := sum(p.numel() for p in model.parameters())) < MAX_PARAMETERS:
            inspection.check_network(model, (4, 3, 32, 32), autocast(torch.device("cpu")))
    except Exception as error:  # any kind: the normalization may be anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RecipeError(f"the network of {recipe.variant}.py cannot be used: {reason}") from None
    if parameters >= MAX_PARAMETERS:
        of_norm = sum(p.numel() for name, p in model.named_parameters() if ".norm." in name)
        raise RecipeError(f"the network must have fewer than {MAX_PARAMETERS:,} parameters, got {parameters:,}, "
                          f"{of_norm:,} of them in the normalization")
    return model


def hidden_weights(model):
    """Return the weights of the hidden convolutions: (out_channels, in_channels, height, width) each."""
    return [layer.conv.weight for layer in model.children() if hasattr(layer, "conv")]


def precision(device):
    """Return the precision of convolutions: "bfloat16" with AVX512-BF16 or CUDA that supports it, else "float32"."""
    fast = (torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else
            device.type == "cpu" and "avx512_bf16" in machine.cpu_info().get("flags", "").split())
    return "bfloat16" if fast else "float32"


def autocast(device):
    """Return a context in which convolutions and matrix products run in `precision(device)`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) == "bfloat16")


# --- Optimizer: Muon for hidden convolutions, SGD for the rest; one-cycle schedule; EMA of the weights ---


class Muon(torch.optim.SGD):
    """SGD, but parameter groups with "orthogonalize" are updated by their orthogonalized momentum.

    So most singular values of an update are about equal (Jordan et al. 2024, "Muon: An optimizer for hidden layers in
    neural networks"). Here, the Frobenius norm of an update is the learning rate times the norm of the initial weights,
    and "rescale" restores the initial norm of weights after each step. torch.optim.Muon takes only matrices.
    """

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            if group["orthogonalize"]:
                self.orthogonalized_step(group["params"], group["lr"], group["momentum"], group["rescale"])
        super().step()

    def orthogonalized_step(self, params, lr, momentum, rescale):
        """Update the weights of a parameter group in place, and take their gradients away from SGD."""
        weights, grads, state = as_matrices(params), as_matrices([p.grad for p in params]), self.state[params[0]]
        if not state:
            state.update(norm=frobenius_norms(weights), momentum_buffer=torch.zeros_like(grads))
        state["momentum_buffer"].mul_(momentum).add_(grads)
        directions = orthogonalize(grads + momentum * state["momentum_buffer"])  # Nesterov
        weights -= lr * state["norm"] / frobenius_norms(directions) * directions
        if rescale:
            weights *= state["norm"] / frobenius_norms(weights)
        for p, matrix in zip(params, weights, strict=True):
            p.copy_(matrix[: len(p), : p[0].numel()].view_as(p))
            p.grad = None


def as_matrices(tensors):
    """Stack K weights (out_channels, in_channels, height, width) as matrices (K, M, N), padded with zeros."""
    rows, columns = max(len(x) for x in tensors), max(x[0].numel() for x in tensors)
    return torch.stack([F.pad(x.flatten(1), (0, columns - x[0].numel(), 0, rows - len(x))) for x in tensors])


def frobenius_norms(matrices):
    """Return the Frobenius norm of each matrix (K, M, N), at least 1e-12, as (K, 1, 1)."""
    return matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def orthogonalize(matrices, steps=3):
    """Bring all but small singular values of (K, M, N) roughly to 1 by Newton-Schulz steps with Muon's coefficients.

    A step is x -> (3.4445 - 4.7750 g + 2.0315 g^2) x with g = x x.T. Steps are combined, then applied to x.
    """
    x = matrices / frobenius_norms(matrices)
    gram, one = x @ x.mT, torch.eye(x.shape[1], device=x.device)
    product = one
    for _ in range(steps):
        factor = 3.4445 * one - 4.7750 * gram + 2.0315 * gram @ gram
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


def build_optimizer(model, recipe, steps):
    """Return the optimizer of a network, and the scheduler of its learning rates over this number of steps."""
    hidden = hidden_weights(model)
    others = [p for p in model.parameters() if all(p is not weight for weight in hidden)]
    groups = [{"params": hidden, "orthogonalize": recipe.optimizer == "Muon",
               "rescale": recipe.norm is not None, "weight_decay": recipe.weight_decay},
              {"params": others, "orthogonalize": False, "lr": recipe.other_lr, "weight_decay": 0.0}]
    if recipe.optimizer in ("Muon", "SGD"):
        optimizer = Muon(groups, lr=recipe.hidden_lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0,
                         foreach=True)
    else:
        optimizer = getattr(torch.optim, recipe.optimizer)(groups, lr=recipe.hidden_lr, betas=(recipe.momentum, 0.999))
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe))


def one_cycle(step, steps, recipe):
    """Return the learning rate at a step, counted from 0, relative to the peak: linear warmup, polynomial decay.

    Smith and Topin 2018, "Super-Convergence"; theirs decays linearly, and PyTorch's OneCycleLR knows no exponent.
    """
    rise = max(1, round(recipe.warmup_fraction * steps))
    return min((step + 1) / rise, ((steps - step) / (steps - rise + 1)) ** recipe.decay_power)


def build_ema(model, decay, scheduler):
    """Return the exponential moving average (EMA) of a network's weights and running statistics.

    A step moves it towards the weights by the fraction max(1 - decay, 10 / (10 + step)). Polyak and Juditsky 1992,
    "Acceleration of Stochastic Approximation by Averaging", take the plain mean.
    """
    def move(averages, values, _):  # called per data type; num_batches_tracked is an integer
        if averages[0].is_floating_point():
            step = scheduler.last_epoch  # an int; reading the tensor `_` would synchronize with the device
            torch._foreach_lerp_(averages, values, max(1 - decay, 10 / (10 + step)))
        else:
            torch._foreach_copy_(averages, values)
    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)


# --- Training ---


class Diverged(RunError):
    """The loss is no longer a finite number."""


class Training:
    """State of a run at an epoch boundary; state_dict() holds all that the remaining epochs depend on.

    `train_set` is a tuple on the model's device: images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
    """

    def __init__(self, model, recipe, train_set, seed):
        self.model, self.recipe, self.train_set = model, recipe, train_set
        steps = len(train_set[0]) // recipe.batch_size * recipe.epochs
        self.optimizer, self.scheduler = build_optimizer(model, recipe, steps)
        self.ema = build_ema(model, recipe.ema_decay, self.scheduler)
        self.parts = {"model": model, "ema": self.ema, "optimizer": self.optimizer, "scheduler": self.scheduler}
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same random numbers on every device
        self.device = train_set[0].device.type
        self.rng = {"cuda": torch.cuda, "mps": torch.mps}.get(self.device, torch)  # its random state drives dropout
        self.history = []  # a dict per epoch, with the keys runs.HISTORY
        self.best_weights = None  # the EMA's after the epoch with the lowest validation loss

    def state_dict(self):
        """Return everything to save in a checkpoint."""
        return {name: part.state_dict() for name, part in self.parts.items()} | {
            "generator": self.generator.get_state(), "rng": self.rng.get_rng_state(), "device": self.device,
            "history": self.history, "best_weights": self.best_weights}

    def load_state_dict(self, state):
        """Continue from a saved state; on another kind of device, without the random state of dropout."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        if self.device == state["device"]:
            self.rng.set_rng_state(state["rng"])
        self.history, self.best_weights = state["history"], state["best_weights"]


def train(training, val_set, save=lambda state: None):
    """Train to the last epoch or early stopping, save after each epoch, and return best_weights. Raises Diverged."""
    recipe, history = training.recipe, training.history
    for epoch in range(len(history) + 1, recipe.epochs + 1):
        best = min(history, key=lambda row: row["val_loss"], default={"epoch": 0, "val_loss": math.inf})
        if epoch - 1 - best["epoch"] >= recipe.patience:
            print(f"stopped early: no validation loss below that of epoch {best['epoch']}", flush=True)
            break
        start = time.perf_counter()
        lr, train_loss, train_accuracy = train_epoch(training, epoch)
        val_loss, val_accuracy, _ = evaluate(training.ema.module, *val_set)
        if not math.isfinite(val_loss):
            raise Diverged(f"epoch {epoch}: validation loss {val_loss}: try a lower --hidden-lr or --other-lr")
        if val_loss < best["val_loss"]:
            weights = training.ema.module.state_dict()
            training.best_weights = {name: value.clone() for name, value in weights.items()}
        seconds = time.perf_counter() - start
        row = epoch, lr, train_loss, train_accuracy, val_loss, val_accuracy, seconds
        history.append(dict(zip(runs.HISTORY, row, strict=True)))
        save(training.state_dict())
        print(f"epoch {epoch:2d}: training loss {train_loss:.4f}, accuracy {train_accuracy:.2%}; validation loss "
              f"{val_loss:.4f}, accuracy {val_accuracy:.2%}; hidden_lr {lr:.4f}; {seconds:.0f} s", flush=True)
    return training.best_weights


def train_epoch(training, epoch):
    """Train for one pass in random order; an incomplete last batch is dropped.

    Returns the last learning rate of hidden convolutions, and mean loss and accuracy over the steps. Raises Diverged.
    """
    model, recipe, (images, targets) = training.model, training.recipe, training.train_set
    device, size, steps = images.device, recipe.batch_size, len(images) // recipe.batch_size
    order = torch.randperm(len(images), generator=training.generator).to(device)
    augmentation = [x.to(device) for x in sample_augmentation(len(images), recipe, epoch, training.generator)]
    losses, correct, rates = torch.zeros(steps, device=device), torch.zeros(steps, device=device), []
    model.train()
    for step in tqdm(range(steps), desc=f"epoch {epoch:2d}/{recipe.epochs}", leave=False, disable=None):
        batch = slice(step * size, (step + 1) * size)
        index = order[batch]
        with autocast(device):
            inputs = images.index_select(0, index)  # images[index], but three times as fast
            inputs = augment(inputs, *(values[batch] for values in augmentation), recipe.cutout)
            logits = model(normalize(inputs))
        loss = F.cross_entropy(logits.float(), targets[index])
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        training.ema.update_parameters(model)
        losses[step], correct[step] = loss.detach(), (logits.argmax(1) == targets[index]).float().mean()
        rates += training.scheduler.get_last_lr()[:1]
        training.scheduler.step()
    if not losses.isfinite().all():  # only now: in the loop, this would synchronize with the GPU
        step = losses.isfinite().tolist().index(False)
        raise Diverged(f"epoch {epoch}, step {step + 1} of {steps}: the loss is {losses[step].item()} "
                       f"at hidden learning rate {rates[step]:.3g}: try a lower --hidden-lr or --other-lr")
    return rates[-1], losses.mean().item(), correct.mean().item()


# --- Evaluation ---


@torch.no_grad()
def evaluate(model, images, targets):
    """Evaluate uint8 images. Return mean cross-entropy, accuracy in [0, 1] and logits, float32 (N, 10) on the CPU."""
    model.eval()
    with autocast(images.device):
        logits = torch.cat([model(normalize(batch)) for batch in images.split(500)]).float()
    accuracy = (logits.argmax(1) == targets).sum().item() / len(targets)
    return F.cross_entropy(logits, targets).item(), accuracy, logits.cpu()


def evaluate_test_set(model, device):
    """Return the test metrics of the chosen weights, and the predictions to save. A run calls it once."""
    images, targets = cifar10.load("test")
    loss, accuracy, logits = evaluate(model, images.to(device), targets.to(device))
    predicted = logits.argmax(1)
    by_class = {name: (predicted[targets == label] == label).double().mean().item()
                for label, name in enumerate(CLASSES)}
    shown = confident_mistakes(logits, predicted, targets)
    metrics = {"test_loss": loss, "test_accuracy": accuracy, "per_class_accuracy": by_class}
    return metrics, {"logits": logits.half(), "predicted": predicted, "targets": targets, "shown": shown,
                     "images": images[shown]}


def confident_mistakes(logits, predicted, targets):
    """Return for each true class the index of the most confident wrong prediction, int64 (10,) or fewer."""
    confidence = logits.softmax(1)[torch.arange(len(targets)), predicted]
    confidence[predicted == targets] = -1
    by_class = [torch.where(targets == label, confidence, -1) for label in range(len(CLASSES))]
    return torch.tensor([mistakes.argmax() for mistakes in by_class if mistakes.max() > 0], dtype=torch.int64)


# --- Run ---


def main(recipe, argv=None):
    """Run a recipe with flags; exit with 2 for wrong flags, 1 for a failed run, 130 for Ctrl-C, 143 for SIGTERM."""
    if runs.is_loading:  # a script that lacks `if __name__ == "__main__":` is being imported
        return
    with cli.exit_on_error(f"{recipe.variant}.py"):
        run(*cli.parse_args(recipe, argv))


def run(recipe, options):
    """Train by a recipe, choose the epoch by validation, test once, and save the run. Raises RunError."""
    with files.run_folder(options.output_dir / options.run) as staging:
        train_set, val_set = load_splits(recipe, options)
        torch.manual_seed(options.seed)
        model = build_model(recipe)
        metrics = runs.new_metrics(options, precision(options.device), model, len(train_set[0]), staging)
        print("{run}: {parameters:,} parameters, {train_images:,} images, {device}".format(**metrics), flush=True)

        model.to(options.device, memory_format=torch.channels_last)
        training = Training(model, recipe, train_set, options.seed)
        checkpoint = files.Checkpoint(staging.with_name(f"{staging.name}.pt"), metrics)
        if options.resume and (state := checkpoint.load()):
            training.load_state_dict(state)
            print(f"resuming after epoch {len(training.history)} of {recipe.epochs}", flush=True)
        tensors, diverged, history = {}, None, training.history
        try:
            model.load_state_dict(train(training, val_set, checkpoint.save))
        except Diverged as error:
            diverged = error
            metrics |= {"diverged": True, "epochs": len(history) + 1, "history": history}
        else:
            start, seconds = time.perf_counter(), sum(row["seconds"] for row in history)
            tensors["model"] = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
            for part, data in ("train", train_set), ("val", val_set):
                metrics[f"{part}_loss"], metrics[f"{part}_accuracy"], _ = evaluate(model, *data)
            if options.test:
                test_metrics, tensors["predictions"] = evaluate_test_set(model, options.device)
                metrics |= test_metrics
            metrics |= {
                "epochs": len(history), "best_epoch": min(history, key=lambda row: row["val_loss"])["epoch"],
                "stopped_early": len(history) < recipe.epochs,
                "seconds": round(seconds + time.perf_counter() - start, 1), "history": history}
        if not diverged or options.run != recipe.variant:  # if bn.py diverges, the earlier results/bn stays
            runs.save(metrics, tensors, staging, options)
        checkpoint.path.unlink(missing_ok=True)  # last, so that a run killed before can resume
        if diverged:
            raise diverged


# --- Loading: saved networks ---


def load_model(folder):
    """Return the network saved in a run's folder, such as "results/bn", in evaluation mode. Raises RunError."""
    folder = Path(folder) if Path(folder).exists() else files.ROOT / folder
    return runs.load_weights(build_model(runs.recipe_of(runs.read(folder))), folder).eval()
