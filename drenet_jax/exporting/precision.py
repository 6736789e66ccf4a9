"""The precisions of an exported model, and how a lower one changes its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

PRECISIONS = ("float32", "int8_crops", "int8")

# What `--runtime=auto` asks of a lower precision.
MOST_PERSON_DIFFERENCE = 0.005
LEAST_PERSONS = 100


@dataclasses.dataclass(frozen=True)
class PrecisionReport:
    """A lower precision beside float32, on the same slices.

    Attributes:
      data, split: the slices.
      n_persons, n_slices: of them.
      same_boxes: the share of boxes that are the same; None of a model without boxes.
      largest_slice_difference, largest_person_difference: of a probability.
      mean_person_difference: of the probabilities.
      n_other_labels: persons with another label.
      auc_float32, auc: by person, of the positive class; None where the split has one class only.
    """

    data: str
    split: str
    n_persons: int
    n_slices: int
    same_boxes: float | None
    largest_slice_difference: float
    largest_person_difference: float
    mean_person_difference: float
    n_other_labels: int
    auc_float32: float | None
    auc: float | None

    @property
    def is_safe(self) -> bool:
        """Whether `--runtime=auto` may use it."""
        return (
            self.n_persons >= LEAST_PERSONS
            and self.largest_person_difference < MOST_PERSON_DIFFERENCE
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrecisionReport:
        return cls(**values)


def summary_lines(report: PrecisionReport) -> list[str]:
    """The report as a user reads it."""
    lines = [
        f"beside float32, {report.n_slices} slices of {report.n_persons} persons "
        f"({report.split} of {report.data}):",
        f"  a person's probabilities differ by {report.largest_person_difference:.4f} at most, "
        f"{report.mean_person_difference:.4f} on average; a slice's by "
        f"{report.largest_slice_difference:.4f} at most",
        f"  persons with another label: {report.n_other_labels}",
    ]
    if report.same_boxes is not None:
        lines.append(f"  boxes that are the same: {report.same_boxes:.1%}")
    if report.auc is not None:
        lines.append(f"  AUC by person: {report.auc:.4f}, in float32 {report.auc_float32:.4f}")
    verdict = "may" if report.is_safe else "does not"
    lines.append(
        f"  --runtime=auto {verdict} use it (needed: under {MOST_PERSON_DIFFERENCE} on at least "
        f"{LEAST_PERSONS} persons)"
    )
    return lines
