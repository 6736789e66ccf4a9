"""The paper's claims, and what the figures say of each by the rule that was written down before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from studies import figures
from studies.figures import LESS, main_arm
from studies.methods import METHODS
from studies.studies import LONG_TRAIN

# An advantage in AUC (or accuracy) that would not matter; written down before the first run.
MARGIN = 0.02

SUPPORTED, NOT_SUPPORTED, UNDECIDED = "supported", "not supported", "undecided"

Rows = Mapping[tuple[str, str, str], Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """That a figure is above 0.

    Attributes:
      text: in words.
      key: of the figure: test set, arm, metric.
    """

    text: str
    key: tuple[str, str, str]


def verdict(low: float, high: float) -> str:
    """The rule, of a figure that is claimed to be above 0 and has this interval."""
    if low > 0:
        return SUPPORTED
    if high < MARGIN:
        return NOT_SUPPORTED
    return UNDECIDED


def _less(method: str, other: str) -> str:
    return main_arm(method) + LESS + main_arm(other)


RANKING = "the ranking loss helps (NTS-Net's, which the paper takes over)"
FILL_IN_TRAINING = "filling the blank, in training only as in the paper, helps"

# Decided on when the first results were there.
LATER = ("per_pass", "long", "shift_per_pass")


def claims() -> dict[str, list[Claim]]:
    """Section -> its claims."""
    drenet = main_arm("drenet")
    rivals = {name: METHODS[name].title for name in ("resnet", "vgg", "densenet")}
    return {
        "rivals": [
            Claim(f"DRENet has a higher person AUC than {title}", ("phantoms", arm, "person_auc"))
            for arm, title in ((_less("drenet", name), title) for name, title in rivals.items())
        ]
        + [
            Claim(
                f"DRENet names the right one of three classes more often than {title}",
                ("phantoms", _less("drenet", name), "person_accuracy"),
            )
            for name, title in rivals.items()
        ],
        "rivals_covid_ct": [
            Claim(
                f"DRENet has a higher person AUC than {title} on COVID-CT, {how}",
                (
                    "covid_ct",
                    figures.covid_arm("drenet", pretrained)
                    + LESS
                    + figures.covid_arm(name, pretrained),
                    "person_auc",
                ),
            )
            for pretrained, how in ((False, "from scratch"), (True, "from phantoms"))
            for name, title in rivals.items()
        ],
        "per_pass": [
            Claim(text, ("phantoms", _less(method, other), "person_auc"))
            for text, method, other in (
                ("per-pass batch norm helps DRENet", "drenet_per_pass", "drenet"),
                ("per-pass batch norm helps NTS-Net", "nts_net_per_pass", "nts_net"),
                *(
                    (f"DRENet has a higher person AUC than {title}", "drenet_per_pass", name)
                    for name, title in rivals.items()
                ),
                ("DRENet is better than NTS-Net", "drenet_per_pass", "nts_net_per_pass"),
                (
                    "DRENet is better than ResNet18 trained for longer",
                    "drenet_per_pass",
                    "resnet_long",
                ),
                ("the weighted image helps", "drenet_per_pass", "no_weighted_image_per_pass"),
                ("three proposals are better than one", "drenet_per_pass", "k1_per_pass"),
                (FILL_IN_TRAINING, "fill_train_per_pass", "fill_never_per_pass"),
                ("filling the blank, always, helps", "drenet_per_pass", "fill_never_per_pass"),
            )
        ],
        "long": [
            Claim(
                f"DRENet{how} has a higher person AUC than {title} on {where}",
                (
                    train,
                    figures.long_arm(method, train) + LESS + figures.long_arm(name, train),
                    "person_auc",
                ),
            )
            for train, where in ((LONG_TRAIN, "phantoms"), ("covid_ct", "COVID-CT"))
            for method, how in (("drenet", ""), ("drenet_per_pass", " with per-pass batch norm"))
            for name, title in rivals.items()
        ],
        "lesions": [
            Claim(
                "the best box's centre lies in a lesion more often than chance",
                ("phantoms", drenet, "box_above_chance"),
            ),
            Claim(
                "the heat map's maximum lies in a lesion more often than chance",
                ("phantoms", drenet, "heat_map_above_chance"),
            ),
        ],
        "pieces": [
            Claim(text, ("phantoms", _less(method, other), "person_auc"))
            for text, method, other in (
                ("the weighted image helps", "drenet", "no_weighted_image"),
                ("two scales are better than one", "drenet", "one_scale"),
                ("three proposals are better than one", "drenet", "k1"),
                ("three proposals are better than six", "drenet", "k6"),
                (FILL_IN_TRAINING, "fill_train", "fill_never"),
                ("filling the blank, always, helps", "drenet", "fill_never"),
                (RANKING, "drenet", "no_ranking"),
                ("the gradient through the confidences helps", "drenet", "no_confidence_gradient"),
                ("DRENet is better than NTS-Net, from which it descends", "drenet", "nts_net"),
                (
                    "DRENet is better than a ResNet of as many processor seconds",
                    "drenet",
                    "resnet_long",
                ),
            )
        ],
        "aggregation": [
            Claim(
                "the person's AUC is above the slices'",
                ("phantoms", drenet, "person_less_slice_auc"),
            )
        ],
        "shift": _shift_claims("drenet", ""),
        "shift_per_pass": _shift_claims("drenet_per_pass", ", with per-pass batch norm"),
    }


def _shift_claims(method: str, how: str) -> list[Claim]:
    arms = figures.ShiftArms.of(method)
    return [
        Claim(
            f"fine-tuning on persons of B gains person AUC on B ({n} persons{how})",
            ("site_b", arms.fine_tuned[train] + LESS + arms.of_a, "person_auc"),
        )
        for train, n in figures.SITE_B_PERSONS.items()
    ]


def sentences(section: str, rows: Rows) -> str:
    """A line for each claim of a section: the verdict, and the figure it rests on."""
    lines = []
    for claim in claims()[section]:
        lines.append(f"- *{claim.text}*: {judged(claim.key, rows)}.")
    return "\n".join(lines)


def judged(key: tuple[str, str, str], rows: Rows) -> str:
    """The verdict on a figure that is claimed to be above 0, and the figure."""
    row = rows.get(key)
    if row is None:
        return "**not tested** (its runs were not made)"
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    return f"**{verdict(low, high)}** ({value:+.3f}; {low:+.3f} to {high:+.3f})"


def in_short() -> list[tuple[str, tuple[str, str, str], tuple[str, str, str]]]:
    """What most readers ask: in words, the figure as published, and with per-pass batch norm."""
    person_auc = {
        f"DRENet beats {METHODS[rival].title}": ("drenet", rival, "drenet_per_pass", rival)
        for rival in ("resnet", "vgg", "densenet")
    } | {
        "its weighted image helps": ("drenet", "no_weighted_image")
        + ("drenet_per_pass", "no_weighted_image_per_pass"),
        "filling the blank in training only helps": ("fill_train", "fill_never")
        + ("fill_train_per_pass", "fill_never_per_pass"),
        "filling it always helps": ("drenet", "fill_never")
        + ("drenet_per_pass", "fill_never_per_pass"),
    }
    return [
        (
            text,
            ("phantoms", _less(ours, other), "person_auc"),
            ("phantoms", _less(own, other_own), "person_auc"),
        )
        for text, (ours, other, own, other_own) in person_auc.items()
    ] + [
        (
            "its best box lies on a lesion more often than chance",
            ("phantoms", main_arm("drenet"), "box_above_chance"),
            ("phantoms", main_arm("drenet_per_pass"), "box_above_chance"),
        )
    ]


def counts(rows: Rows, later: bool) -> str:
    """How many claims have which verdict: of those decided on later, or of those from the start."""
    result = {SUPPORTED: 0, NOT_SUPPORTED: 0, UNDECIDED: 0, "not tested": 0}
    for section, of_section in claims().items():
        for claim in of_section if (section in LATER) == later else ():
            row = rows.get(claim.key)
            result[verdict(float(row["low"]), float(row["high"])) if row else "not tested"] += 1
    return ", ".join(f"{n} {name}" for name, n in result.items() if n)
