"""Images altered as light, cameras and files alter them: uint8 (N, 3, H, W) -> the same. For studies/corruptions.py.

Names and severities are those of CIFAR-10-C: Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations"; changes of colour are added. Where torchvision has the operation, it does it.
"""

import io

import numpy
import torch
import torch.nn.functional as F
from PIL import Image

SEVERITIES = (1, 3, 5)  # of five


def gaussian_noise(images, deviation):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return as_bytes(images / 255 + deviation * noise)


def gaussian_blur(images, sigma):
    from torchvision.transforms.v2 import functional  # heavy: only when something is measured

    size = 2 * round(4 * sigma) + 1  # as far as four deviations
    return as_bytes(functional.gaussian_blur(images / 255, [size, size], [sigma, sigma]))


def brightness(images, added):
    """Adds to V of the images' HSV, which is the largest of red, green and blue."""
    images = images / 255
    value = images.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return as_bytes(torch.where(value > 0, images * brighter / value.clamp(min=1e-6), brighter))


def contrast(images, kept):
    images = images / 255
    mean = images.mean((2, 3), keepdim=True)
    return as_bytes(mean + kept * (images - mean))


def jpeg_compression(images, quality):
    """By Pillow, as in CIFAR-10-C; torchvision is about to lose its own."""
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(numpy.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(decoded)


def pixelate(images, side):
    """Down to a share of the side by means of areas, and up again by repetition."""
    small = F.interpolate(images / 255, size=int(images.shape[-1] * side), mode="area")
    return as_bytes(F.interpolate(small, size=images.shape[-1], mode="nearest"))


def hue(images, turn):
    from torchvision.transforms.v2 import functional  # heavy

    return functional.adjust_hue(images, turn)


def greyscale(images, _):
    from torchvision.transforms.v2 import functional  # heavy

    return functional.rgb_to_grayscale(images, num_output_channels=3)


def inversion(images, _):
    return 255 - images


def as_bytes(images):
    return (255 * images).round().clamp(0, 255).to(torch.uint8)


CORRUPTIONS = {  # kind -> name -> what is done, and how much of it: at SEVERITIES, or turns of the colour circle
    "noise": {"Gaussian noise": (gaussian_noise, (0.04, 0.08, 0.10))},
    "blur": {"Gaussian blur": (gaussian_blur, (0.4, 0.7, 1.0))},
    "brightness and contrast": {
        "brightness": (brightness, (0.05, 0.15, 0.3)), "contrast": (contrast, (0.75, 0.4, 0.15))},
    "compression": {"JPEG": (jpeg_compression, (80, 58, 40)), "pixelate": (pixelate, (0.95, 0.85, 0.65))},
    "colour": {"hue": (hue, (0.1, 0.25, 0.5)), "greyscale": (greyscale, (1,)), "inversion": (inversion, (1,))},
}
