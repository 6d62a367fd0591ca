"""What can be done with layers without training: can one stand in a network, how far does each see, what if batch norm
took its statistics from other images, or were part of the convolutions? For common.py, the table of layers, and whoever
writes a norm."""

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from support import machine

CPU = torch.device("cpu")


def fault_of(make, widths):
    """What is wrong with the layers that `make` makes for these numbers of channels, in words, or None.

    They must map activations (N, C, H, W) to the same, to finite numbers with finite gradients: tried on four random
    images in training and one in evaluation, in the precision that trainings have. Random states stay as they are."""
    with torch.random.fork_rng(devices=[]):
        for channels in sorted(set(widths)):
            try:
                layer = make(channels)
            except Exception as error:  # of whatever kind: it is somebody's work in progress
                return f"raises {in_a_line(error)} when it is made for {channels} channels"
            if not isinstance(layer, nn.Module):
                return f"makes no nn.Module, but {layer!r:.80}"
            for mode, count in ("training", 4), ("evaluation", 1):
                x = torch.randn(count, channels, 8, 8, requires_grad=True)
                if fault := fault_on(layer.train(mode == "training"), x):
                    return f"{fault} in {mode}, of activations of shape {tuple(x.shape)}"
    return None


def fault_on(layer, x):
    """What is wrong with what a layer makes of x, in words, or None."""
    try:
        with machine.mixed_precision(CPU):
            y = layer(x.to(getattr(torch, machine.precision(CPU)), memory_format=torch.channels_last))
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            return f"makes {tuple(y.shape) if isinstance(y, torch.Tensor) else repr(y)[:80]}"
        y.float().square().sum().backward()
    except Exception as error:
        return f"raises {in_a_line(error)}"
    if not (y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()):
        return "makes numbers or gradients that are not finite"
    return None


def in_a_line(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class Concatenate(torch.autograd.Function):
    """torch.cat([x, y], 1) of activations (N, C, H, W), with gradients that lie in memory as channels_last has them.

    Those of torch.cat are views of a whole, on which all that comes before is slow: with them a step of concatenated
    layers takes 1.3x as long as one of added layers, and with these 1.1x (an AMD EPYC)."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.channels = x.shape[1]
        return torch.cat([x, y], 1)

    @staticmethod
    def backward(ctx, grad):
        parts = grad[:, : ctx.channels], grad[:, ctx.channels :]
        return tuple(part.contiguous(memory_format=torch.channels_last) for part in parts)


def folded(model):
    """A copy of a model in evaluation mode. PyTorch's own batch norm, there a fixed scale and shift, is made part of
    the convolution before it, in all layers that call them `norm` and `conv`; outputs stay the same but for rounding.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference".
    """
    model = copy.deepcopy(model).eval()
    for layer in model.children():
        if type(getattr(layer, "norm", None)) is nn.BatchNorm2d:
            layer.conv, layer.norm = fuse_conv_bn_eval(layer.conv, layer.norm), nn.Identity()
    return model


@torch.no_grad()
def with_statistics_of(model, batches):
    """A copy of a model, in evaluation mode, whose batch norms have the plain mean of the means and variances of these
    batches of inputs; None if it has no batch norm."""
    model = copy.deepcopy(model).eval()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.train().momentum = None  # which stands for a plain mean
    for batch in batches if layers else ():
        with machine.mixed_precision(batch.device):
            model(batch)
    return model.eval() if layers else None


def receptive_fields(layers):
    """For layers as (kernel size, stride), from the first on: the receptive field and the jump of each, in pixels.

    An output depends on a square of the image of that side, as far as it lies within the image; the squares of two
    neighbours are a jump apart. Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning"; Araujo
    et al. 2019, "Computing Receptive Fields of Convolutional Neural Networks"."""
    field, jump, found = 1, 1, []
    for kernel, stride in layers:
        field, jump = field + (kernel - 1) * jump, jump * stride
        found.append((field, jump))
    return found
