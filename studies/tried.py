"""What was tried on the way to the recipes, and dropped?

Their numbers alone are left, in results/studies/tried.jsonl: of some, the code is gone. The table is the last section
of results/ablation.md; a training each, so a small difference says nothing.
"""

from studies.study import VALIDATION, validation_cells
from studies.trainings import numbers_file
from support.runs import markdown, read_lines

TRIED = [  # what was tried, the name of its run, and that of the run to compare it with
    ("activation after the addition", "post", "rates-0.04-0.2"),
    ("norm and activation before each convolution, a stream without activations", "pre", "rates-0.02-0.2"),
    ("no activation behind c3 and c7", "linear", "rates-0.02-0.2"),
    ("batches of 64", "batch-64", "rates-0.04-0.2"),
    ("rates of 0.02 and 0.2 instead of 0.04 and 0.2", "rates-0.02-0.2", "rates-0.04-0.2"),
    ("rates of 0.04 and 0.5 instead of 0.04 and 0.2", "rates-0.04-0.5", "rates-0.04-0.2"),
    ("rates of 0.04 and 1 instead of 0.04 and 0.5", "rates-0.04-1", "rates-0.04-0.5"),
    ("momentum of 0.6, rates 0.08 and 0.8", "momentum-0.6", "rates-0.04-0.2"),
    ("more in the second stage: widths 16 16 32 32 32 32 24 24 24 24", "second-stage", "rates-0.02-0.2"),
    ("widths of 24, the last 64", "wide-end", "rates-0.02-0.2"),
    ("widths of 24 in the first two stages, skip connections around all but C8", "widths-24", "additions"),
    ("shifts of up to 4 pixels instead of 2", "crop-4-20", "crop-2-20"),
    ("widths 16 16 24 24 24 24 24 24 24 80 instead of 16 16 24 24 24 24 32 32 32 32", "wide-end-20", "widths-32-20"),
    ("with rates that fall by the square: peaks of 0.07 and 0.5 instead of 0.04 and 0.5",
     "square-rates-0.07-0.5", "square-8"),
    ("the same: peaks of 0.025 and 0.3", "square-rates-0.025-0.3", "square-8"),
    ("the same: peaks of 0.04 and 1", "square-rates-0.04-1", "square-8"),
    ("rates that fall by the cube instead of the square", "cube-8", "square-8"),
    ("more in the first two stages: widths 24 24 32 32 32 32 16 16 24 32", "early-8", "square-8"),
    ("widths of 24, the last three 32", "widths-24-32-8", "square-8"),
    ("widths of 16, then 24, then 32 32 48", "late-8", "square-8"),
    ("neither cutout nor shifts that shrink", "square-20", "shrink-cutout-half-20"),
    ("shifts that shrink, but no cutout", "shrink-20", "shrink-cutout-half-20"),
    ("cutout, but shifts that don't shrink", "cutout-half-20", "shrink-cutout-half-20"),
    ("cutout in all images instead of half", "shrink-cutout-20", "shrink-cutout-half-20"),
    ("LN: shifts that don't shrink", "ln-same-shifts-20", "ln-20"),
    ("LN: the same, and no cutout", "ln-no-cutout-20", "ln-20"),
    ("LN: rates of 0.04 and 0.5 instead of 0.03 and 0.3", "ln-20", "ln-rates-0.03-0.3-20"),
    ("LN: rates of 0.02 and 0.2 instead of 0.03 and 0.3", "ln-rates-0.02-0.2-20", "ln-rates-0.03-0.3-20"),
    ("GN: rates of 0.04 and 0.5 instead of 0.03 and 0.3", "gn-20", "gn-rates-0.03-0.3-20"),
    ("rates of 0.025 and 0.3 instead of 0.04 and 0.5, at full length", "rates-0.025-0.3-20", "bn-20"),
    ("inputs added to the outputs of 3x3 convolutions alone", "skips-3x3-6", "bn-6"),
    ("widths 16 16 32 32 32 32 24 24 24 24, inputs added around all but C1, c3 and c7", "second-stage-6", "bn-6"),
    ("inputs concatenated: widths 16 16 24 16 16 16 32 24 16 16 instead of 16 16 32 16 16 16 32 16 16 16",
     "concatenated-24-20", "concatenated-32-20"),
    ("LN: the same", "ln-concatenated-24-20", "ln-concatenated-32-20"),
    ("inputs concatenated, rates of 0.03 and 0.3, 18 epochs instead of 20 with inputs added",
     "concatenated-18", "bn-20"),
    ("LN: the same", "ln-concatenated-18", "ln-rates-0.03-0.3-20"),
    ("GN: inputs concatenated, rates of 0.02 and 0.2 instead of 0.03 and 0.3",
     "gn-concatenated-24-rates-0.02-0.2-20", "gn-concatenated-24-20"),
    ("GN: inputs concatenated, widths 16 16 32 16 16 16 32 16 16 16, 2 groups instead of 4",
     "gn-2-groups-20", "gn-concatenated-32-20"),
    ("GN: the same, 4 groups, no dropout instead of 0.05", "gn-no-dropout-20", "gn-concatenated-32-20"),
    ("inputs concatenated, filters of C1 start as the principal components of 3x3 patches of the images",
     "principal-20", "concatenated-32-20"),
    ("the same, seed 1, rates of 0.03 and 0.3", "principal-rates-0.03-20", "concatenated-32-rates-0.03-20"),
    ("LN: the same, seed 0", "ln-principal-20", "ln-concatenated-32-20"),
    ("inputs concatenated, labels smoothed by 0.05", "smoothed-20", "concatenated-32-20"),
    ("the same, rates of 0.03 and 0.3", "smoothed-rates-0.03-seed-0-20", "concatenated-32-rates-0.03-seed-0-20"),
    ("the same, seed 1", "smoothed-rates-0.03-seed-1-20", "concatenated-32-rates-0.03-20"),
    ("LN: the same, seed 0", "ln-smoothed-20", "ln-concatenated-32-20"),
    ("inputs neither added nor concatenated: rates of 0.04 and 0.5 instead of 0.03 and 0.3",
     "unconnected-rates-0.04-0.5-20", "unconnected-20"),
    ("the same: rates of 0.02 and 0.2", "unconnected-rates-0.02-0.2-20", "unconnected-20"),
    ("GN: the same, rates of 0.03 and 0.3 instead of 0.02 and 0.2",
     "gn-unconnected-rates-0.03-0.3-20", "gn-unconnected-20"),
    ("LN: the same", "ln-unconnected-rates-0.03-0.3-20", "ln-unconnected-20"),
    ("inputs neither added nor concatenated, 10,000 images: widths of 24, the last three 32 instead of 16 and 32",
     "unconnected-24-32", "unconnected-16-32"),
    ("the same: widths 24 24 24 32 32 24 24 24 24 32", "unconnected-24-32-24", "unconnected-16-32"),
    ("the same: widths 16 16 16 32 32 32 32 24 24 24", "unconnected-16-32-24", "unconnected-16-32"),
]


def section():
    """The end of results/ablation.md, from the saved numbers."""
    saved, rows = read_lines(numbers_file("tried"), "name"), []
    for what, *names in TRIED:
        new, old = (saved[name] for name in names)
        rows.append([what, str(new["epochs"]), *validation_cells([new]), *validation_cells([old])[1:]])
    return "\n".join([
        "## Tried and dropped\n",
        "BN (GN or LN where it says so) on the way to the recipe, one training each; differences of less than half a "
        "point of accuracy, or 0.01 of loss, are noise. \"Rates\" are those of the filters and of everything else.\n",
        markdown(["", "epochs", *VALIDATION, "instead of, %", "instead of"], rows, "---:")])
