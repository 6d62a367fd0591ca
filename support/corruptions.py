"""Images altered as light, cameras and lenses alter them: float images (N, 3, H, W) in [0, 1] -> the same, not clipped.
For studies/corruptions.py."""

import torch


def brighten(images, strength):
    return images + strength


def darken(images, strength):
    return images - strength


def reduce_contrast(images, strength):
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 - strength)


def add_gaussian_noise(images, strength):
    return images + strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def blur(images, strength):
    from torchvision.transforms.functional import gaussian_blur  # heavy: only when something is measured

    return gaussian_blur(images, 9, strength)
