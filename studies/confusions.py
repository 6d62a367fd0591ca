"""Which classes are easy, which hard?

The assignment's course notes report automobile as the best class and cat as the worst. Cats and dogs share shape,
fur and background, at 32x32 pixels also face; automobiles look alike. If that is so, it should hold for every norm and
seed, and the largest numbers off the diagonal should be cats taken for dogs, and dogs for cats.
"""

import collections

import numpy

import common
from studies import study
from studies.study import Study, name_of, published
from support import pictures, runs
from support.runs import markdown

BEST, WORST = "automobile", "cat"


def read():
    """The metrics of all published runs, and the counts (true, predicted) of seed 0; None if there are none."""
    groups = published()
    folders = {group[0].metrics["variant"]: common.RESULTS / group[0].metrics["run"] for group in groups}
    counts = {variant: pictures.confusion(runs.load_tensors(folder, "predictions"))
              for variant, folder in folders.items() if (folder / "predictions.pt").exists()}
    return {"runs": [run.metrics for group in groups for run in group], "counts": counts} if counts else None


def largest(counts, how_many=3):
    """Of a confusion matrix (true, predicted): the largest numbers off its diagonal, as text."""
    counts = counts.clone().fill_diagonal_(0)
    pairs = [divmod(index, len(counts)) for index in counts.flatten().topk(how_many).indices.tolist()]
    return [f"{common.CLASSES[true]} taken for {common.CLASSES[taken]} {counts[true, taken]}" for true, taken in pairs]


def draw(found):
    picture, panels = pictures.figure(4 * len(found["counts"]), 4.8, len(found["counts"]))
    for axes, (variant, counts) in zip(numpy.ravel(panels), found["counts"].items(), strict=True):
        pictures.draw_counts(axes, counts, 6)
        axes.set_title(f"{variant.upper()}: " + "\n".join(largest(counts)), fontsize=8)
    return picture


def finding(found):
    best, worst = (collections.Counter(metrics[f"{end}_accurate_class"] for metrics in found["runs"])
                   for end in ("most", "least"))
    verdict = "holds" if best[BEST] == worst[WORST] == len(found["runs"]) else "does not always hold"
    best, worst = (" and ".join(f"{name} in {count}" for name, count in counter.most_common())
                   for counter in (best, worst))
    return (f"\"Best at {BEST}, worst at {WORST}\" {verdict}: of {len(found['runs'])} runs, the best class is {best}; "
            f"the worst is {worst}")


def table(found):
    return markdown(["largest confusions", "first", "second", "third"],
                    [[name_of(variant), *largest(counts)] for variant, counts in found["counts"].items()])


STUDY = Study(
    "confusions", __doc__,
    "all published runs; picture and table: seed 0, the 10,000 test images", finding, table, draw,
    title="Which classes are taken for which, of 1,000 test images each", read=read)

if __name__ == "__main__":
    study.main(STUDY)
