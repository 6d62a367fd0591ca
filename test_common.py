"""Tests of common.py and of the scripts, in the order of common.py, on synthetic data. No network, no data set."""

import copy
import functools
import json
import os
import re
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import bn
import common
import gn
import ln
from support import cifar10, cli, files, plots, runs
from tests.world import SCRIPTS, interrupt_after, make_images, metrics_of, put, rewrite, run, what_is_left


@pytest.fixture
def unplotted(world, monkeypatch):
    """Return a world in which runs save no figures, which take longer than these runs."""
    monkeypatch.setattr(plots, "plot_run", lambda *args: None)
    return world


def make_training(recipe, images=64):
    """Return a Training on the first synthetic images, and these with their labels."""
    data = tuple(part.flatten(0, 1)[:images] for part in make_images())
    torch.manual_seed(0)
    return common.Training(common.build_model(recipe), recipe, data, seed=0), data


# --- Recipe ---


@pytest.mark.parametrize("command, words", [
    ("bn --groups 4", "unrecognized"),
    ("bn --epochs 21", "epochs must be in [1, 20], got 21"),
    ("bn --batch-size 271", "at most 270, got 271"),
    ("bn --train-images 127", "at least the batch size (128), got 127"),
    ("gn --dropout nan", "dropout must be in [0, 1), got nan"),
    ("gn --dropout-after P1", "out of C1 C2 c3 C4 C5 C6 c7 C8 C9 C10, got 'P1'"),
    ("gn --groups 3", "the network of gn.py cannot be used: ValueError: num_channels"),
    ("gn --groups all", "groups must be a positive integer or 'channels', got 'all'"),
    ("bn --widths 16,16", "widths must be 10 positive integers, got (16, 16)"),
    ("bn --widths 16,x", "--widths: invalid integers value: '16,x'"),
    ("bn --widths 2000,16,16,16,16,16,16,16,16,16", "fewer than 50,000 parameters, got"),
    ("bn --hidden-lr inf", "hidden_lr must be in (0, inf), got inf"),
    ("bn --seed -1", "--seed must be 0 or more"),
    ("bn --device meta", "no device 'meta' here"),
    ("my-norm", "as in my_norm.py"),
])
def test_wrong_arguments_end_with_status_2_and_leave_nothing(world, capsys, command, words):
    variant, *flags = command.split()
    put(world.folder, {f"{variant}.py": b"RECIPE = 1\n"} if variant not in SCRIPTS else {})
    assert run(SCRIPTS.get(variant, replace(bn.RECIPE, script=f"{variant}.py")), *flags) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert words in message and message.startswith(f"{variant}.py: ")
    assert not [path for path in world.results.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("values, words", [
    ({"dropout": "0.1"}, "dropout must be of type float, got '0.1'"),
    ({"epochs": 2.0}, "epochs must be of type int, got 2.0"),
    ({"epochs": "5"}, "epochs must be of type int, got '5'"),
    ({"patience": None}, "patience must be of type int, got None"),
    ({"widths": 16}, "widths must be of type tuple, got 16"),
    ({"groups": True}, "groups must be a positive integer"),
    ({"optimizer": "RMSprop"}, "optimizer must be one of Muon, SGD, Adam, AdamW, got 'RMSprop'"),
])
def test_a_recipe_refuses_wrong_values_but_takes_ints_for_floats_and_a_list_for_widths(values, words):
    with pytest.raises(common.RecipeError, match=words):
        common.Recipe("mine.py", nn.BatchNorm2d, **values)
    lazy = common.Recipe("mine.py", nn.BatchNorm2d, dropout=0, hidden_lr=1, widths=[8] * 10)
    assert lazy == common.Recipe("mine.py", nn.BatchNorm2d, dropout=0.0, hidden_lr=1.0, widths=(8,) * 10)
    assert [type(value) for value in (lazy.dropout, lazy.hidden_lr, lazy.widths)] == [float, float, tuple]


@pytest.mark.parametrize("variant", SCRIPTS)
def test_every_field_is_a_flag_that_reaches_the_recipe_and_whose_default_can_be_typed(capsys, monkeypatch, variant):
    monkeypatch.setenv("COLUMNS", "1000")
    script, typed = SCRIPTS[variant], []
    assert run(script, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in cli.options_of(script):
        value, flag = getattr(script, field.name), "--" + field.name.replace("_", "-")
        shown = re.search(rf"{flag}[ ,].*?\((?:in .*?, )?default: (.*?)\)", text)
        assert bool(shown) == (value is not None)
        if isinstance(value, bool):
            typed.append(flag if shown[1] == "True" else f"--no-{flag[2:]}")
        elif shown:
            typed += [flag, shown[1]]
    plain = common.Recipe(script.script, script.norm, script.groups and 1, 0.5, widths=(8,) * 10, epochs=1)
    assert cli.parse_args(plain, typed)[0] == script and cli.parse_args(script, ["--no-norm"])[0].norm is None


@pytest.mark.parametrize("flags, name", [
    ("", "gn"),
    ("--dropout 0.05 --groups 4 --device cpu", "gn"),
    ("--seed 2 --train-images 500 --groups 8 --dropout 0", "gn-groups=8-dropout=0-train_images=500-seed=2"),
    ("--no-norm --groups channels", "gn-no-norm-groups=channels"),
    ("--no-flip --no-test", "gn-flip=False-no-test"),
    ("--widths 16,16,32,16,16,16,24,16,16,16", "gn-widths=16+16+32+16+16+16+24+16+16+16"),
    ("--other-lr 1e38", "gn-other_lr=1e+38"),
])
def test_run_names(flags, name):
    assert cli.parse_args(gn.RECIPE, flags.split())[1].run == name


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_another_optimizer_brings_its_own_learning_rates_and_explicit_ones_win(name):
    flags = ["--optimizer", name]
    recipe, typed = (cli.parse_args(gn.RECIPE, flags + more)[0] for more in ([], ["--hidden-lr", "0.7"]))
    lr, *rest = common.OPTIMIZERS[name]
    assert [recipe.hidden_lr, recipe.other_lr, recipe.weight_decay] == [lr, *rest] and lr != gn.RECIPE.hidden_lr
    assert [typed.hidden_lr, typed.other_lr, typed.weight_decay] == [0.7, *rest]
    assert common.Recipe("mine.py", None, optimizer=name, other_lr=1).replace(epochs=3).other_lr == 1.0
    training, data = make_training(replace(recipe, batch_size=8, epochs=3), images=128)
    common.train(training, data)
    losses = [row["train_loss"] for row in training.history]
    decays = [group["weight_decay"] for group in training.optimizer.param_groups]
    assert losses[2] < losses[0] and decays == [rest[1], 0]
    assert isinstance(training.optimizer, getattr(torch.optim, name))


# --- Data ---


def test_splits_are_disjoint_and_validation_has_the_last_tenth_of_each_class():
    targets = torch.randint(10, (50_000,), generator=torch.Generator().manual_seed(0)).sort().values.roll(777)
    train, val = common.split_indices(targets)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(50_000))
    for label in range(10):
        of_class = torch.where(targets == label)[0]
        assert torch.equal(val[targets[val] == label], of_class[-(len(of_class) // 10):])


def test_augmentation_parameters_are_independent_in_range_and_repeatable():
    recipe = replace(bn.RECIPE, translate=1, cutout=30)
    samples = [common.sample_augmentation(50_000, recipe, 1, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))
    values, counts = torch.stack([sample.long() for sample in samples[0]]).unique(dim=1, return_counts=True)
    assert len(counts) == 3 * 3 * 2 * (3 + 1) * 3  # all that is in range, and each as often as it should
    assert values.amax(1).tolist() == [1, 1, 1, 32, 2] and values.amin(1).tolist() == [-1, -1, 0, 0, 0]
    for blanked, expected in ((True, 25_000 / 162), (False, 25_000 / 54)):
        of_kind = counts[(values[3] < 32) == blanked]
        assert (of_kind / expected).min() > 0.6 and (of_kind / expected).max() < 1.4


def test_translation_changes_evenly_from_the_first_epoch_to_the_last():
    recipe, largest = replace(bn.RECIPE, translate=4, final_translate=0, epochs=9), []
    for epoch in range(1, 10):
        down, right, *_ = common.sample_augmentation(2000, recipe, epoch, torch.Generator().manual_seed(0))
        largest.append(torch.cat([down, right]).abs().max())
    assert largest == [4, 4, 3, 2, 2, 2, 1, 0, 0]


def test_augmentation_and_normalization_equal_a_slow_reference():
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8)
    recipe = replace(bn.RECIPE, translate=4, cutout=6)
    parameters = common.sample_augmentation(64, recipe, 1, torch.Generator().manual_seed(5))
    result = common.augment(images, *parameters, 6)
    for i, (down, right, flip, top, left) in enumerate(zip(*parameters, strict=True)):
        image = images[i].flip(2) if flip else images[i]
        padded = F.pad(image[None].float(), (4, 4, 4, 4), mode="reflect")[0].to(torch.uint8)
        expected = padded[:, 4 + down: 36 + down, 4 + right: 36 + right].clone()
        expected[:, top: top + 6, left: left + 6] = torch.tensor([125, 122, 113], dtype=torch.uint8).view(3, 1, 1)
        assert torch.equal(result[i], expected)
    off = replace(recipe, translate=0, flip=False, cutout=0)
    assert torch.equal(common.augment(images, *common.sample_augmentation(64, off, 1, torch.Generator()), 0), images)
    mean, std = (torch.tensor(values, dtype=torch.double).view(3, 1, 1)
                 for values in ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]))
    torch.testing.assert_close(common.normalize(images).double(), (images / 255.0 - mean) / std, atol=1e-5, rtol=0)


# --- Model ---


def test_any_positive_widths_build_and_train():
    for widths in (12, 20, 7, 3, 31, 1, 18, 24, 24, 40), (1,) * 10, (40, 30, 20, 30, 20, 20, 20, 20, 20, 9):
        for script in (bn.RECIPE, ln.RECIPE):
            training, data = make_training(replace(script, widths=widths, batch_size=32, epochs=1))
            before = training.model.C5.conv.weight.detach().clone()
            weights = common.train(training, data)
            assert [weights[f"{name}.conv.weight"].shape[0] for name in common.HIDDEN] == list(widths)
            assert not torch.equal(training.model.C5.conv.weight, before)


def test_skip_connections_add_or_concatenate_input_and_output():
    def by_hand(model, names, join):
        y = x
        for name, layer in model.named_children():
            y = join(y, layer(y)) if name in names.split() else layer(y)
        return y.flatten(1)

    widths, x = (16, 16, 32, 16, 16, 16, 32, 16, 16, 16), torch.randn(2, 3, 32, 32)
    model = common.build_model(replace(bn.RECIPE, skip="concat", widths=widths)).eval()
    assert [layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)] == [
        3, 16, 32, 32, 48, 64, 80, 32, 48, 64, 80]
    torch.testing.assert_close(model(x), by_hand(model, "C2 C4 C5 C6 C8 C9 C10", lambda x, y: torch.cat([x, y], 1)))
    added, plain = (common.build_model(replace(bn.RECIPE, skip=skip)).eval() for skip in ("add", "none"))
    plain.load_state_dict(added.state_dict())
    torch.testing.assert_close(added(x), by_hand(added, "C2 c3 C4 C6 c7 C8 C9 C10", lambda x, y: x + y))
    torch.testing.assert_close(plain(x), by_hand(plain, "", None))
    assert not torch.allclose(added(x), plain(x))


@pytest.mark.parametrize("variant", SCRIPTS)
def test_only_batch_norm_lets_images_affect_each_other_and_only_in_training(variant):
    torch.manual_seed(0)
    model = common.build_model(replace(SCRIPTS[variant], dropout=0.0))
    x, y = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    outputs = [[model.train(mode)(batch)[:2] for batch in (x, torch.cat([x[:2], y]))] for mode in (True, False)]
    torch.testing.assert_close(*outputs[1])
    assert torch.allclose(*outputs[0], atol=1e-3) == (variant != "bn")
    assert torch.allclose(outputs[0][0], outputs[1][0], atol=1e-3) == (variant != "bn")


def test_layer_norm_and_group_norm_are_torchs():
    x = torch.randn(5, 24, 8, 8).to(memory_format=torch.channels_last)
    by_layer, by_group = ln.layer_norm(24), gn.group_norm(24, 4)
    for parameter in (*by_layer.parameters(), *by_group.parameters()):
        nn.init.normal_(parameter)
    weight, bias = (p.view(24, 1, 1).expand(24, 8, 8) for p in by_layer.parameters())
    torch.testing.assert_close(by_layer(x), F.layer_norm(x, (24, 8, 8), weight, bias))
    torch.testing.assert_close(by_group(x), F.group_norm(x, 4, *by_group.parameters()))
    assert by_group(x).is_contiguous(memory_format=torch.channels_last)


def test_dropout_works_in_training_only_and_where_the_recipe_says():
    model, x = common.build_model(replace(gn.RECIPE, dropout=0.5, dropout_after="C4 C9")), torch.randn(2, 3, 32, 32)
    assert [name[:3] for name, layer in model.named_modules() if isinstance(layer, nn.Dropout2d)] == ["C4.", "C9."]
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("norm, words", [
    (lambda channels: 1 / 0, "ZeroDivisionError: division by zero"),
    (lambda channels: None, "TypeError: 'NoneType'"),
    (lambda channels: nn.LayerNorm((channels, 32, 32), elementwise_affine=False), "RuntimeError: Given normalized"),
    (lambda channels: nn.AvgPool2d(2), "RuntimeError: The size of tensor"),
    (lambda channels: nn.GroupNorm(1, channels, eps=-9.0), "the gradient of C1.conv.weight is not finite"),
    (lambda channels: nn.Conv2d(channels, channels, 7, padding=3), "of them in the normalization"),
], ids=range(6))
def test_a_norm_that_cannot_be_used_is_rejected_before_training(world, capsys, monkeypatch, norm, words):
    monkeypatch.setattr(common, "train", lambda *args: pytest.fail("trained"))
    put(world.results / "bn", {"metrics.json": b"of an older run"})
    assert run(replace(bn.RECIPE, norm=norm)) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("bn.py: ") and words in message and "<lambda>" not in message
    assert (world.results / "bn" / "metrics.json").read_bytes() == b"of an older run"


def weight_norm(channels):
    conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    return nn.Sequential(nn.utils.parametrizations.weight_norm(conv), nn.GroupNorm(1, channels))


class RunningScale(nn.Module):
    """A division by a running mean square, a buffer; counts its steps in another one, and keeps its output."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("square", torch.ones(channels, 1, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            square = x.detach().float().square().mean((0, 2, 3))[:, None, None]
            self.square = self.square.lerp(square, 0.1)  # another tensor, as many write it
            self.steps += 1
        self.last = x * (self.square + 1e-5).rsqrt() * self.scale  # a tensor that deepcopy refuses
        return self.last


@pytest.mark.parametrize("norm", [
    weight_norm, RunningScale, functools.partial(nn.BatchNorm2d, track_running_stats=False), None], ids=range(4))
def test_any_norm_trains_resumes_to_the_same_bits_and_can_be_loaded(unplotted, monkeypatch, norm):
    recipe = replace(bn.RECIPE, norm=norm, widths=(16,) * 10, hidden_lr=0.01, other_lr=0.1, epochs=2, batch_size=64)
    monkeypatch.setattr(bn, "RECIPE", recipe)
    assert run(recipe) == 0
    uninterrupted = what_is_left(unplotted, "bn")
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(recipe) == 130
    assert run(recipe) == 0
    assert what_is_left(unplotted, "bn") == uninterrupted
    model = common.load_model(unplotted.results / "bn")
    if norm is RunningScale:
        assert (model.C1.norm.square != 1).all() and model.C1.norm.steps in (4, 8)  # averaged, copied
    assert common.evaluate(model, *cifar10.load("test"))[1] == metrics_of(unplotted, "bn")["test_accuracy"]


# --- Optimizer ---


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 0.2, 1])
def test_the_learning_rate_rises_linearly_then_decays_and_is_never_zero(steps, warmup):
    recipe = replace(bn.RECIPE, warmup_fraction=warmup, decay_power=2)
    rates, peak = [common.one_cycle(step, steps, recipe) for step in range(steps)], max(1, round(warmup * steps)) - 1
    assert rates[:peak + 1] == pytest.approx([(step + 1) / (peak + 1) for step in range(peak + 1)])
    assert rates[peak:] == pytest.approx([(1 - after / (steps - peak)) ** 2 for after in range(steps - peak)])


@pytest.mark.parametrize("norm", [bn.batch_norm, None])
def test_muon_turns_filters_by_the_learning_rate_and_leaves_the_rest_to_sgd(norm):
    def step_by(name):
        torch.manual_seed(0)
        recipe = replace(bn.RECIPE, norm=norm, optimizer=name, hidden_lr=0.1, warmup_fraction=0.5)
        model = common.build_model(recipe)
        before = [p.detach().clone() for p in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer, _scheduler = common.build_optimizer(model, recipe, 4)  # which sets the learning rate
        optimizer.step()
        return list(zip(model.named_parameters(), before, strict=True))

    for ((name, turned), old), ((_, plain), _) in zip(step_by("Muon"), step_by("SGD"), strict=True):
        if name.endswith("conv.weight"):
            if norm:
                torch.testing.assert_close(turned.norm(), old.norm())
            else:
                torch.testing.assert_close((turned - old).norm(), 0.05 * old.norm())
            turn = (turned / turned.norm() - old / old.norm()).norm()
            assert 0.03 < turn < 0.06  # half the peak learning rate, in the first of two steps of warm-up
        else:
            assert torch.equal(turned, plain) and not torch.equal(turned, old)


def test_orthogonalization_repeats_muons_step_and_padding_makes_no_difference():
    filters = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((4, 3, 3, 3), (8, 5, 1, 1))]
    matrices = common.as_matrices(filters)
    assert matrices.shape == (2, 8, 27)
    for matrix, weights in zip(common.orthogonalize(matrices), filters, strict=True):
        x = weights.flatten(1) / weights.norm()
        for _ in range(3):
            x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
        padding = (0, 27 - x.shape[1], 0, 8 - len(x))
        torch.testing.assert_close(matrix, F.pad(x, padding), atol=1e-5, rtol=0)
        assert not matrix[F.pad(torch.ones_like(x), padding) == 0].any()


def test_the_moving_average_equals_a_plain_loop_also_after_resuming():
    def make():
        model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(model.parameters()), lambda step: 1.0)
        return model, scheduler, common.build_ema(model, 0.97, scheduler)

    torch.manual_seed(0)
    parts = make()
    expected = parts[0].state_dict()
    for step in range(400):
        if step == 100:  # until step 324 every step has a weight of its own
            saved, parts = copy.deepcopy([part.state_dict() for part in parts]), make()
            for part, state in zip(parts, saved, strict=True):
                part.load_state_dict(state)
        model, scheduler, average = parts
        model(torch.randn(4, 2))  # moves the running statistics
        for parameter in model.parameters():
            parameter.data += torch.randn_like(parameter)
        average.update_parameters(model)
        scheduler.optimizer.step()
        scheduler.step()
        expected = {name: expected[name].lerp(value, max(0.03, 10 / (10 + step))) if value.is_floating_point()
                    else value.clone() for name, value in model.state_dict().items()}
    assert expected["1.num_batches_tracked"] == 400
    assert all(torch.equal(value, expected[name]) for name, value in average.module.state_dict().items())


# --- Training and evaluation ---


class OnlyGPU(TorchDispatchMode):
    """Raise for operations with a tensor elsewhere, while `active`."""

    active = False

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)) if self.active else ():
            if isinstance(value, torch.Tensor) and value.device.type != "cuda":
                raise RuntimeError(f"{operation} has a tensor on the {value.device}")
        return result


def train_on_fake_gpu(recipe):
    """Train four steps with tensors that have a device, CUDA, but no values: whatever needs one raises."""
    def backward(loss):  # the real one needs a driver
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    def steps(iterable, **options):
        mode.active = True
        yield from iterable
        raise EOFError("the loop has ended")

    common.mean_and_std.cache_clear()
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(), OnlyGPU() as mode:
        with torch.device("cuda"):
            network, average = common.Network(recipe), common.Network(recipe)
            images, targets = torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.int64)
        common.mean_and_std(images.device)  # made once per process
        patch.setattr(torch.optim.swa_utils, "deepcopy", lambda model: average)  # which needs values
        training = common.Training(network, recipe, (images, targets), seed=0)
        del training.ema.n_averaged  # a count on the CPU, whose value is read
        training.ema.n_averaged = MagicMock(__gt__=lambda count, zero: True, __iadd__=lambda count, one: count)
        patch.setattr(torch.Tensor, "backward", backward)
        patch.setattr(common, "tqdm", steps)
        try:
            common.train_epoch(training, 1)
        finally:
            mode.active = False
            common.mean_and_std.cache_clear()


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("variant", SCRIPTS)
def test_no_step_waits_for_a_gpu(variant):
    with pytest.raises(EOFError, match="the loop has ended"):
        train_on_fake_gpu(replace(SCRIPTS[variant], dropout=0.1, batch_size=16))


@pytest.mark.parametrize("wait", [
    lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x.sum((1, 2, 3)) > 0], lambda x: x.sum().cpu(),
    lambda x: x[torch.arange(16)], lambda x: x + torch.ones(3, 1, 1).to(x.device)], ids=range(6))
def test_a_step_that_waits_for_a_gpu_is_found(monkeypatch, wait):
    augment = common.augment
    monkeypatch.setattr(common, "augment", lambda images, *args: (wait(images), augment(images, *args))[1])
    with pytest.raises(Exception, match=r"_local_scalar_dense|nonzero|on the cpu"):
        train_on_fake_gpu(replace(bn.RECIPE, batch_size=16))


@pytest.mark.parametrize("variant", SCRIPTS)
def test_bfloat16_changes_results_a_little_and_weights_stay_float32(monkeypatch, variant):
    logits, recipe = [], replace(SCRIPTS[variant], dropout=0.0, hidden_lr=0.01, batch_size=16)
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(common, "precision", lambda device, precision=precision: precision)
        training, data = make_training(recipe)
        common.train_epoch(training, 1)
        assert all(p.dtype == torch.float32 for p in training.model.parameters())
        logits.append(common.evaluate(training.model, *data)[2])
        assert logits[-1].dtype == torch.float32
    assert not torch.equal(*logits)
    assert F.cosine_similarity(*(values.flatten() for values in logits), dim=0) > 0.99


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_network_overfits_64_images(variant):
    training, data = make_training(replace(SCRIPTS[variant], dropout=0.0, translate=0, flip=False, cutout=0,
                                           batch_size=8, other_lr=0.1, epochs=12))
    training.model.load_state_dict(common.train(training, data))
    assert common.evaluate(training.model, *data)[1] > 0.95


def test_training_stops_when_the_loss_no_longer_falls_and_returns_the_best_weights(monkeypatch, capsys):
    losses, evaluate, seen = iter([3.0, 3.1, 2.9, 3.0, 3.0, 1.0, 2.0, 2.0, 2.0, 0.5]), common.evaluate, []
    monkeypatch.setattr(common, "evaluate", lambda *args: (next(losses), *evaluate(*args)[1:]))
    training, data = make_training(replace(bn.RECIPE, patience=3, batch_size=32), images=32)
    best = common.train(training, data, lambda state: seen.append(state["ema"]["module.C1.conv.weight"].clone()))
    assert [row["epoch"] for row in training.history] == list(range(1, 10))
    assert torch.equal(best["C1.conv.weight"], seen[5]) and not torch.equal(seen[5], seen[8])
    assert "no validation loss below that of epoch 6" in capsys.readouterr().out


def test_the_test_set_is_evaluated_once_after_training(world, monkeypatch):
    events, evaluate, load, train = [], common.evaluate, cifar10.load, common.train
    monkeypatch.setattr(common, "evaluate", lambda model, images, targets: (
        events.append("test" if torch.equal(images, world.images[5]) else "other"),
        evaluate(model, images, targets))[1])
    monkeypatch.setattr(cifar10, "load", lambda split: events.append(f"load {split}") or load(split))
    monkeypatch.setattr(common, "train", lambda *args: (train(*args), events.append("trained"))[0])
    assert run(bn.RECIPE, "--epochs", "2", "--metrics-only") == 0
    assert events == ["load train", "other", "other", "trained", "other", "other", "load test", "test"]
    events.clear()
    assert run(bn.RECIPE, "--epochs", "2", "--metrics-only", "--no-test") == 0
    assert events == ["load train", "other", "other", "trained", "other", "other"]


# --- Run ---


@pytest.mark.parametrize("variant", SCRIPTS)
def test_metrics_agree_with_a_recomputation_from_the_saved_weights(trained, variant):
    metrics, model = metrics_of(trained, variant), common.build_model(SCRIPTS[variant])
    weights = runs.load_tensors(trained.results / variant, "model")
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in weights.values())
    model.load_state_dict(weights)
    images, targets = cifar10.load("train")
    train, val = common.split_indices(targets)
    splits = [(images[train], targets[train]), (images[val], targets[val]), cifar10.load("test")]
    for part, (x, labels) in zip(("train", "val", "test"), splits, strict=True):
        with common.autocast(x.device):
            logits = model.eval()(common.normalize(x)).float()
        correct = (logits.argmax(1) == labels).double()
        assert metrics[f"{part}_accuracy"] == pytest.approx(correct.mean().item(), abs=1.01 / len(x))  # one image
        assert metrics[f"{part}_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=2e-3)
    for label, name in enumerate(common.CLASSES):
        assert metrics["per_class_accuracy"][name] == pytest.approx(correct[labels == label].mean().item(), abs=0.17)
    assert sum(metrics["per_class_accuracy"].values()) / 10 == pytest.approx(metrics["test_accuracy"])
    assert 0.5 < metrics["test_accuracy"] < 1  # it learned something, but not all
    assert tuple(metrics) == runs.METRICS and metrics["recipe"] == cli.to_dict(sys.modules[variant].RECIPE)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters()) and metrics["train_images"] == 270
    assert metrics["macs"] == pytest.approx(9.22e6, rel=0.01) and metrics["run"] == metrics["variant"] == variant
    assert metrics["code"] == runs.code_digest(variant) and metrics["checkout"] == runs.checkout_id()


@pytest.mark.parametrize("variant", SCRIPTS)
def test_saved_files_history_and_predictions_agree_with_the_metrics(trained, variant):
    folder = trained.results / variant
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "summary.txt", "model.pt", "predictions.pt",
                                                        "curves.png", "confusion.png", "misclassified.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert "c11" in (folder / "summary.txt").read_text()
    metrics, predictions = runs.read(folder), runs.load_tensors(folder, "predictions")
    history = metrics["history"]
    assert tuple(history) == runs.HISTORY and history["epoch"] == list(range(1, metrics["epochs"] + 1))
    best = history["val_loss"].index(min(history["val_loss"]))
    assert best + 1 == metrics["best_epoch"] and max(history["lr"]) == pytest.approx(0.05)
    assert metrics["val_loss"] == pytest.approx(history["val_loss"][best], abs=1e-5)
    logits, predicted, targets, shown, images = map(predictions.get, "logits predicted targets shown images".split())
    assert logits.dtype == torch.float16 and logits.shape == (60, 10) and torch.equal(targets, trained.targets[5])
    assert (predicted == targets).double().mean().item() == pytest.approx(metrics["test_accuracy"])
    assert torch.equal(images, trained.images[5][shown]) and len(shown) > 1
    wrong = predicted != targets
    assert targets[shown].tolist() == targets[wrong].unique().tolist()  # one per class with mistakes
    for index in shown:
        confidence = logits.float().softmax(1).amax(1)
        assert wrong[index] and confidence[index] >= confidence[wrong & (targets == targets[index])].max() - 1e-3


def test_metrics_only_leaves_one_file_in_the_output_folder_also_of_a_diverged_or_stopped_run(world, capsys):
    folder, name = world.folder / "elsewhere" / "some", "bn-batch_size=32-{}-no-test.json"
    flags = ["--no-test", "--metrics-only", "--batch-size", "32", "--output-dir", str(folder)]
    assert run(bn.RECIPE, *flags, *"--hidden-lr 1e-30 --other-lr 1e-30 --momentum 0.1 --patience 1".split()) == 0
    assert run(bn.RECIPE, *flags, "--other-lr", "1e38") == 1
    message = capsys.readouterr().err
    assert all(words in message for words in ("epoch", "learning rate", "--hidden-lr")) and message.count("\n") == 1
    saved = {path.name: json.loads(path.read_text()) for path in folder.glob("[!.]*")}
    diverged = saved.pop(name.format("other_lr=1e+38"))
    assert diverged["diverged"] is True and diverged["val_loss"] is diverged["best_epoch"] is None
    stopped = saved.pop(name.format("hidden_lr=1e-30-other_lr=1e-30-momentum=0.1-patience=1"))
    assert stopped["stopped_early"] and stopped["epochs"] == stopped["best_epoch"] + 1 < 20
    assert stopped["test_accuracy"] is None and stopped["val_loss"] > 0
    put(world.results / "bn", {"metrics.json": b"{}"})  # what diverges as it is does not replace a published run
    assert run(replace(bn.RECIPE, other_lr=1e38, batch_size=32)) == 1
    assert [path.name for path in world.results.glob("bn/*")] == ["metrics.json"]
    assert run(bn.RECIPE, "--output-dir", str(world.results / "bn")) == 2
    assert "--output-dir must not be the folder of a run, got" in capsys.readouterr().err
    assert not saved and not list(world.results.glob(".unfinished/*.pt"))


def test_the_previous_run_is_kept_and_compared_if_it_can_be_read(unplotted, capsys):
    folder = unplotted.results / "bn-epochs=1"
    for damaged in (b"", b"{}"):
        put(folder, {"metrics.json": damaged})
        assert run(bn.RECIPE, "--epochs", "1") == 0
        assert "previous" not in capsys.readouterr().out.splitlines()[-1]
    first = runs.read(folder)
    assert run(bn.RECIPE, "--epochs", "1") == 0
    assert f"previous run had {first['test_accuracy']:.2%}" in capsys.readouterr().out.splitlines()[-1]
    assert metrics_of(unplotted, ".previous/bn-epochs=1") == first


FLAGS, NAME = "--epochs 3 --batch-size 64".split(), "{}-epochs=3-batch_size=64"


@pytest.mark.parametrize("variant", SCRIPTS)
def test_the_same_seed_gives_the_same_bits_also_when_interrupted(unplotted, capsys, monkeypatch, variant):
    script, name = SCRIPTS[variant], NAME.format(variant)
    assert run(script, *FLAGS) == 0
    uninterrupted = what_is_left(unplotted, name)
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt_after(1, patch)
            assert run(script, *FLAGS) == 130
            assert "interrupted; run the same command again" in capsys.readouterr().err
    assert run(script, *FLAGS) == 0
    assert "resuming after epoch 2 of 3" in capsys.readouterr().out
    assert what_is_left(unplotted, name) == uninterrupted
    assert run(script, *FLAGS, "--seed", "1") == 0
    assert what_is_left(unplotted, f"{name}-seed=1")[1] != uninterrupted[1]
    assert {path.suffix for path in unplotted.results.glob(".unfinished/*")} == {".lock"}


@pytest.mark.parametrize("change, words", [
    ("recipe", "another run (recipe was"), ("eps=1e-4", "another run (the code changed"),
    ("affine=False", "another run (the code changed"), ("flag", "")])
def test_a_checkpoint_that_does_not_fit_is_set_aside(world, capsys, monkeypatch, change, words):
    recipe, flags = replace(bn.RECIPE, epochs=3, batch_size=64), ["--metrics-only"]
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(recipe, *flags) == 130
    if "=" in change:
        rewrite(world.folder / "bn.py", "(channels)\n", f"(channels, {change})\n")
        edited = eval(f"lambda channels: nn.BatchNorm2d(channels, {change})")
        monkeypatch.setattr(bn.batch_norm, "__code__", edited.__code__)
    capsys.readouterr()
    flags += ["--no-resume"] * (change == "flag")
    assert run(replace(recipe, epochs=2) if change == "recipe" else recipe, *flags) == 0
    out, aside = capsys.readouterr().out, list(world.results.glob(".unfinished/*aside*"))
    assert words in out and "resuming" not in out and "epoch  1:" in out
    assert len(aside) == bool(words) and all(str(path) in out for path in aside)


def test_a_reader_of_the_output_that_goes_away_costs_no_epoch(unplotted, capsys, monkeypatch):
    def leave(text, **options):
        if text.startswith("epoch  2"):
            raise BrokenPipeError("Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(common, "print", leave, raising=False)
        assert run(bn.RECIPE, *FLAGS) == 1
    assert run(bn.RECIPE, *FLAGS) == 0 and "resuming after epoch 2 of 3" in capsys.readouterr().out


def test_a_script_is_trained_only_by_running_it_and_under_its_own_name(world, capsys, monkeypatch):
    put(world.folder, {"unguarded.py": (world.folder / "ln.py").read_bytes()})
    rewrite(world.folder / "unguarded.py", 'if __name__ == "__main__":\n    ', "")
    monkeypatch.syspath_prepend(world.folder)
    recipe = runs.load_script("unguarded")
    assert recipe.variant == "unguarded" and not world.results.exists() and capsys.readouterr().out == ""
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__file__="copy.py", RECIPE=recipe))
    assert run(recipe) == 2
    assert "must be __file__, got " in (message := capsys.readouterr().err) and "unguarded.py' in copy.py" in message


def test_files_that_the_system_and_editors_leave_do_no_harm(unplotted, monkeypatch):
    train_epoch, world = common.train_epoch, unplotted

    def leave_files(*args):
        if not (world.folder / ".#bn.py").is_symlink():
            (world.folder / ".#bn.py").symlink_to("me@computer.1234")  # Emacs' lock, which leads nowhere
        return train_epoch(*args)

    monkeypatch.setattr(common, "train_epoch", leave_files)
    for _ in range(2):
        assert run(bn.RECIPE, "--epochs", "1") == 0
        folder = world.results / "bn-epochs=1"
        put(folder, {".DS_Store": b"Bud1"})
        put(folder / ".ipynb_checkpoints", {"metrics-checkpoint.json": b"{}"})
        put(world.results, {".DS_Store": b"Bud1"})
        assert runs.folders() == [folder] and common.load_model(folder).C1.conv.weight.shape == (16, 3, 3, 3)
    assert runs.variants() == list(SCRIPTS)


def test_a_run_is_held_by_one_process(world, capsys):
    put(world.results / ".unfinished" / "bn-epochs=1", {"metrics.json": b"of a run that was killed"})
    with files.lock(world.results / ".unfinished" / "bn-epochs=1.lock", "the run"):
        assert run(bn.RECIPE, "--epochs", "1", "--metrics-only") == 1
    assert f"bn-epochs=1 is already being trained by process {os.getpid()}" in capsys.readouterr().err
    assert run(bn.RECIPE, "--epochs", "1", "--metrics-only") == 0


@pytest.mark.parametrize("obstacle", ["results", "results/bn", "results/.unfinished"])
def test_results_that_cannot_be_written_are_found_before_training(world, capsys, monkeypatch, obstacle):
    monkeypatch.setattr(common, "train", lambda *args: pytest.fail("trained"))
    put((world.folder / obstacle).parent, {Path(obstacle).name: b"a file in the folder's place"})
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert "cannot write results" in message and message.count("\n") == 1
    assert (world.folder / obstacle).read_text() == "a file in the folder's place"


def test_a_full_disk_ends_with_1_and_loses_nothing(unplotted, capsys, monkeypatch):
    train_epoch, (soft, hard), name = common.train_epoch, resource.getrlimit(resource.RLIMIT_FSIZE), NAME.format("bn")
    assert run(bn.RECIPE, *FLAGS) == 0
    uninterrupted = what_is_left(unplotted, name)

    def fill_the_disk(training, epoch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if epoch == 3 else soft, hard))
        return train_epoch(training, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(common, "train_epoch", fill_the_disk)
        status = run(bn.RECIPE, *FLAGS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = capsys.readouterr().err
    assert status == 1 and "cannot write" in message and message.count("\n") == 1
    assert what_is_left(unplotted, name) == uninterrupted
    assert run(bn.RECIPE, *FLAGS) == 0
    assert "resuming after epoch 2 of 3" in capsys.readouterr().out
    assert what_is_left(unplotted, name) == uninterrupted


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_end_a_run_with_one_line(world, monkeypatch, capsys, number, status):
    monkeypatch.setattr(common, "train_epoch", lambda *args: os.kill(os.getpid(), number) or time.sleep(5))
    assert run(bn.RECIPE, "--epochs", "1") == status
    assert capsys.readouterr().err == "bn.py: interrupted; run the same command again to resume\n"
    assert [path.name for path in world.results.glob(".unfinished/*")] == ["bn-epochs=1.lock"]


# --- Loading ---


def test_a_saved_network_is_loaded_for_evaluation(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, saved = common.load_model("results/bn"), metrics_of(trained, "bn")
    assert not model.training and common.evaluate(model, *cifar10.load("test"))[1] == saved["test_accuracy"]


def test_a_network_that_cannot_be_loaded_is_named(copied, monkeypatch):
    (copied.results / "bn" / "model.pt").write_bytes(b"")
    for name in ("bn", "nowhere"):
        with pytest.raises(common.RunError, match=f"cannot read .*{name}.*must be run again"):
            common.load_model(copied.results / name)
    conv_block = common.conv_block

    def biased(*args):
        layers = conv_block(*args)
        layers.conv.bias = nn.Parameter(torch.zeros(len(layers.conv.weight)))
        return layers

    monkeypatch.setattr(common, "conv_block", biased)
    with pytest.raises(common.RunError, match="of another network than"):
        common.load_model(copied.results / "ln")
