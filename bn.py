"""Batch normalization: a mean and a variance per channel, over the batch and all positions.

For activations x of shape (N, C, H, W), mean and variance are computed over the axes (N, H, W): C means and C
variances, each from N*H*W numbers. Then every channel gets a learned weight and bias: 2*C parameters.

In training, it removes the scale and the offset of each channel, so a filter scaled by ten gives the same output.
Differences between images and between positions within a channel remain, divided by the standard deviation.

In training, the output of an image depends on the other images in its batch. That is a source of noise, which can
regularize. In evaluation, the batch may be a single image, so running averages of mean and variance, collected in
training, replace those of the batch: the layer is then a fixed affine map per channel, and images no longer affect each
other.

Ioffe and Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift".
"""

from torch import nn

from common import Recipe, main


def by_hand(x):
    """Return x (N, C, H, W), normalized as nn.BatchNorm2d does in training before its weight and bias."""
    mean = x.mean((0, 2, 3), keepdim=True)  # (1, C, 1, 1)
    variance = x.var((0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1)
    return (x - mean) / (variance + 1e-5).sqrt()


def batch_norm(channels):
    return nn.BatchNorm2d(channels)


RECIPE = Recipe(__file__, norm=batch_norm)

if __name__ == "__main__":
    main(RECIPE)
