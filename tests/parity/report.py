"""Rows of comparison, their tolerances and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`error`: largest absolute difference. `share`: largest fraction of values that may differ."""

    error: float
    share: float = 1.0

    def __str__(self) -> str:
        if self.error == 0 or self.share == 0:
            return "exact"
        if self.share == 1.0:
            return f"{self.error:g}"
        if self.error == np.inf:
            return f"{self.share:.2%} differ"
        return f"{self.error:g}, {self.share:.2%} differ"


EXACT = Tolerance(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One array compared. `max_error` is NaN where the shapes or the files do not match.

    `remark`: which frames, whose masks; or why nothing could be compared.
    """

    stage: str
    array: str
    max_error: float
    share_differing: float
    tolerance: Tolerance
    remark: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the array is equal within its tolerance; NaN never is."""
        return (
            self.max_error <= self.tolerance.error and self.share_differing <= self.tolerance.share
        )

    def noting(self, remark: str) -> Row:
        """Return the row with one more remark."""
        return replace(self, remark="; ".join(filter(None, (self.remark, remark))))


def compare(
    stage: str, array: str, ours: ArrayLike, golden: ArrayLike, tolerance: Tolerance = EXACT
) -> Row:
    """Return how far `ours` is from `golden`; both of any type, of one shape."""
    left, right = np.asarray(ours), np.asarray(golden)
    if left.shape != right.shape:
        return miss(stage, array, tolerance, f"shape {left.shape}, golden {right.shape}")
    difference = np.abs(left.astype(np.float64) - right.astype(np.float64))
    return row(stage, array, difference, tolerance)


def compare_stored_as_half(
    stage: str, array: str, ours: NDArray[np.float32], golden: NDArray[np.float16], error: float
) -> Row:
    """Compare with an array that was rounded to float16 when stored: that rounding is no error."""
    if ours.shape != golden.shape:
        return miss(stage, array, Tolerance(error), f"shape {ours.shape}, golden {golden.shape}")
    rounding = np.spacing(np.abs(golden)).astype(np.float64) / 2
    difference = np.abs(ours.astype(np.float64) - golden.astype(np.float64))
    return row(stage, array, np.maximum(difference - rounding, 0.0), Tolerance(error))


def row(stage: str, array: str, difference: NDArray[np.float64], tolerance: Tolerance) -> Row:
    """Return the row of an array of absolute differences."""
    if difference.size == 0:
        return miss(stage, array, tolerance, "nothing to compare")
    return Row(stage, array, float(difference.max()), float((difference != 0).mean()), tolerance)


def miss(stage: str, array: str, tolerance: Tolerance, remark: str) -> Row:
    """Return a row that is not met, with the reason."""
    return Row(stage, array, float("nan"), float("nan"), tolerance, remark)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    head = ("stage", "array", "max error", "differing", "tolerance", "verdict")
    cells = [head, *(_cells(each) for each in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    missed = sum(not each.is_met for each in rows)
    lines.append(f"{len(rows)} compared, {missed} missed")
    return "\n".join(lines)


def _cells(each: Row) -> tuple[str, ...]:
    verdict = ": ".join(filter(None, ("ok" if each.is_met else "MISS", each.remark)))
    return (
        each.stage,
        each.array,
        f"{each.max_error:.3g}",
        f"{each.share_differing:.4%}",
        str(each.tolerance),
        verdict,
    )
