"""Group normalization: mean and variance over a group of channels and all positions, for each image on its own.

The C channels of activations x (N, C, H, W) are split into G groups of neighbours: x is seen as (N, G, C/G, H, W),
and statistics run over the axes (C/G, H, W): N*G means and variances. Then every channel gets a learned scale and
shift: 2*C parameters, as in batch normalization.

G = 1 is layer normalization (ln.py), G = C (`--groups channels`) is instance normalization.
Training and evaluation do the same: no image affects another, nothing is averaged over steps, and the batch may be
as small as one image. The noise of batch normalization is missing too, so the assignment adds dropout: in training,
not in evaluation, each image loses a share of its channels, and the rest is scaled up to make up for it. How little
that changes here is in results/README.md.

What ln.py tells of means that filters don't lose, and of rates, holds here too: hence `zero_mean` and lower rates.

Wu and He 2018, "Group Normalization". Tompson et al. 2015, "Efficient Object Localization Using Convolutional
Networks": dropout of whole channels; Srivastava et al. 2014, "Dropout": of single activations.
"""

import torch
from torch import nn

from common import Recipe, main


class GroupNorm(nn.GroupNorm):
    """As PyTorch's, whose kernels are several times slower on channels_last than on contiguous activations."""

    def forward(self, x):
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels, groups):
    return GroupNorm(groups, channels)


RECIPE = Recipe(__file__, norm=group_norm, groups=4, dropout=0.05, dropout_after="C10",
                max_lr=0.03, aux_lr=0.3, zero_mean=True)

if __name__ == "__main__":
    main(RECIPE)
