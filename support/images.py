"""What is done to images before the network sees them: augmentation, and normalization to about zero mean and unit
variance. For common.py, and for whoever wants to see that whole batches can be augmented by a few tensor operations."""

import functools

import numpy
import torch
import torch.nn.functional as F

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # CIFAR-10's customary ones of R, G, B in [0, 1]


def augment(images, down, right, flip, top, left, cutout):
    """Mirror, crop with a reflected border, and blank a square of side `cutout` by the mean colour, each image by its
    own draw: uint8 (N, 3, 32, 32) -> the same. DeVries and Taylor 2017, "Improved Regularization of Convolutional
    Neural Networks with Cutout"; here the square is always whole."""
    last = images.shape[-1] - 1
    pixel = torch.arange(last + 1, device=images.device)
    rows = pixel + down[:, None]  # (N, 32): where each output row comes from; -2 stands for 2, 33 for 29
    columns = pixel + right[:, None]
    rows, columns = (last - (last - index.abs()).abs() for index in (rows, columns))
    columns = torch.where(flip[:, None], last - columns, columns)
    source = (rows[:, :, None] * (last + 1) + columns[:, None, :]).flatten(1)  # (N, 1024)
    images = images.flatten(2).gather(2, source[:, None].expand(-1, 3, -1)).view_as(images)
    rows, columns = (((pixel >= start[:, None]) & (pixel < start[:, None] + cutout)).byte() for start in (top, left))
    blank = rows[:, None, :, None] * columns[:, None, None]  # (N, 1, 32, 32): 1 inside the square
    return images * (1 - blank) + mean_and_std(images.device)[0].byte() * blank  # ten times as fast as torch.where


def normalize(images):
    """uint8 (N, 3, 32, 32) -> float32 of about zero mean and unit variance, (x / 255 - MEAN) / STD, channels last."""
    mean, std = mean_and_std(images.device)
    return images.float().sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


@functools.cache
def mean_and_std(device):
    """255 * MEAN and 255 * STD as tensors (3, 1, 1), copied to the device only once."""
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


def as_batch(images):
    """PIL images, one or a list, or uint8 (N, 3, H, W) -> uint8 (N, 3, 32, 32). Raises ValueError for anything else."""
    if isinstance(images, torch.Tensor):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        if images.shape[2:] == (32, 32):
            return images
        return F.interpolate(images.float(), (32, 32), mode="bilinear", antialias=True).round().byte()
    images = images if isinstance(images, (list, tuple)) else [images]
    if not images or not all(hasattr(image, "convert") for image in images):
        raise ValueError(f"images must be PIL images or a tensor, not {images!r:.100}")
    pixels = (numpy.array(image.convert("RGB")) for image in images)  # (H, W, 3)
    return torch.cat([as_batch(torch.from_numpy(array).permute(2, 0, 1)[None]) for array in pixels])
