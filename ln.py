"""Layer normalization: a mean and a variance per image, over all channels and positions.

For activations x of shape (N, C, H, W), statistics run over the axes (C, H, W): one mean and one variance per image,
N of each, from C*H*W numbers. Then every channel gets a learned weight and bias: 2*C parameters. PyTorch calls that a
group normalization with one group.

Why not nn.LayerNorm((C, H, W))? It computes the same statistics, but learns a weight and a bias for every single
element: 2*C*H*W parameters. For 16 channels at 32x32 that is 32,768 in one layer, of the 50,000 that the whole
network may have.

LN does not remove per-channel offsets that all images share: a filter whose weights do not add up to zero answers
positive activations, as in most of a fresh network, with a constant. Batch normalization subtracts it, channel by
channel; here it stays. So filters keep a mean of zero here and in gn.py (`--no-center-filters` lets them have any).
That, and learning rates below bn.py's, were chosen by few runs (results/ablation.md, results/tried.md).

In transformers and ConvNeXt, "layer normalization" is another thing: it runs over the channels of each position alone.

Training and evaluation do the same: no image affects another, and no running averages are needed. Channels do affect
each other: one with large activations makes all the others smaller.

Ba, Kiros and Hinton 2016, "Layer Normalization".
"""

from torch import nn

from common import Recipe, main


def layer_norm(channels):
    return nn.GroupNorm(1, channels)


RECIPE = Recipe(__file__, norm=layer_norm, max_lr=0.03, aux_lr=0.3, center_filters=True)

if __name__ == "__main__":
    main(RECIPE)
