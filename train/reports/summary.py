"""Values by seed: their mean and deviation, how two arms differ, and how numbers and tables are written."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

NOT_RUN = "not run"


@dataclass(frozen=True)
class Sample:
    """One number of every seed that has finished."""

    values: Mapping[int, float] = field(default_factory=dict)  # by seed

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float:
        """Their standard deviation (n - 1); NaN for one seed, or where a value is not finite."""
        finite = all(map(math.isfinite, self.values.values()))
        return statistics.stdev(self.values.values()) if finite and self.n > 1 else math.nan

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        """Mean ± standard deviation; of one seed its value."""
        return with_error(self.mean, self.std, digits) if self.n else NOT_RUN


@dataclass(frozen=True)
class Difference:
    """How far the mean of one sample lies above another's.

    `standard_error` is sqrt(s1^2/n1 + s2^2/n2), as if they were independent; NaN where one has a single seed. Samples
    of the same seeds share each seed's split and order: `paired_error`, from the seeds' own differences, is the right
    one then, and the other is cautious where a seed moves both alike. It is NaN for other seeds, or one.
    """

    mean: float
    standard_error: float
    paired_error: float

    def __str__(self) -> str:
        return with_error(self.mean, self.standard_error, sign="+")


def difference(own: Sample, other: Sample) -> Difference | None:
    """`own` less `other`; None where one of them has no seed yet."""
    if not own.n or not other.n:
        return None
    error, paired = math.sqrt(own.std**2 / own.n + other.std**2 / other.n), math.nan
    if own.values.keys() == other.values.keys() and own.n > 1:
        apart = [own.values[seed] - other.values[seed] for seed in own.values]
        paired = statistics.stdev(apart) / math.sqrt(own.n)
    return Difference(own.mean - other.mean, error, paired)


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """The value as text, a negative one with a minus sign; NaN is a dash."""
    return "\N{EN DASH}" if math.isnan(value) else f"{value:{sign}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def with_error(value: float, error: float, digits: int = 2, sign: str = "") -> str:
    """Value ± error, without the latter where it is NaN."""
    spread = "" if math.isnan(error) else f" ± {number(error, digits)}"
    return number(value, digits, sign) + spread


def markdown(rows: Sequence[Sequence[str]], names: int = 1) -> list[str]:
    """The lines of a Markdown table, header first, padded to read well in a terminal.

    The first `names` columns are words and lie to the left, the others are numbers and lie to the right.
    """
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        [
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
