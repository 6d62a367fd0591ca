"""Layer normalization: a mean and a variance per image, over all channels and positions.

For activations x of shape (N, C, H, W), mean and variance are computed over the axes (C, H, W): N means and N
variances, each from C*H*W numbers. Then every channel gets a learned weight and bias: 2*C parameters. In PyTorch, it is
nn.GroupNorm(1, C).

It removes the scale and the offset of each image. Differences between channels and positions within an image remain,
divided by the standard deviation. If one channel has a larger mean than another in every image, that difference stays;
batch normalization removes it.

Training and evaluation do the same: no image affects another, and no running averages are needed. Channels do affect
each other: one that varies a lot makes the others vary less.

Why not nn.LayerNorm((C, H, W))? It computes the same statistics, but learns a weight and a bias for every single
element: 2*C*H*W parameters. For 16 channels at 32x32 that is 32,768 in one layer, of the 50,000 that the whole network
may have. With elementwise_affine=False it has no weight and bias at all. In transformers and ConvNeXt, "layer
normalization" is another thing: mean and variance are computed over the channels of each position alone.

Ba, Kiros and Hinton 2016, "Layer Normalization".
"""

from torch import nn

from common import Recipe, main


def by_hand(x):
    """Return x (N, C, H, W), normalized as nn.GroupNorm(1, C) does before its weight and bias."""
    mean = x.mean((1, 2, 3), keepdim=True)  # (N, 1, 1, 1)
    variance = x.var((1, 2, 3), correction=0, keepdim=True)  # (N, 1, 1, 1)
    return (x - mean) / (variance + 1e-5).sqrt()


def layer_norm(channels):
    return nn.GroupNorm(1, channels)


RECIPE = Recipe(__file__, norm=layer_norm)

if __name__ == "__main__":
    main(RECIPE)
