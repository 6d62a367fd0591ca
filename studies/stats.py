"""Statistics of the studies: t-tests with one pooled standard deviation per table, Holm's correction, intervals.

Student's t-test with the standard deviation pooled over all cells of a table has more degrees of freedom than one with
two cells alone. It assumes equal variances, and treats runs as independent, also if they share a seed. Holm 1979, "A
Simple Sequentially Rejective Multiple Test Procedure", keeps the probability of any false positive in a family of
comparisons at LEVEL or below. Where variances differ widely between rows, tukey() pools within one row alone.
"""

import math
import statistics
from typing import NamedTuple

from scipy import stats

LEVEL = 0.05
DEFINITION = (f'"Significant" means p < {LEVEL:g}, in a t-test with a standard deviation pooled over the table of the '
              "study (which assumes equal variances), unless the study names another test. P-values are corrected by "
              "Holm's method for all differences in a table; those averaged over normalizations are a separate family. "
              "Square brackets: 95 % confidence intervals, not corrected. ±: standard deviation over seeds.")


class Estimate(NamedTuple):
    """A mean or a difference of means with its 95 % confidence interval and p-value, corrected by holm() or not."""

    estimate: float
    low: float
    high: float
    p: float

    @property
    def significant(self):
        return self.p < LEVEL

    def text(self, digits=2):
        """Return it as "+0.52 [0.27, 0.77]"."""
        return f"{self.estimate:+.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"

    def size(self, digits=2):
        """Return it without its sign, as "0.52 [0.27, 0.77]"."""
        low, high = sorted(math.copysign(1, self.estimate) * end for end in (self.low, self.high))
        return f"{abs(self.estimate):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def pooled(cells):
    """Return the standard deviation pooled over lists of values, and its degrees of freedom."""
    df = sum(len(values) - 1 for values in cells)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in cells if len(values) > 1)
    return math.sqrt(squares / df), df


def contrast(cells, weights):
    """Return the sum of weights[key] * mean(cells[key]) as an Estimate; `cells` is {key: values}, all of a table."""
    deviation, df = pooled(cells.values())
    estimate = sum(weight * statistics.mean(cells[key]) for key, weight in weights.items())
    error = deviation * math.sqrt(sum(weight**2 / len(cells[key]) for key, weight in weights.items()))
    return from_error(estimate, error, df)


def welch(cells, weights):
    """Return contrast(), but each cell has a variance of its own (Welch 1947)."""
    parts = {key: weight**2 * statistics.variance(cells[key]) / len(cells[key]) for key, weight in weights.items()}
    df = sum(parts.values()) ** 2 / sum(part**2 / (len(cells[key]) - 1) for key, part in parts.items())
    return from_error(contrast(cells, weights).estimate, math.sqrt(sum(parts.values())), df)


def from_error(estimate, error, df=math.inf):
    """Return an Estimate from its standard error and degrees of freedom."""
    error = max(error, 1e-12)
    half = error * float(stats.t.ppf(0.975, df))
    return Estimate(estimate, estimate - half, estimate + half, 2 * float(stats.t.sf(abs(estimate) / error, df)))


def holm(differences):
    """Return {key: Estimate} with p-values corrected for all of them."""
    corrected, highest = {}, 0.0
    for rank, (key, difference) in enumerate(sorted(differences.items(), key=lambda item: item[1].p)):
        highest = max(highest, min(1.0, (len(differences) - rank) * difference.p))
        corrected[key] = difference._replace(p=highest)
    return corrected


def against(cells, reference):
    """Return {(line, x): Estimate of the difference from (line, reference)} of {(line, x): values}, after holm()."""
    return holm({(line, x): contrast(cells, {(line, x): 1, (line, reference): -1})
                 for line, x in cells if x != reference})


def main_effects(cells, reference):
    """Return {x: Estimate of the difference from the reference, averaged over lines}, corrected by holm()."""
    lines, columns = (dict.fromkeys(key[axis] for key in cells) for axis in (0, 1))
    return holm({x: contrast(cells, {(line, column): sign / len(lines) for line in lines
                                     for column, sign in ((x, 1), (reference, -1))})
                 for x in columns if x != reference})


def interaction(cells):
    """Return the p-value of an F-test that x has the same effect on all lines of {(line, x): values}.

    All cells must have equally many values.
    """
    lines, columns = (dict.fromkeys(key[axis] for key in cells) for axis in (0, 1))
    deviation, df = pooled(cells.values())
    means = {key: statistics.mean(values) for key, values in cells.items()}
    of_line = {line: statistics.mean(means[line, x] for x in columns) for line in lines}
    of_x = {x: statistics.mean(means[line, x] for line in lines) for x in columns}
    overall = statistics.mean(means.values())
    size = len(next(iter(cells.values())))
    squares = size * sum((means[line, x] - of_line[line] - of_x[x] + overall) ** 2 for line, x in cells)
    between = max(1, (len(lines) - 1) * (len(columns) - 1))
    return float(stats.f.sf(squares / between / max(deviation, 1e-12) ** 2, between, df))


def tukey(groups):
    """Return the p-value of Tukey's test for each pair of {name: values}."""
    names = list(groups)
    if len(names) < 2:
        return {}
    found = stats.tukey_hsd(*groups.values()).pvalue
    return {(a, b): float(found[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if i != j}
