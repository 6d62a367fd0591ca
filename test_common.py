"""Proofs of common.py and of the scripts, in the order of common.py, on synthetic data. No network, no data set."""

import contextlib
import copy
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bn
import common
import gn
import ln
from support import machine, runs, storage
from tests.world import (
    PER_BATCH,
    SCRIPTS,
    child,
    interrupt_after,
    make_images,
    metrics_of,
    put,
    run,
    what_is_left,
)

# --- Recipe ---


@pytest.mark.parametrize("variant, flags, words", [
    ("bn", "--unknown 1", "unrecognized"),
    ("bn", "--groups 4", "unrecognized"),
    ("ln", "--groups 4", "unrecognized"),
    ("bn", "--epochs 0", "epochs"),
    ("bn", "--epochs -3", "epochs"),
    ("bn", "--epochs 21", "20"),
    ("bn", "--epochs many", "epochs"),
    ("bn", "--batch-size 0", "batch_size"),
    ("bn", "--batch-size 271", "270"),
    ("bn", "--limit 0", "limit"),
    ("bn", "--limit -5", "limit"),
    ("bn", "--limit 271", "270"),
    ("gn", "--dropout 1", "dropout"),
    ("gn", "--dropout -0.1", "dropout"),
    ("gn", "--dropout nan", "dropout"),
    ("gn", "--dropout-after P1", "dropout_after"),
    ("gn", "--groups 3", "C1"),
    ("gn", "--groups 0", "groups"),
    ("gn", "--groups all", "groups"),
    ("gn", "--norm batch_norm", "norm"),
    ("bn", "--connections multiply", "connections"),
    ("bn", "--connections concatenate", "parameters"),
    ("bn", "--widths 16,16", "widths"),
    ("bn", "--widths 12,16,16,24,24,24,24,40,32,32", "widths"),
    ("bn", "--widths 16,16,16,16,40,40,40,40,40,40", "parameters"),
    ("bn", "--activation Tanh", "activation"),
    ("bn", "--max-lr 0", "max_lr"),
    ("bn", "--max-lr inf", "max_lr"),
    ("bn", "--warmup 2", "warmup"),
    ("bn", "--decay-power 0", "decay_power"),
    ("bn", "--momentum 1", "momentum"),
    ("bn", "--weight-decay -1", "weight_decay"),
    ("bn", "--crop 40", "crop"),
    ("bn", "--final-crop -1", "final_crop"),
    ("bn", "--cutout 33", "cutout"),
    ("bn", "--ema 1", "ema"),
    ("bn", "--patience 0", "patience"),
    ("bn", "--seed -1", "seed"),
    ("bn", "--device nonsense", "nonsense"),
    pytest.param("bn", "--device cuda", "cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has one")),
])
def test_wrong_arguments_end_with_status_2_and_leave_nothing(world, capsys, variant, flags, words):
    assert run(SCRIPTS[variant], *flags.split()) == 2
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not list(world.results.glob("**/metrics.json"))


def test_every_field_is_a_flag_whose_default_is_the_scripts_own_value(capsys):
    for script in SCRIPTS.values():
        assert run(script, "--help") == 0
        text = " ".join(capsys.readouterr().out.split())
        for name, value in script.values().items():
            shown = re.search(rf"--{name.replace('_', '-')}[ ,]", text)
            assert bool(shown) != (value is None), name
        assert f"(default: {script.dropout})" in text and f"(default: {script.norm.__name__})" in text


def test_flags_reach_the_recipe():
    flags = ("--dropout 0.25 --batch-size 64 --groups channels --max-lr 0.1 --no-flip --patience 20 "
             "--seed 3 --limit 500 --no-test")
    recipe, options = common.parse_args(gn.RECIPE, flags.split())
    expected = replace(gn.RECIPE, dropout=0.25, batch_size=64, groups="channels", max_lr=0.1, flip=False, patience=20)
    assert recipe == expected
    assert (options.seed, options.limit, options.test) == (3, 500, False)
    assert common.parse_args(bn.RECIPE, ["--norm", "none"])[0] == replace(bn.RECIPE, norm=None)


# --- Data ---


def test_splits_are_disjoint_stratified_and_the_last_of_each_class():
    targets = torch.randint(10, (50_000,), generator=torch.Generator().manual_seed(0)).sort().values.roll(777)
    train, val = common.split_indices(targets)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(50_000))
    for label in range(10):
        of_class = torch.where(targets == label)[0]
        assert torch.equal(val[targets[val] == label], of_class[-500:])
    assert torch.equal(val, common.split_indices(targets)[1])


def test_augmentation_draws_are_independent_in_range_and_repeatable():
    recipe = replace(bn.RECIPE, crop=1, cutout=30)
    draws = [common.draw_augmentation(50_000, recipe, 1, torch.Generator().manual_seed(2)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    together = torch.stack([draw.long() for draw in draws[0]]).unique(dim=1, return_counts=True)
    assert together[0].shape[1] == 3 * 3 * 2 * (3 + 1) * 3  # all that is in range, and each as often as it should
    assert together[0].amax(1).tolist() == [1, 1, 1, 32, 2] and together[0].amin(1).tolist() == [-1, -1, 0, 0, 0]
    for blanked, expected in ((True, 25_000 / 162), (False, 25_000 / 54)):
        counts = together[1][(together[0][3] < 32) == blanked]
        assert (counts / expected).min() > 0.6 and (counts / expected).max() < 1.4


def test_augmentation_off_changes_nothing():
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    off = replace(bn.RECIPE, crop=0, flip=False, cutout=0)
    draws = common.draw_augmentation(8, off, 1, torch.Generator())
    assert torch.equal(common.augment(images, *draws, 0), images)


def test_shifts_go_evenly_from_those_of_the_first_epoch_to_those_of_the_last():
    recipe = replace(bn.RECIPE, crop=4, final_crop=0, epochs=9)
    assert [common.crop_of(recipe, epoch) for epoch in range(1, 10)] == [4, 4, 3, 2, 2, 2, 1, 0, 0]
    assert common.crop_of(replace(recipe, epochs=1), 1) == 4
    down, right, *_ = common.draw_augmentation(100, recipe, 9, torch.Generator())
    assert not down.any() and not right.any()


# --- Model ---


@pytest.mark.parametrize("variant", SCRIPTS)
def test_the_layers_run_in_the_assignments_order(variant):
    model, ran = common.build_model(SCRIPTS[variant]).eval(), []
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda layer, inputs, output, name=name: ran.append((name, inputs[0], output)))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert [name for name, _, _ in ran] == "C1 C2 c3 P1 C4 C5 C6 c7 P2 C8 C9 C10 GAP c11".split()
    sizes = [output.shape[-1] for _, _, output in ran]
    assert sizes == [32] * 3 + [16] * 5 + [8] * 4 + [1] * 2
    for name, inputs, output in ran:
        if name.startswith("P"):
            assert torch.equal(output, F.max_pool2d(inputs, 2))
        elif name == "GAP":
            torch.testing.assert_close(output, inputs.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("variant", SCRIPTS)
def test_C_sees_3x3_pixels_and_c_sees_one(variant):
    model = common.build_model(SCRIPTS[variant])
    convolutions = {name: [layer for layer in child.modules() if isinstance(layer, nn.Conv2d)]
                    for name, child in model.named_children()}
    for name, found in convolutions.items():
        assert len(found) == (name[0] in "Cc")
        for layer in found:
            x = torch.zeros(1, layer.in_channels, 9, 9, requires_grad=True)
            layer(x)[0, :, 4, 4].sum().backward()
            rows, columns = torch.where(x.grad.abs().sum((0, 1)) > 0)
            reach = 1 if name.startswith("C") else 0
            assert set(rows.tolist()) == set(columns.tolist()) == set(range(4 - reach, 5 + reach))
            assert layer.groups == 1


@pytest.mark.parametrize("variant", SCRIPTS)
def test_budgets_and_norms(variant):
    script = SCRIPTS[variant]
    model = common.build_model(script)
    assert sum(p.numel() for p in model.parameters()) < 50_000
    assert script.epochs <= 20
    kind = nn.BatchNorm2d if variant == "bn" else nn.GroupNorm
    norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm2d, nn.GroupNorm))]
    assert len(norms) == 10 and all(isinstance(layer, kind) for layer in norms)
    if variant == "gn":
        assert script.dropout >= 0.05 and any(isinstance(layer, nn.Dropout2d) for layer in model.modules())
    if variant == "ln":
        assert all(layer.num_groups == 1 for layer in norms)


def test_too_many_parameters_are_refused_with_their_number():
    with pytest.raises(common.RecipeError, match="68,394 parameters"):
        common.build_model(replace(bn.RECIPE, connections="add", widths=(32,) * 10))


@pytest.mark.parametrize("groups", [1, 2, 4, 8, "channels"])
def test_the_family_of_group_norms_can_be_built(groups):
    common.build_model(replace(gn.RECIPE, groups=groups))


def test_without_norm_the_convolutions_have_a_bias():
    model = common.build_model(replace(ln.RECIPE, norm=None))
    assert model.C1.conv.bias is not None and not hasattr(model.C1, "norm")
    assert common.build_model(ln.RECIPE).C1.conv.bias is None


def test_skip_connections_concatenate_a_layers_input_and_its_output_or_add_them():
    recipe = replace(bn.RECIPE, connections="concatenate", widths=(16, 16, 32, 16, 16, 16, 32, 16, 16, 16))
    model, x = common.build_model(recipe).eval(), torch.randn(2, 3, 32, 32)
    assert [layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)] == [
        3, 16, 32, 32, 48, 64, 80, 32, 48, 64, 80]
    y = x
    for name, layer in model.named_children():
        y = torch.cat([y, layer(y)], 1) if name in ("C2", "C4", "C5", "C6", "C8", "C9", "C10") else layer(y)
    torch.testing.assert_close(model(x), y.flatten(1))
    widths = (16, 16, 16, 16, 32, 32, 32, 32, 32, 32)
    added, nothing = (common.build_model(replace(bn.RECIPE, connections=how, widths=widths)).eval()
                      for how in ("add", "none"))
    nothing.load_state_dict(added.state_dict())
    y = x
    for name, layer in added.named_children():
        y = y + layer(y) if name in ("C2", "c3", "C4", "C6", "c7", "C8", "C9", "C10") else layer(y)
    torch.testing.assert_close(added(x), y.flatten(1))
    torch.testing.assert_close(nothing(x), nn.Sequential(*nothing.children())(x).flatten(1))
    assert not torch.allclose(added(x), nothing(x))


def test_batch_norm_depends_on_the_batch_in_training_only():
    torch.manual_seed(0)
    model, x, y = common.build_model(bn.RECIPE), torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    alone, together = model(x)[:2], model(torch.cat([x[:2], y]))[:2]
    assert not torch.allclose(alone, together, atol=1e-3)
    model.eval()
    torch.testing.assert_close(model(x)[:2], model(torch.cat([x[:2], y]))[:2])
    assert not torch.allclose(model(x)[:2], alone, atol=1e-3)


@pytest.mark.parametrize("variant", ["gn", "ln"])
def test_group_and_layer_norm_treat_each_image_alone_in_training_and_evaluation(variant):
    torch.manual_seed(0)
    model = common.build_model(replace(SCRIPTS[variant], dropout=0.0))
    x, y = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    outputs = [model.train(mode)(batch)[:2] for mode in (True, False) for batch in (x, torch.cat([x[:2], y]))]
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_layer_norm_is_torchs_over_channels_and_positions():
    layer, x = ln.RECIPE.norm(24), torch.randn(5, 24, 8, 8)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    scale, shift = (p.view(24, 1, 1).expand(24, 8, 8) for p in (layer.weight, layer.bias))
    torch.testing.assert_close(layer(x), F.layer_norm(x, (24, 8, 8), scale, shift))


def test_our_group_norm_is_torchs_in_another_layout():
    x = torch.randn(3, 24, 8, 8).to(memory_format=torch.channels_last)
    layer = gn.group_norm(24, 4)
    nn.init.normal_(layer.weight)
    torch.testing.assert_close(layer(x), F.group_norm(x, 4, layer.weight, layer.bias))
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_dropout_works_in_training_only_and_where_the_recipe_says():
    model = common.build_model(replace(gn.RECIPE, dropout=0.5, dropout_after="C4"))
    assert [name for name, layer in model.named_modules() if isinstance(layer, nn.Dropout2d)] == ["C4.dropout"]
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


# --- Training ---


@pytest.mark.parametrize("variant", SCRIPTS)
def test_bfloat16_changes_results_a_little_and_weights_stay_float32(world, monkeypatch, variant):
    logits, recipe = {}, replace(SCRIPTS[variant], dropout=0.0, max_lr=0.01, batch_size=16)
    images, targets = common.load_data("train")
    for precision in ("float32", "bfloat16"):
        monkeypatch.setattr(machine, "precision", lambda device, precision=precision: precision)
        torch.manual_seed(0)
        training = common.Training(common.build_model(recipe), recipe, (images[:64], targets[:64]), seed=0)
        common.train_epoch(training, 1)
        assert all(p.dtype == torch.float32 for p in training.model.parameters())
        logits[precision] = common.evaluate(training.model, images, targets)[2]
        assert logits[precision].dtype == torch.float32
    assert not torch.equal(*logits.values())
    assert F.cosine_similarity(*(values.flatten() for values in logits.values()), dim=0) > 0.99


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("warmup", [0, 0.2, 1])
@pytest.mark.parametrize("decay_power", [1, 2])
def test_the_schedule_peaks_once_and_is_never_zero(steps, warmup, decay_power):
    recipe = replace(bn.RECIPE, warmup=warmup, decay_power=decay_power)
    rates = [common.one_cycle(step, steps, recipe) for step in range(steps)]
    peak = rates.index(max(rates))
    assert rates[peak] == 1 and min(rates) > 0
    assert peak == max(1, round(warmup * steps)) - 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("zero_mean", [False, True])
def test_muon_turns_filters_by_the_rate_and_leaves_the_rest_to_sgd(zero_mean):
    def steps(name):
        torch.manual_seed(0)
        model = common.build_model(bn.RECIPE)
        recipe = replace(bn.RECIPE, optimizer=name, max_lr=0.1, warmup=0.5, weight_decay=0.0, zero_mean=zero_mean)
        optimizer, _ = common.build_optimizer(model, recipe, 4)
        before = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
        return before, model

    (before, by_muon), (_, by_sgd) = steps("Muon"), steps("SGD")
    for (name, old), turned, plain in zip(
            before.named_parameters(), by_muon.parameters(), by_sgd.parameters(), strict=True):
        if name.endswith("conv.weight"):
            assert not torch.equal(turned, plain)
            torch.testing.assert_close(turned.norm(), old.norm())
            if zero_mean:
                torch.testing.assert_close(turned.mean((1, 2, 3)), torch.zeros(len(turned)), atol=1e-6, rtol=0)
                old = old - old.mean((1, 2, 3), keepdim=True)
            turn = (turned / turned.norm() - old / old.norm()).norm()
            assert 0.03 < turn < 0.06  # half the peak rate, in the first of two steps up
        else:
            assert torch.equal(turned, plain) and not torch.equal(turned, old)


@pytest.mark.parametrize("variant", SCRIPTS)
def test_same_seed_same_weights(world, variant):
    weights = []
    for seed in (3, 3, 4):
        flags = "--epochs 2 --batch-size 32 --limit 64 --no-test --seed".split()
        assert run(SCRIPTS[variant], *flags, str(seed)) == 0
        folder = world.results / f"{variant}-epochs=2-batch_size=32-limit=64-seed={seed}-no-test"
        weights.append(torch.load(folder / "model.pt", weights_only=True))
    first, again, other = weights
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["C1.conv.weight"], other["C1.conv.weight"])


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_model_overfits_64_images(variant):
    images, targets = (part.flatten(0, 1)[:64] for part in make_images())
    recipe = replace(SCRIPTS[variant], dropout=0.0, crop=0, flip=False, cutout=0, epochs=20, batch_size=8,
                     aux_lr=0.1, patience=20)
    torch.manual_seed(0)
    model = common.build_model(recipe)
    training = common.Training(model, recipe, (images, targets), seed=0)
    model.load_state_dict(common.train(training, (images, targets)))
    assert common.evaluate(model, images, targets)[1] > 0.95


def scripted_losses(monkeypatch, losses):
    losses, evaluate = iter(losses), common.evaluate
    monkeypatch.setattr(common, "evaluate", lambda *args: (next(losses), *evaluate(*args)[1:]))


def test_early_stopping_waits_for_patience_and_keeps_the_best_epoch(monkeypatch):
    scripted_losses(monkeypatch, [3.0, 1.0, 2.0, 2.0, 2.0, 0.5])
    recipe, states = replace(bn.RECIPE, patience=3, batch_size=32), []
    images, targets = (part.flatten(0, 1)[:32] for part in make_images())
    torch.manual_seed(0)
    training = common.Training(common.build_model(recipe), recipe, (images, targets), seed=0)
    train_epoch = common.train_epoch

    def recording(training, epoch):
        result = train_epoch(training, epoch)
        states.append(training.average.module.C1.conv.weight.detach().clone())
        is_first = len(states) == 1
        assert torch.equal(states[-1], training.model.C1.conv.weight) == is_first  # an epoch is a single step here
        return result

    monkeypatch.setattr(common, "train_epoch", recording)
    best = common.train(training, (images, targets))
    assert [row["epoch"] for row in training.history] == [1, 2, 3, 4, 5]
    assert torch.equal(best["C1.conv.weight"], states[1])


def test_early_stopping_stays_away_while_the_loss_falls(monkeypatch):
    scripted_losses(monkeypatch, [3.0, 3.1, 2.9, 3.0, 2.8, 2.9, 2.7, 2.8])
    recipe = replace(bn.RECIPE, patience=2, batch_size=32, epochs=8)
    images, targets = (part.flatten(0, 1)[:32] for part in make_images())
    training = common.Training(common.build_model(recipe), recipe, (images, targets), seed=0)
    common.train(training, (images, targets))
    assert len(training.history) == 8


def test_a_run_that_stopped_learning_is_stopped(world):
    assert run(bn.RECIPE, "--max-lr", "1e-30", "--aux-lr", "1e-30", "--momentum", "0.1", "--patience", "2") == 0
    metrics = metrics_of(world, "bn-max_lr=1e-30-aux_lr=1e-30-momentum=0.1-patience=2")
    assert metrics["stopped_early"] and metrics["epochs"] == metrics["best_epoch"] + 2 < 20


def test_a_training_begun_on_cuda_goes_on_on_the_cpu():
    images, targets = (part.flatten(0, 1)[:64] for part in make_images())
    recipe, states = replace(gn.RECIPE, epochs=2, batch_size=32), []
    first, second = (common.Training(common.build_model(recipe), recipe, (images, targets), seed=0) for _ in range(2))
    common.train(first, (images, targets), lambda state: states.append(copy.deepcopy(state)))
    # the state of CUDA's generator is of another length
    second.load_state_dict(states[0] | {"device": "cuda", "dropout": torch.zeros(16, dtype=torch.uint8)})
    common.train(second, (images, targets))
    assert [row["epoch"] for row in second.history] == [1, 2]


# --- Run: what it leaves ---


@pytest.mark.parametrize("flags, name", [
    ("", "gn"),
    ("--dropout 0", "gn-dropout=0"),
    ("--dropout 0.05 --groups 4", "gn"),
    ("--seed 1", "gn-seed=1"),
    ("--seed 2 --limit 500 --groups 8 --epochs 3", "gn-groups=8-epochs=3-limit=500-seed=2"),
    ("--norm none --groups channels", "gn-norm=none-groups=channels"),
    ("--no-test", "gn-no-test"),
    ("--no-flip --no-test", "gn-flip=False-no-test"),
    ("--widths 16,16,32,16,16,16,24,16,16,16", "gn-widths=16+16+32+16+16+16+24+16+16+16"),
    ("--device cpu", "gn"),
])
def test_run_names(flags, name):
    recipe, options = common.parse_args(gn.RECIPE, flags.split())
    assert common.run_name(recipe, gn.RECIPE, options.limit, options.seed, options.test) == name


def test_the_test_set_is_evaluated_once_after_training_by_the_chosen_weights(world, monkeypatch):
    events, evaluate, load_data, train = [], common.evaluate, common.load_data, common.train
    test_images = world.images[5]

    def spy(model, images, targets):
        is_test = len(images) == len(test_images) and torch.equal(images, test_images)
        events.append("test" if is_test else "other")
        return evaluate(model, images, targets)

    monkeypatch.setattr(common, "evaluate", spy)
    monkeypatch.setattr(common, "load_data", lambda split: events.append(f"load {split}") or load_data(split))
    monkeypatch.setattr(common, "train", lambda *args: (train(*args), events.append("trained"))[0])
    assert run(bn.RECIPE, "--epochs", "2") == 0
    assert events.count("test") == events.count("load test") == 1
    assert events.index("load test") > events.index("trained") and events[-1] == "test"
    events.clear()
    assert run(bn.RECIPE, "--epochs", "2", "--no-test") == 0
    assert "test" not in events and "load test" not in events
    metrics = metrics_of(world, "bn-epochs=2-no-test")
    assert metrics["test_accuracy"] is None and metrics["test_loss"] is None and metrics["val_accuracy"] > 0
    assert not (world.results / "bn-epochs=2-no-test" / "predictions.pt").exists()


def test_a_diverged_run_says_where_and_leaves_null_results(world, capsys):
    assert run(bn.RECIPE, "--aux-lr", "1e38", "--epochs", "3", "--batch-size", "32") == 1
    message = capsys.readouterr().err
    assert "epoch" in message and "learning rate" in message and "Traceback" not in message
    metrics = metrics_of(world, "bn-epochs=3-batch_size=32-aux_lr=1e+38")
    assert metrics["diverged"] is True and metrics["epochs"] >= 1
    assert metrics["test_accuracy"] is metrics["val_loss"] is metrics["best_epoch"] is None


def test_a_script_that_diverges_leaves_what_is_published(world, monkeypatch):
    put(world.results / "bn", {"metrics.json": b"{}"})
    assert run(replace(bn.RECIPE, aux_lr=1e38, batch_size=32)) == 1
    assert [path.name for path in (world.results / "bn").iterdir()] == ["metrics.json"]
    assert not list(world.results.glob(".new/*/*"))


@pytest.mark.parametrize("variant", SCRIPTS)
def test_metrics_agree_with_a_recomputation_from_the_saved_weights(trained, variant):
    folder, metrics = trained.results / variant, metrics_of(trained, variant)
    model = common.build_model(SCRIPTS[variant])
    weights = torch.load(folder / "model.pt", weights_only=True)
    assert all(value.device.type == "cpu" and value.is_contiguous() for value in weights.values())
    model.load_state_dict(weights)
    train, val = common.split_indices(common.load_data("train")[1])
    all_images, all_targets = common.load_data("train")
    sets = {"train": (all_images[train], all_targets[train]), "val": (all_images[val], all_targets[val]),
            "test": common.load_data("test")}
    for part, (images, targets) in sets.items():
        with machine.mixed_precision(images.device):
            logits = model.eval()(common.normalize(images)).float()
        one_image, accuracy = 1.01 / len(images), (logits.argmax(1) == targets).double().mean().item()
        assert metrics[f"{part}_accuracy"] == pytest.approx(accuracy, abs=one_image)  # rounding may tip one
        assert metrics[f"{part}_loss"] == pytest.approx(F.cross_entropy(logits, targets).item(), abs=1e-3)
    right = logits.argmax(1) == targets
    for label, name in enumerate(common.CLASSES):
        share = right[targets == label].double().mean().item()
        assert metrics["per_class_accuracy"][name] == pytest.approx(share, abs=1.01 / 6)
    shares = metrics["per_class_accuracy"]
    assert shares[metrics["most_accurate_class"]] == max(shares.values())
    assert shares[metrics["least_accurate_class"]] == min(shares.values())
    assert sum(shares.values()) / 10 == pytest.approx(metrics["test_accuracy"])
    assert metrics["train_loss"] < 2.2  # it learned something: chance is ln 10 = 2.303
    assert list(metrics) == list(runs.METRICS)
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert metrics["multiply_adds"] == pytest.approx(9.22e6, rel=0.01)
    assert metrics["train_images"] == 270 and metrics["run"] == metrics["variant"] == variant


@pytest.mark.parametrize("variant", SCRIPTS)
def test_history_and_metrics_tell_the_same_story(trained, variant):
    metrics, history = runs.read(trained.results / variant)
    assert [row["epoch"] for row in history] == list(range(1, metrics["epochs"] + 1))
    best = min(history, key=lambda row: row["val_loss"])
    assert best["epoch"] == metrics["best_epoch"]
    assert metrics["val_loss"] == pytest.approx(best["val_loss"], abs=1e-5)
    assert metrics["val_accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-5)
    assert (trained.results / variant / "history.csv").read_text().startswith(
        "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds\n")


@pytest.mark.parametrize("variant", SCRIPTS)
def test_a_run_leaves_signed_files_and_pictures(trained, variant):
    folder = trained.results / variant
    names = {"metrics.json", "history.csv", "model.pt", "predictions.pt", "summary.txt", "SHA256SUMS",
             "curves.png", "confusion.png", "misclassified.png"}
    assert {path.name for path in folder.iterdir()} == names
    sums = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    for name in names:
        if name.endswith(".png"):
            data = (folder / name).read_bytes()
            assert data.startswith(b"\x89PNG") and len(data) > 10_000
    assert "c11" in (folder / "summary.txt").read_text()


@pytest.mark.parametrize("variant", SCRIPTS)
def test_saved_predictions_are_those_of_the_metrics(trained, variant):
    metrics = metrics_of(trained, variant)
    saved = torch.load(trained.results / variant / "predictions.pt", weights_only=True)
    assert saved["logits"].dtype == torch.float16 and saved["logits"].shape == (PER_BATCH, 10)
    assert torch.equal(saved["targets"], trained.targets[5])
    assert (saved["predicted"] == saved["targets"]).double().mean().item() == pytest.approx(metrics["test_accuracy"])
    assert torch.equal(saved["images"], trained.images[5][saved["shown"]])
    assert (saved["predicted"][saved["shown"]] != saved["targets"][saved["shown"]]).all()


def test_the_interface_works_in_a_fresh_process(trained):
    code = """if True:
        import torch
        model = common.build_model(bn.RECIPE)
        model.load_state_dict(torch.load(common.RESULTS / "bn" / "model.pt", weights_only=True))
        images, targets = common.load_data("test")
        logits = model.eval()(common.normalize(images))
        print((logits.argmax(1) == targets).double().mean().item())"""
    out, err = child(trained, code).communicate(timeout=60)
    assert float(out) == pytest.approx(metrics_of(trained, "bn")["test_accuracy"], abs=0.02), err


def test_importing_common_changes_nothing():
    code = """if True:
        import os, sys, torch
        state = lambda: (dict(os.environ), torch.get_num_threads(), torch.initial_seed(), torch.get_default_dtype())
        before = state()
        import common, bn
        assert state() == before
        assert not {"torchvision", "matplotlib"} & set(sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code], cwd=common.ROOT).returncode == 0


def test_results_can_be_saved_elsewhere(world):
    elsewhere = world.folder / "studies" / "some"
    assert run(bn.RECIPE, "--epochs", "1", "--no-test", "--numbers-only", "--results", str(elsewhere)) == 0
    assert run(bn.RECIPE, "--no-test", "--numbers-only", "--results", str(elsewhere), "--aux-lr", "1e30") == 1
    folders = sorted(path for path in elsewhere.iterdir() if not path.name.startswith("."))
    assert [folder.name for folder in folders] == ["bn-aux_lr=1e+30-no-test", "bn-epochs=1-no-test"]
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {"metrics.json", "history.csv", "SHA256SUMS"}
    assert not world.results.exists()


# --- Run: replaced, interrupted, resumed ---


def test_what_a_run_replaces_is_kept_and_compared(world, capsys):
    assert run(bn.RECIPE, "--epochs", "1") == 0
    first = metrics_of(world, "bn-epochs=1")
    assert run(bn.RECIPE, "--epochs", "1") == 0
    assert metrics_of(world, ".previous/bn-epochs=1") == first
    assert f"{first['test_accuracy']:.2%} (kept" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_between_the_renames_is_repaired_by_the_next_command(world, monkeypatch, kill_at):
    assert run(bn.RECIPE, "--epochs", "1", "--no-test") == 0
    first, replace_file, renamed = metrics_of(world, "bn-epochs=1-no-test"), os.replace, []

    def killed(source, target):
        if Path(source).is_dir():
            renamed.append(source)
            if len(renamed) == kill_at:
                raise KeyboardInterrupt
        replace_file(source, target)

    monkeypatch.setattr(os, "replace", killed)
    assert run(bn.RECIPE, "--epochs", "1", "--no-test") == 130
    monkeypatch.setattr(os, "replace", replace_file)
    assert [path.name for path in runs.complete(world.results)] == ["bn-epochs=1-no-test"]
    storage.verify(world.results / "bn-epochs=1-no-test")
    assert metrics_of(world, ".previous/bn-epochs=1-no-test") == first


@pytest.mark.parametrize("obstacle", ["results", "results/bn", "results/.new"])
def test_results_that_cannot_be_written_are_found_out_before_training(world, capsys, monkeypatch, obstacle):
    monkeypatch.setattr(common, "train", lambda *args: pytest.fail("trained"))
    (world.folder / obstacle).parent.mkdir(exist_ok=True)
    (world.folder / obstacle).write_text("a file in the folder's place")
    assert run(bn.RECIPE) == 1
    message = capsys.readouterr().err
    assert "cannot write results" in message and "Traceback" not in message
    assert (world.folder / obstacle).read_text() == "a file in the folder's place"


def test_ctrl_c_ends_with_130_and_says_what_is_kept(world, capsys, monkeypatch):
    assert run(bn.RECIPE, "--epochs", "1") == 0
    first = metrics_of(world, "bn-epochs=1")
    monkeypatch.setattr(common, "train_epoch", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(bn.RECIPE, "--epochs", "1") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert metrics_of(world, "bn-epochs=1") == first and not list(world.results.glob(".new/*/*"))


def test_a_full_disk_ends_with_1_and_loses_nothing(world, capsys):
    train = "common.main(bn.RECIPE, ['--device', 'cpu', '--epochs', '3'])"
    process = child(world, """
import resource
train_epoch, done = common.train_epoch, []

def fill_the_disk(*args):
    done.append(True)
    if len(done) == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return train_epoch(*args)

common.train_epoch = fill_the_disk
""" + train)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "cannot write" in errors and "Traceback" not in errors
    assert run(bn.RECIPE, "--epochs", "3") == 0
    assert "continuing after epoch 2 of 3" in capsys.readouterr().out
    interrupted = what_is_left(world, "bn-epochs=3")
    assert run(bn.RECIPE, "--epochs", "3") == 0
    assert what_is_left(world, "bn-epochs=3") == interrupted


FLAGS = "--epochs 4 --batch-size 64 --patience 3".split()

NAME = "{}-epochs=4-batch_size=64-patience=3"


@pytest.mark.parametrize("variant", SCRIPTS)
def test_an_interrupted_training_goes_on_to_the_same_bits(world, capsys, monkeypatch, variant):
    script, name = SCRIPTS[variant], NAME.format(variant)
    assert run(script, *FLAGS) == 0
    whole = what_is_left(world, name)
    for epochs in (1, 2):
        with monkeypatch.context() as patch:
            interrupt_after(epochs, patch)
            assert run(script, *FLAGS) == 130
    shutil.rmtree(world.results / name)
    capsys.readouterr()
    assert run(script, *FLAGS) == 0
    assert "continuing after epoch 3 of 4" in capsys.readouterr().out
    assert what_is_left(world, name) == whole
    assert not list(world.results.glob(".new/*/*"))


def test_fresh_starts_over(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(bn.RECIPE, *FLAGS) == 130
    assert run(bn.RECIPE, *FLAGS, "--fresh") == 0
    assert "continuing" not in capsys.readouterr().out
    assert len(runs.read(world.results / NAME.format("bn"))[1]) == 4


def test_a_checkpoint_of_another_recipe_is_set_aside_and_named(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        assert run(replace(bn.RECIPE, epochs=4)) == 130
    assert run(replace(bn.RECIPE, epochs=3)) == 0
    out = capsys.readouterr().out
    (aside,) = world.results.glob(".new/*aside*")
    assert "is of another training: recipe was" in out and str(aside) in out
    assert metrics_of(world, "bn")["epochs"] == 3


def test_going_on_elsewhere_is_said(world, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(bn.RECIPE, *FLAGS) == 130
    monkeypatch.setattr(machine, "cpu_model", lambda: "another CPU")
    assert run(bn.RECIPE, *FLAGS) == 0
    out = capsys.readouterr().out
    assert "the last bits may differ" in out and "is another CPU" in out and "continuing after epoch 1" in out


def test_a_run_is_held_by_one_process(world, capsys):
    (world.results / ".new").mkdir(parents=True)
    with storage.lock(world.results / ".new" / "bn-epochs=1.lock", "the run"):
        assert run(bn.RECIPE, "--epochs", "1") == 1
    assert f"process {os.getpid()} is at work on the run bn-epochs=1" in capsys.readouterr().err
    assert run(bn.RECIPE, "--epochs", "1") == 0


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_obeyed_also_while_torch_imports_what_would_swallow_it(world, monkeypatch, capsys, number, status):
    build_optimizer = common.build_optimizer

    def swallowing(*args):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        return build_optimizer(*args)

    monkeypatch.setattr(common, "build_optimizer", swallowing)
    assert run(bn.RECIPE, "--epochs", "1") == status
    assert "the same command goes on" in capsys.readouterr().err
    assert not list(world.results.glob(".new/*/*"))


def test_sigterm_ends_with_143_and_one_line(world, monkeypatch, capsys):
    monkeypatch.setattr(common, "train_epoch", lambda *args: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    assert run(bn.RECIPE, "--epochs", "1") == 143
    assert capsys.readouterr().err.count("\n") == 1
