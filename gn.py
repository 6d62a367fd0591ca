"""Group normalization: a mean and a variance per image and group of channels.

The C channels of activations x (N, C, H, W) are split into G groups of adjacent channels, so x is viewed as
(N, G, C/G, H, W). Mean and variance are computed over the axes (C/G, H, W): N*G means and N*G variances. Then every
channel gets a learned weight and bias: 2*C parameters, as in batch normalization.

It removes the scale and the offset of each group in each image: multiplying all activations of a group in one image by
the same positive factor does not change the output. Differences between the channels and positions within a group
remain, divided by the standard deviation.

G = 1 is layer normalization (ln.py), G = C (`--groups channels`) is instance normalization. Training and evaluation do
the same: no image affects another, no running averages are needed, and a batch may be a single image. The noise of
batch normalization, which can regularize, is missing, too. The assignment's course notes combine group normalization
with dropout. Here, it is channel dropout: in training, each channel of an image's activations is set to zero with some
probability, and the others are scaled up, so the expected value stays the same. More dropout: results/studies.md.

Wu and He 2018, "Group Normalization". Tompson et al. 2015, "Efficient Object Localization Using Convolutional
Networks": dropout of whole channels; Srivastava et al. 2014, "Dropout": of single activations.
"""

import torch
from torch import nn

from common import Recipe, main


def by_hand(x, groups):
    """Return x (N, C, H, W), normalized as nn.GroupNorm does before its weight and bias."""
    grouped = x.unflatten(1, (groups, -1))  # (N, G, C/G, H, W)
    mean = grouped.mean((2, 3, 4), keepdim=True)  # (N, G, 1, 1, 1)
    variance = grouped.var((2, 3, 4), correction=0, keepdim=True)  # (N, G, 1, 1, 1)
    return ((grouped - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)  # (N, C, H, W)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, in contiguous (NCHW) memory format: its channels_last kernel is slower with several groups."""

    def forward(self, x):
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels, groups):
    return GroupNorm(groups, channels)


RECIPE = Recipe(__file__, norm=group_norm, groups=4, dropout=0.05, dropout_after="C10")

if __name__ == "__main__":
    main(RECIPE)
