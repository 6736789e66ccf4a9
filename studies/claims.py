"""The claims, written down before their runs, and the rule that judges them."""

from __future__ import annotations

import dataclasses

# An advantage in AUC, or in the share of hits, that would not matter; the same in both directions.
MARGIN = 0.02

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NO_DIFFERENCE, UNDECIDED = "no relevant difference", "undecided"


@dataclasses.dataclass(frozen=True)
class Claim:
    """That an arm is better than another, or than chance.

    Attributes:
      text: in words.
      data: whose persons are tested.
      metric: person_auc, or heat_map or box: the share of hits less chance.
      arm: of `arms.ARMS`.
      other: the arm that it is compared with; "" for chance.
    """

    text: str
    data: str
    metric: str
    arm: str
    other: str = ""


# The first is the primary one. Nothing is corrected for their number.
CLAIMS = (
    Claim("DRENet is better than its own backbone", "phantoms", "person_auc", "drenet", "backbone"),
    Claim(
        "DRENet is better than its own backbone with equal compute",
        "phantoms",
        "person_auc",
        "drenet",
        "backbone_equal_compute",
    ),
    Claim(
        "DRENet's learned boxes are better than random ones",
        "phantoms",
        "person_auc",
        "drenet",
        "random_boxes",
    ),
    Claim("DRENet's best box lies on lesions", "phantoms", "box", "drenet"),
    Claim("DRENet's heat map peaks on lesions", "phantoms", "heat_map", "drenet"),
    Claim(
        "DRENet-Lite is better than its own backbone",
        "covid_ct_160",
        "person_auc",
        "drenet_lite",
        "imagenet_strong",
    ),
    Claim(
        "DRENet-Lite's learned boxes are better than random ones",
        "covid_ct_160",
        "person_auc",
        "drenet_lite",
        "drenet_lite_random_boxes",
    ),
    Claim(
        "ImageNet weights help",
        "covid_ct_160",
        "person_auc",
        "imagenet_strong",
        "scratch_strong",
    ),
    Claim(
        "strong augmentation helps",
        "covid_ct_160",
        "person_auc",
        "imagenet_strong",
        "imagenet",
    ),
    Claim(
        "a model that sees the surroundings of the lungs is better than one of lungs alone",
        "covid_ct_160",
        "person_auc",
        "imagenet_strong",
        "imagenet_strong_lungs",
    ),
)


def verdict(value: float, low: float, high: float) -> str:
    """The rule, of a difference that is claimed to be above 0, with its 95% interval.

    *Supported* needs an interval above 0 and a value of the margin or more, *contradicted* the
    mirror image of that; an interval within the margins is *no relevant difference*.
    """
    if low > 0 and value >= MARGIN:
        return SUPPORTED
    if high < 0 and value <= -MARGIN:
        return CONTRADICTED
    if low > -MARGIN and high < MARGIN:
        return NO_DIFFERENCE
    return UNDECIDED
