"""Batch normalization, as published when these tests were written; the project's own scripts may be edited."""

from torch import nn

from common import Recipe, main


def batch_norm(channels):
    return nn.BatchNorm2d(channels)


WIDTHS = (16, 16, 16, 16, 32, 32, 32, 32, 32, 32)
RECIPE = Recipe(__file__, widths=WIDTHS, norm=batch_norm)

if __name__ == "__main__":
    main(RECIPE)
