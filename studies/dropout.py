"""What does dropout do?

The assignment's course notes say that it "makes a significant difference to overfitting", as Srivastava et al. 2014,
"Dropout", lead one to expect: the gap between training and validation should narrow, and validation accuracy rise.
There is reason for doubt. Batch norm's running variances are gathered under dropout and fit worse without it (Li et
al. 2019, "Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift"), and a network of
fewer than 50,000 parameters overfits little. The claim counts as borne out where the gap narrows beyond the noise.
"""

from studies import study
from studies.study import SEEDS, Study, accuracies, draw_lines, gaps
from support import pictures
from support.runs import clearly_higher

VARIANTS, SHARES = ("bn", "gn", "ln"), (0.0, 0.05, 0.2, 0.5)  # of channels dropped
TRAININGS = {
    (variant, share, seed):
        (variant, f"--limit 10000 --no-test --dropout-after 'c3 c7 C10' --dropout {share} --seed {seed}")
    for variant in VARIANTS for share in SHARES for seed in SEEDS}


def draw(found):
    picture, panels = pictures.figure(9, 3.8, 2)
    draw_lines(panels[0], found, accuracies)
    draw_lines(panels[1], found, gaps)
    for axes, label in zip(panels, ("validation accuracy, %", "training less validation, points"), strict=True):
        axes.set(xlabel="share of channels dropped", ylabel=label)
        axes.set_xticks(SHARES, [f"{share:g}" for share in SHARES])
    panels[0].legend()
    return picture


def changed(found, measure, sign):
    """The variants, and shares dropped, at which `measure` goes up (1) or down (-1) beyond the noise, or ""."""
    parts = []
    for variant in VARIANTS:
        before = measure(found[variant, 0.0])
        groups = {share: measure(found[variant, share]) for share in SHARES[1:]}
        shares = [f"{share:g}" for share, after in groups.items()
                  if clearly_higher(*((after, before) if sign > 0 else (before, after)))]
        parts += [f"{variant.upper()} (at {' and '.join(shares)})"] if shares else []
    return ", ".join(parts)


def finding(found):
    narrowed = changed(found, gaps, -1)
    verdict = f"holds for {narrowed}" if narrowed else "is not borne out here"
    raised, lowered = (changed(found, accuracies, sign) or "no variant" for sign in (1, -1))
    return (f"\"Dropout makes a significant difference to overfitting\" {verdict};\n"
            f"it raises the validation accuracy of {raised}, and lowers that of {lowered}")


def table(found):
    labels = {share: f"{share:g} dropped" for share in SHARES}
    accuracy, gap = (study.table(found, measure, corner, labels, than=0.0) for measure, corner in (
        (accuracies, "validation accuracy, %"), (gaps, "training less validation, points")))
    return f"{accuracy}\n{gap}\nBold: differs beyond the noise from no dropout.\n"


STUDY = Study(
    "dropout", __doc__,
    "10,000 training images, 20 epochs, 3 seeds, dropout behind c3, c7 and C10, before their inputs are added;\n"
    "bands: one standard deviation", finding, table, draw, trainings=TRAININGS)

if __name__ == "__main__":
    study.main(STUDY)
