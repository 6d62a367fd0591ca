"""Group normalization, as published when these tests were written."""

import torch
from torch import nn

from common import Recipe, main


class GroupNorm(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels, groups):
    return GroupNorm(groups, channels)


WIDTHS = (16, 16, 16, 16, 32, 32, 32, 32, 32, 32)
RECIPE = Recipe(__file__, widths=WIDTHS, norm=group_norm, groups=4, dropout=0.05, dropout_after="C10")

if __name__ == "__main__":
    main(RECIPE)
