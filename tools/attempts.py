"""What was tried to make a step faster, and dropped? Each is a function that changes a model of common.py, so that the
benchmark can tell what it is worth. Where the time goes they can't change: a bfloat16 element costs a CPU more in the
conversion to float32 and back than in memory traffic, so what saves passes over memory alone saves little.
"""

import torch
from torch import nn

EPS = 1e-5


def add_in_place(model):
    """Add a layer's input to its output where that lies. ReLU's gradient would need the output as it was."""
    def forward(x):
        for name, layer in model.named_children():
            x = layer(x).add_(x) if name in model.skip_connections else layer(x)
        return x.flatten(1)

    model.forward = forward


def compile_between(model):
    """Norm, activation and addition by torch.compile, in one pass each way. Needs a C++ compiler, and half a minute."""
    torch._dynamo.config.cache_size_limit = 64  # of one function: one for each size, and for training and evaluation
    class Between(nn.Module):
        def __init__(self, layer, skip):
            super().__init__()
            self.layers, self.skip = nn.Sequential(*list(layer.children())[1:]), skip

        def forward(self, x, y):
            return x + self.layers(y) if self.skip else self.layers(y)

    between = {name: torch.compile(Between(layer, name in model.skip_connections), dynamic=False)
               for name, layer in model.named_children() if isinstance(layer, nn.Sequential)}

    def forward(x):
        for name, layer in model.named_children():
            x = between[name](x, layer.conv(x)) if name in between else layer(x)
        return x.flatten(1)

    model.forward = forward


def maxima_in_evaluation(model):
    """In evaluation, pools without the places of the maxima, which only gradients need."""
    class Pool(nn.MaxPool2d):
        def forward(self, x):
            if self.training:
                return super().forward(x)
            x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
            return torch.maximum(x[..., ::2], x[..., 1::2])

    model.P1, model.P2 = Pool(2), Pool(2)


def own_norms(model):
    """Norms as Normalization computes them, instead of PyTorch's."""
    for layer in model.children():
        if hasattr(layer, "norm"):
            layer.norm = Normalized(layer.norm)


class Normalized(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.groups = norm.weight, norm.bias, getattr(norm, "num_groups", None)

    def forward(self, x):
        return Normalization.apply(x, self.weight, self.bias, self.pool)

    def pool(self, means):
        """The mean over the set that is normalized together, of means of each image and channel (N, C): (1 or N, C)."""
        if self.groups is None:
            return means.mean(0, keepdim=True)
        of_groups = means.view(len(means), self.groups, -1)
        return of_groups.mean(2, keepdim=True).expand_as(of_groups).reshape(means.shape)


class Normalization(torch.autograd.Function):
    """Batch, group or layer norm of channels_last activations (N, C, H, W) in few passes, without change of layout.

    Means of each image and channel, pooled, give a scale and a shift. Coarser than PyTorch's, with float32 sums."""

    @staticmethod
    def forward(ctx, x, weight, bias, pool):
        mean, square = pool(x.mean((2, 3)).float()), pool((x * x).mean((2, 3)).float())
        scale = (square - mean**2 + EPS).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.pool = pool
        return scaled(x, scale * weight, bias - mean * scale * weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight, mean, scale = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        total = grad.mean((2, 3)).float()
        along = ((grad * x).mean((2, 3)).float() - mean * total) * scale  # mean of gradient times normalized
        even, tilt = ctx.pool(total * weight) * scale, ctx.pool(along * weight) * scale**2
        of_input = scaled(x, -tilt, mean * tilt - even, scaled(grad, scale * weight))
        positions = x.shape[2] * x.shape[3]
        return of_input, along.sum(0) * positions, total.sum(0) * positions, None


def scaled(x, scale, shift=None, other=None):
    """x (N, C, H, W) * scale + shift + other, scale and shift (1 or N, C); rows of an image as one long vector."""
    def rows(values):  # (N, C, H, W) -> (N, H, W*C)
        return values.permute(0, 2, 3, 1).flatten(2)

    def repeated(values):  # (1 or N, C) -> (1 or N, 1, W*C)
        return values.to(x.dtype).repeat(1, x.shape[3])[:, None]

    result = rows(x) * repeated(scale) if shift is None else torch.addcmul(repeated(shift), rows(x), repeated(scale))
    if other is not None:
        result += rows(other)
    return result.view(len(x), x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)
