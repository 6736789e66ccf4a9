"""Metrics as text."""

from __future__ import annotations

from collections.abc import Mapping


def metric_text(metric: Mapping, *, plus: bool = False) -> str:
    """A metric with its 95% interval, such as "0.912 (0.850 to 0.960)".

    Args:
      metric: value, low, high, and `why` where one of them is None.
      plus: positive numbers get a sign, as differences do.
    """
    value, low, high = (number_text(metric[name], plus=plus) for name in ("value", "low", "high"))
    if not value:
        return f"undefined ({metric['why']})"
    return f"{value} ({low} to {high})" if low else f"{value} (no interval: {metric['why']})"


def number_text(number: float | None, *, plus: bool = False) -> str:
    """A number with three decimals, such as "−0.125"; "" for None."""
    if number is None:
        return ""
    return f"{number:{'+' if plus else ''}.3f}".replace("-", "−")


def decision_text(decision: Mapping, n_slices: int) -> str:
    """The decision rule of a person's label, as a sentence.

    Args:
      decision: from `DecisionRule.to_dict`.
      n_slices: of the person.
    """
    slices = f"{n_slices} slice{'' if n_slices == 1 else 's'}"
    made = f"from the {decision['aggregate'].replace('_', ' ')} of {slices}."
    if decision["rule"] == "threshold":
        return (
            f"{decision['positive']} if its probability is {decision['threshold']:g} or more; the "
            f"probability is {made}"
        )
    return f"The model's most probable label, {made}"


class Footnotes:
    """Numbered reasons for missing numbers, each once.

    Attributes:
      texts: the reasons.
    """

    def __init__(self):
        self.texts: list[str] = []

    def number(self, why: str) -> int:
        """The number of a reason, from 1."""
        if why not in self.texts:
            self.texts.append(why)
        return self.texts.index(why) + 1


# Keys of the part `explain` of metrics.json.
POINTERS = {
    "heat_map": "heat map's maximum in a lesion",
    "box": "best box's centre in a lesion",
    "top_slices": "slices with a lesion among the top three",
}


def explain_lines(metrics: Mapping) -> list[str]:
    """Printed lines on the part `explain` of metrics.json, if it is there."""
    result = metrics.get("explain") or {}
    return [
        f"{title}: {metric_text(result[name]['rate'])}, by chance "
        f"{number_text(result[name]['chance']['value'])}"
        for name, title in POINTERS.items()
        if result.get(name)
    ]


def auc_lines(metrics: Mapping) -> list[str]:
    """Printed lines on metrics.json: the AUCs of persons and of slices."""
    return [
        f"{level} AUC, {metrics['positive']} against the rest: {metric_text(metrics[level]['auc'])}"
        for level in ("person", "image")
    ]
