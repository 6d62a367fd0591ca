"""Batch normalization: mean and variance of each channel over the images of the batch and all positions.

For activations x of shape (N, C, H, W), statistics run over the axes (N, H, W): one mean and one variance a
channel, C of each, from N*H*W numbers. Then every channel gets a learned scale and shift: 2*C parameters.

In training an image's output depends on which other images are in its batch: a source of noise, which
regularizes. In evaluation there may be no batch, so running averages of mean and variance, gathered in training,
take the place of the batch's: the layer is then a fixed scale and shift, and images no longer affect each other.

Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift".
"""

from torch import nn

from common import Recipe, main


def batch_norm(channels):
    return nn.BatchNorm2d(channels)


RECIPE = Recipe(__file__, norm=batch_norm)

if __name__ == "__main__":
    main(RECIPE)
