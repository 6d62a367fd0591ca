"""What dropout does.

The assignment's course notes say that it "makes a significant difference to overfitting", as Srivastava et al. 2014,
"Dropout", lead one to expect: the gap between training and validation accuracy should narrow, and validation accuracy
rise. There is reason for doubt. Batch normalization's running variances are estimated with dropout on, so they do not
match the activations in evaluation, when it is off (Li et al. 2019, "Understanding the Disharmony between Dropout and
Batch Normalization by Variance Shift"). And a network of fewer than 50,000 parameters overfits little.
"""

from studies import stats, study
from studies.study import SEEDS, VARIANTS, accuracies, gaps, plot_lines
from support import plots

RATES = (0.0, 0.2, 0.5)  # fractions of the channels that are dropped
FLAGS = "--train-images 10000 --no-test --dropout-after 'c3 c7 C10'"
SETTING = ("10,000 training images, 20 epochs, 3 seeds; dropout of whole channels after c3, c7 and C10;\n"
           "gap: training (without augmentation and dropout) minus validation accuracy; bands: one standard deviation")
GAP = "generalization gap, percentage points"


def plan():
    return {(variant, rate, seed): (variant, f"{FLAGS} --dropout {rate} --seed {seed}")
            for variant in VARIANTS for rate in RATES for seed in SEEDS}


def findings(results):
    gap, accuracy = ({key: measure(group) for key, group in results.items()} for measure in (gaps, accuracies))
    narrower, price = (stats.main_effects(cells, 0.0)[0.5] for cells in (gap, accuracy))
    return [
        (f"Dropping half of the channels after three layers narrows the generalization gap by {narrower.size()} "
         f"percentage points, but lowers validation accuracy by {price.size()}, averaged over the normalizations.",
         narrower.significant and narrower.estimate < 0 and price.significant and price.estimate < 0),
        ("No significant difference between the normalizations was found in that (F-tests).",
         all(stats.interaction(cells) > stats.LEVEL for cells in (gap, accuracy))),
    ]


def table(results):
    columns = {rate: f"{rate:g} dropped" if rate else "none dropped" for rate in RATES}
    return "\n".join(study.table(results, measure, header, columns, reference=0.0) for measure, header in (
        (accuracies, "validation accuracy, %"), (gaps, GAP)))


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 2)
    for ax, measure, label in (axes[0], accuracies, "validation accuracy, %"), (axes[1], gaps, GAP):
        plot_lines(ax, results, measure)
        ax.set(xlabel="fraction of channels dropped", ylabel=label)
        ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes[0].legend()
    return fig
