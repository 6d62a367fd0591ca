"""What the network sees in training.

Random translation, mirroring and cutout make other images of the same class, so that there is less to memorize.
Translation shrinks from epoch to epoch, so that training ends on images that are placed as those of the test.
"""

import sys

import torch

import common
from support import cifar10, cli, files, plots, runs


def main(argv=None):
    """Write results/augmentation[-<flags>].png: the first image of each class, original and augmented."""
    with cli.exit_on_error("augmentation"):
        script = runs.load_script(runs.variants()[0])
        recipe, options = cli.parse_args(script, sys.argv[1:] if argv is None else argv)
        images, targets = cifar10.load("train")
        images = images[(targets == torch.arange(len(cifar10.CLASSES))[:, None]).int().argmax(1)]
        rows, generator = {"original": images}, torch.Generator().manual_seed(options.seed)
        for name, epoch, pixels in (("first epoch", 1, recipe.translate),
                                    ("last epoch", recipe.epochs, recipe.final_translate)):
            sampled = common.sample_augmentation(len(images), recipe, epoch, generator)
            rows[f"{name}:\nup to {pixels} pixels"] = common.augment(images, *sampled, recipe.cutout)
        path = files.RESULTS / f"augmentation{options.run.removeprefix(script.variant)}.png"
        fig, axes = plots.new_axes(11, 1.1 + 1.15 * len(rows), len(images), len(rows))
        for line, (label, shown) in zip(axes, rows.items(), strict=True):
            for ax, image in zip(line, shown, strict=True):
                plots.show_image(ax, image)
            line[0].set_ylabel(label, fontsize=8)
        for ax, name in zip(axes[0], cifar10.CLASSES, strict=True):
            ax.set_title(name, fontsize=9)
        title = (f"Training images: {'half' if recipe.flip else 'none'} mirrored, "
                 f"{f'half with a square of {recipe.cutout} pixels cut out' if recipe.cutout else 'none cut out'}")
        plots.save_figure(fig, title, path)
        print(f"see {path}")


if __name__ == "__main__":
    main()
