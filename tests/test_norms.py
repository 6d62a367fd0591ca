"""Proofs that any norm can stand in the network, and of what can be told of it: fields, faults, saved networks."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bn
import common
from support.layers import Concatenate, folded
from tests.world import interrupt_after, metrics_of, put, run, what_is_left
from tools import report


def test_receptive_fields_and_jumps_are_the_support_of_the_gradient():
    torch.manual_seed(0)
    model = common.build_model(replace(bn.RECIPE, norm=None, activation="GELU")).eval()
    seen = report.seen_by_layers()
    assert list(seen) == [name for name, _ in model.named_children()]

    def support(side, last_layer, place):
        """The first and the last row of an image of that side on which an output depends."""
        x = torch.randn(1, 3, side, side, requires_grad=True)
        y = x
        for name, layer in model.named_children():
            y = y + layer(y) if name in model.skip_connections else layer(y)
            if name == last_layer:
                break
        y[0, :, place, place].sum().backward()
        rows = torch.where(x.grad.abs().sum((0, 1, 3)) > 0)[0]
        return rows.min().item(), rows.max().item()

    for name, (field, jump) in seen.items():
        if jump:  # in an image so large that the middle doesn't see its borders
            first, last = support(128, name, 64 // jump)
            assert last - first + 1 == field, name
            assert support(128, name, 64 // jump + 1) == (first + jump, last + jump), name
        else:
            assert field > 32 and support(32, name, 0) == (0, 31)


class WeightStandardized(nn.Module):
    """A convolution of each channel by standardized weights, and a norm."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, groups=channels), nn.GroupNorm(1, channels)

    def forward(self, x):
        weight = self.conv.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.norm(F.conv2d(x, weight, self.conv.bias, padding=1, groups=len(weight)))


class RunningScale(nn.Module):
    """Divides by a running mean square of its own, a buffer, and counts its steps in another."""

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
        return x * (self.square + 1e-5).rsqrt() * self.scale


@pytest.mark.parametrize("norm", [WeightStandardized, RunningScale, None], ids=lambda norm: norm and norm.__name__)
def test_any_norm_trains_is_resumed_to_the_same_bits_and_loaded_again(world, monkeypatch, norm):
    recipe = replace(
        bn.RECIPE, norm=norm, widths=(16,) * 10, max_lr=0.01, aux_lr=0.1, epochs=3, batch_size=32)
    monkeypatch.setattr(bn, "RECIPE", recipe)
    assert run(recipe) == 0
    whole = what_is_left(world, "bn")
    shutil.rmtree(world.results / "bn")
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        assert run(recipe) == 130
    assert run(recipe) == 0
    assert what_is_left(world, "bn") == whole
    if norm is RunningScale:  # averaged as the weights are
        assert all(value != 1 for value in torch.tensor(whole[1]["C1.norm.square"]).flatten())
    model = common.load_model(world.results / "bn")
    images, targets = common.load_data("test")
    assert common.evaluate(model, images, targets)[1] == metrics_of(world, "bn")["test_accuracy"]
    assert {name: value.tolist() for name, value in model.state_dict().items()} == whole[1]


class Wrong(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def raising(channels):
    raise RuntimeError("no idea\nat all")


@pytest.mark.parametrize("norm, words", [
    (raising, "the norm raising raises RuntimeError: no idea when it is made for 16 channels"),
    (lambda channels: None, "makes no nn.Module, but None"),
    (lambda channels: nn.LayerNorm((channels, 32, 32)), "raises RuntimeError"),
    (lambda channels: nn.Conv2d(channels, 2 * channels, 1), "makes (4, 32, 8, 8) in training, of activations of shape"),
    (lambda channels: nn.AvgPool2d(2), "makes (4, 16, 4, 4) in training"),
    (lambda channels: Wrong(lambda x: None), "makes None in training"),
    (lambda channels: Wrong(lambda x: x / 0), "not finite in training"),
    (lambda channels: Wrong(lambda x: (x - x).sqrt() + x), "gradients that are not finite"),
    (lambda channels: Wrong(lambda x: x.detach()), "in training"),
    (lambda channels: nn.Conv2d(channels, channels, 7, padding=3), "are those of the norm <lambda>"),
], ids=range(10))
def test_a_norm_that_cannot_stand_in_the_network_is_told_so_before_the_first_epoch(world, capsys, norm, words):
    put(world.results / "bn", {"metrics.json": b"of an older run"})
    recipe = replace(bn.RECIPE, norm=norm)
    before = torch.get_rng_state()
    assert run(recipe) == 2
    assert torch.equal(before, torch.get_rng_state()) or "are those" in words
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message and "norm" in message.splitlines()[-1]
    assert (world.results / "bn" / "metrics.json").read_bytes() == b"of an older run"


@pytest.mark.parametrize("name, words", [("my-norm", "as in my_norm.py"), ("test", "`make test`")])
def test_a_script_of_no_useful_name_ends_with_status_2(world, capsys, name, words):
    assert run(replace(bn.RECIPE, script=f"{name}.py")) == 2
    assert words in capsys.readouterr().err and not world.results.exists()


def test_a_saved_network_classifies_pictures(trained):
    model = common.load_model(str(trained.results / "bn"))
    images, targets = common.load_data("test")
    logits = common.evaluate(common.load_model(trained.results / "bn"), images, targets)[2]
    answers = common.classify(model, images)
    assert not model.training and len(answers) == len(images)
    for answer, image_logits in zip(answers, logits, strict=True):
        assert list(answer.values()) == sorted(answer.values(), reverse=True) and set(answer) == set(common.CLASSES)
        assert sum(answer.values()) == pytest.approx(1, abs=1e-5)
        likeliest = common.CLASSES[image_logits.argmax()]
        assert answer[likeliest] == pytest.approx(image_logits.softmax(0).max().item(), abs=0.05)
    right = sum(next(iter(answer)) == common.CLASSES[target] for answer, target in zip(answers, targets, strict=True))
    assert right / len(images) == pytest.approx(metrics_of(trained, "bn")["test_accuracy"], abs=0.02)


def test_a_folder_without_weights_is_named(world):
    assert run(bn.RECIPE, "--epochs", "1", "--no-test", "--numbers-only") == 0
    with pytest.raises(common.RunError, match="bn-epochs=1-no-test has no weights"):
        common.load_model(world.results / "bn-epochs=1-no-test")
    with pytest.raises(common.RunError, match="nowhere has no weights"):
        common.load_model(world.results / "nowhere")


def test_concatenation_has_the_gradients_of_torchs_in_one_piece():
    torch.manual_seed(0)
    x, y = (torch.randn(2, channels, 4, 4).contiguous(memory_format=torch.channels_last) for channels in (3, 5))
    gradient, results = torch.randn(2, 8, 4, 4), []
    for concatenate in Concatenate.apply, lambda *parts: torch.cat(parts, 1):
        parts = [part.clone().requires_grad_() for part in (x, y)]
        whole = concatenate(*parts)
        whole.backward(gradient)
        results.append([whole, *(part.grad for part in parts)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    grads = torch.autograd.grad(Concatenate.apply(*parts).square().sum(), parts)
    assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in grads)


class Doubled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(("norm", "left"), [(nn.BatchNorm2d, 0), (Doubled, 10), (lambda c: nn.GroupNorm(4, c), 10)])
def test_only_pytorchs_batch_norm_is_folded_and_the_outputs_stay(norm, left):
    torch.manual_seed(0)
    model, images = common.build_model(replace(bn.RECIPE, norm=norm)), torch.randn(20, 3, 32, 32)
    for _ in range(3):
        model.train()(images)  # running statistics
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = folded(model)
    assert sum(hasattr(layer, "norm") and not isinstance(layer.norm, nn.Identity) for layer in again.children()) == left
    torch.testing.assert_close(again(images), model.eval()(images), atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
