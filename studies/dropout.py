"""What dropout does.

The assignment's course notes say that dropout "makes a significant difference to overfitting", as Srivastava et al.
2014, "Dropout", lead one to expect: the gap between training and validation accuracy should narrow, and validation
accuracy rise. There is reason for doubt. Batch normalization's running variances are estimated with dropout on, so they
do not match the activations in evaluation, when it is off (Li et al. 2019, "Understanding the Disharmony between
Dropout and Batch Normalization by Variance Shift"). And a network of fewer than 50,000 parameters may hardly overfit.
"""

from studies import stats, study
from studies.study import SEEDS, VARIANTS, accuracies, gaps, plot_lines
from support import plots

RATES = (0.0, 0.2, 0.5)  # probability that a channel is dropped
FLAGS = "--train-images 10000 --no-test --dropout-after 'c3 c7 C10'"
SETTING = (f"10,000 training images, 20 epochs, {len(SEEDS)} seeds; dropout of whole channels after c3, c7 and C10;\n"
           "gap: training (without augmentation and dropout) minus validation accuracy; bands: one standard deviation")
GAP = "generalization gap, percentage points"


def plan():
    return {(variant, rate, seed): (variant, f"{FLAGS} --dropout {rate} --seed {seed}")
            for variant in VARIANTS for rate in RATES for seed in SEEDS}


def findings(results):
    gap, accuracy = ({key: measure(group) for key, group in results.items()} for measure in (gaps, accuracies))
    narrow, price = (stats.main_effects(cells, 0.0)[0.5] for cells in (gap, accuracy))
    return [
        ("Channel dropout of 0.5 after c3, c7 and C10 narrows the gap between training and validation accuracy by "
         f"{narrow.size()} percentage points, but lowers validation accuracy by {price.size()}, averaged over the "
         "normalizations.", narrow.significant and narrow.estimate < 0 and price.significant and price.estimate < 0),
        ("Neither effect differs significantly between the normalizations (F-tests of the interaction).",
         all(stats.interaction(cells) > stats.LEVEL for cells in (gap, accuracy))),
    ]


def table(results):
    columns = {rate: f"dropout {rate:g}" for rate in RATES}
    return "\n".join(study.table(results, measure, header, columns, 0.0, "dropout") for measure, header in (
        (accuracies, "validation accuracy, %"), (gaps, GAP)))


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 2)
    for ax, measure, label in (axes[0], accuracies, "validation accuracy, %"), (axes[1], gaps, GAP):
        plot_lines(ax, results, measure)
        ax.set(xlabel="dropout probability", ylabel=label)
        ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes[1].legend()
    return fig
