"""What dropout does.

The assignment's course notes say that it "makes a significant difference to overfitting", as Srivastava et al. 2014,
"Dropout", lead one to expect: the gap between training and validation should narrow, and validation accuracy rise.
There is reason for doubt. Batch norm's running variances are gathered under dropout and fit worse without it (Li et
al. 2019, "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift"), and a network of
fewer than 50,000 parameters overfits little. The claim counts as borne out where the gap narrows by more than twice
the standard deviation.
"""

from studies import study
from studies.study import MORE_SEEDS, accuracies, exceeds, gaps, plot_lines
from support import plots

VARIANTS, RATES = ("bn", "gn", "ln"), (0.0, 0.05, 0.2, 0.5)  # fractions of the channels that are dropped
FLAGS = "--train-images 10000 --no-test --dropout-after 'c3 c7 C10'"
SETTING = ("10,000 training images, 20 epochs, 3 seeds, dropout after c3, c7 and C10, before their inputs are added;\n"
           "bands: one standard deviation")


def plan():
    return {(variant, rate, seed): (variant, f"{FLAGS} --dropout {rate} --seed {seed}")
            for variant in VARIANTS for rate in RATES for seed in MORE_SEEDS}


def plot(results):
    fig, axes = plots.new_axes(9, 3.8, 2)
    for ax, measure, label in ((axes[0], accuracies, "validation accuracy, %"),
                               (axes[1], gaps, "generalization gap (train - val), points")):
        plot_lines(ax, results, measure)
        ax.set(xlabel="fraction of channels dropped", ylabel=label)
        ax.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
    axes[0].legend()
    return fig


def changed(results, measure, sign):
    """Return the variants and dropout rates at which a measure rises (sign 1) or falls (-1), as text."""
    parts = []
    for variant in VARIANTS:
        values = {rate: [sign * value for value in measure(results[variant, rate])] for rate in RATES}
        found = [f"{rate:g}" for rate in RATES[1:] if exceeds(values[rate], values[0.0])]
        parts += [f"{variant.upper()} (at {' and '.join(found)})"] if found else []
    return ", ".join(parts)


def finding(results):
    narrowed = changed(results, gaps, -1)
    verdict = f"holds for {narrowed}" if narrowed else "is not borne out here"
    raised, lowered = (changed(results, accuracies, sign) or "no variant" for sign in (1, -1))
    return (f"\"Dropout makes a significant difference to overfitting\" {verdict};\n"
            f"it raises the validation accuracy of {raised}, and lowers that of {lowered}")


def table(results):
    columns = {rate: f"{rate:g} dropped" for rate in RATES}
    accuracy, gap = (study.table(results, measure, header, columns, reference=0.0) for measure, header in (
        (accuracies, "validation accuracy, %"), (gaps, "generalization gap (train - val), points")))
    return f"{accuracy}\n{gap}\nBold: differs from no dropout by more than twice the standard deviation.\n"
