"""Layer normalization, as published when these tests were written."""

from torch import nn

from common import Recipe, main


def layer_norm(channels):
    return nn.GroupNorm(1, channels)


WIDTHS = (16, 16, 16, 16, 32, 32, 32, 32, 32, 32)
RECIPE = Recipe(__file__, widths=WIDTHS, norm=layer_norm)

if __name__ == "__main__":
    main(RECIPE)
