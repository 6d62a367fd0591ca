"""Layer normalization: mean and variance over all channels and positions, for each image on its own.

For activations x of shape (N, C, H, W), statistics run over the axes (C, H, W): one mean and one variance an image,
N of each, from C*H*W numbers. Then every channel gets a learned scale and shift: 2*C parameters. PyTorch calls that
a group normalization with one group.

Why not nn.LayerNorm((C, H, W))? It computes the same statistics, but learns a scale and a shift for every single
element: 2*C*H*W parameters. For 16 channels at 32x32 that is 32,768 in one layer, of the 50,000 that the whole
network may have.

What is not removed is what differs from channel to channel, but not from image to image. Activations are mostly
positive, so a filter whose weights don't add up to zero answers every image with the same large constant. Batch
normalization subtracts it, channel by channel; here it stays, takes up to a third of what passes through each layer of
a fresh network, and images look much alike to the last layer: one reason why group and layer normalization learn
slowly in their first epochs. So filters are kept at a mean of zero here and in gn.py (`--no-zero-mean`: not).
In 20 epochs both also end up better with lower learning rates than bn.py's (results/ablation.md).

Training and evaluation do the same: no image affects another, and nothing is averaged over steps. Channels do affect
each other: one with large activations makes all the others smaller.

Ba, Kiros and Hinton 2016, "Layer Normalization".
"""

from torch import nn

from common import Recipe, main


def layer_norm(channels):
    return nn.GroupNorm(1, channels)


RECIPE = Recipe(__file__, norm=layer_norm, max_lr=0.03, aux_lr=0.3, zero_mean=True)

if __name__ == "__main__":
    main(RECIPE)
