"""Group normalization: a mean and a variance per image and group of channels.

The C channels of activations x (N, C, H, W) are split into G groups of neighbours: x is viewed as (N, G, C/G, H, W),
and statistics run over the axes (C/G, H, W) of each image on its own: N*G means and variances. Then every channel gets
a learned weight and bias: 2*C parameters, as in batch normalization.

G = 1 is layer normalization (ln.py), G = C (`--groups channels`) is instance normalization. Training and evaluation do
the same: no image affects another, no running averages are needed, and a batch may be a single image. The noise of
batch normalization is missing, too, so the assignment adds dropout: in training, not in evaluation, some channels of
each image are set to zero, and the others are scaled up in return. results/README.md shows how little that changes
here. ln.py's notes on centered filters and learning rates apply here too.

Wu and He 2018, "Group Normalization". Tompson et al. 2015, "Efficient Object Localization Using Convolutional
Networks": dropout of whole channels; Srivastava et al. 2014, "Dropout": of single activations.
"""

import torch
from torch import nn

from common import Recipe, main


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, computed on contiguous memory: its channels_last kernel is slower with several groups."""

    def forward(self, x):
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels, groups):
    return GroupNorm(groups, channels)


RECIPE = Recipe(__file__, norm=group_norm, groups=4, dropout=0.05, dropout_after="C10",
                max_lr=0.03, aux_lr=0.3, center_filters=True)

if __name__ == "__main__":
    main(RECIPE)
