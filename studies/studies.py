"""Which runs each study is made of, the most telling first."""

from __future__ import annotations

import dataclasses

from studies.methods import METHODS

SEEDS = (0, 1, 2, 3, 4)

# Fine-tuning: a third of the steps, at a tenth of the learning rate.
FINE_TUNING_STEPS = 80
SITE_B_PERSONS = {"site_b_5": 5, "site_b_10": 10, "site_b_20": 20, "site_b": 40}
PERSONS = {"phantoms_20": 20, "phantoms_50": 50, "phantoms_100": 100, "phantoms": 200}
SHIFT_METHODS = ("drenet", "drenet_per_pass")
PERSONS_METHODS = ("drenet", "drenet_per_pass", "resnet")
MAIN = "phantoms_50"
COVID_CT_METHODS = ("drenet", "resnet", "nts_net", "densenet", "vgg")
# Three times the others' steps.
LONG_STEPS = 720
LONG_TRAIN = "phantoms"
LONG_METHODS = ("drenet_per_pass", "drenet", "resnet", "densenet", "vgg")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its scores.

    Attributes:
      method: a key of `METHODS`.
      train: the data set it is trained on.
      seed: of first weights, order and augmentation.
      tests: (data set, split) that the last weights are scored on.
      start: the run whose last weights it starts from; None: from random ones.
      parts: of those weights, "all" or "backbone".
      steps: instead of the method's own; 0: those.
      learning_rate_factor: on the base configuration's.
      validates: whether the weights that were best on the validation split are scored, too.
      budget: what its arm's name says of its steps; "": nothing.
    """

    method: str
    train: str
    seed: int
    tests: tuple[tuple[str, str], ...]
    start: Run | None = None
    parts: str = "all"
    steps: int = 0
    learning_rate_factor: float = 1.0
    validates: bool = False
    budget: str = ""

    @property
    def arm(self) -> str:
        """What it has in common with the runs of other seeds: its name in tables and files."""
        start = f"-from-{self.start.train}" if self.start else ""
        budget = f"-{self.budget}" if self.budget else ""
        return f"{self.method}-on-{self.train}{start}{budget}"

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.seed}"

    @property
    def weights(self) -> tuple[str, ...]:
        """Which of its weights are scored."""
        return ("last", "best") if self.validates else ("last",)


def phantom_run(method: str, seed: int, train: str = MAIN) -> Run:
    return Run(method, train, seed, tests=((train, "test"),))


def covid_ct_run(method: str, seed: int, pretrained: bool) -> Run:
    start = phantom_run(method, seed) if pretrained else None
    tests = (("covid_ct", "validation"),)
    return Run(method, "covid_ct", seed, tests, start, parts="backbone", validates=True)


def long_run(method: str, seed: int, train: str) -> Run:
    """On `LONG_TRAIN` or COVID-CT, from random weights."""
    short = (
        covid_ct_run(method, seed, pretrained=False)
        if train == "covid_ct"
        else phantom_run(method, seed, train)
    )
    return dataclasses.replace(short, steps=LONG_STEPS, budget="long")


def site_a_run(method: str, seed: int) -> Run:
    return Run(method, "site_a", seed, tests=(("site_a", "test"), ("site_b", "test")))


def fine_tuned_run(method: str, seed: int, train: str) -> Run:
    return Run(
        method,
        train,
        seed,
        tests=(("site_b", "test"),),
        start=site_a_run(method, seed),
        steps=FINE_TUNING_STEPS,
        learning_rate_factor=0.1,
    )


def site_b_run(method: str, seed: int) -> Run:
    return Run(method, "site_b", seed, tests=(("site_b", "test"),))


def _shift(method: str) -> list[Run]:
    return [
        *(site_a_run(method, seed) for seed in SEEDS),
        *(fine_tuned_run(method, seed, train) for train in SITE_B_PERSONS for seed in SEEDS),
        *(site_b_run(method, seed) for seed in SEEDS),
    ]


STUDIES = {
    "smallest": [phantom_run(method, seed) for seed in SEEDS for method in ("drenet", "resnet")],
    "phantoms": [phantom_run(method, seed) for method in METHODS for seed in SEEDS],
    "persons": [
        phantom_run(method, seed, train)
        for method in PERSONS_METHODS
        for train in PERSONS
        for seed in SEEDS
    ],
    "shift": [run for method in SHIFT_METHODS for run in _shift(method)],
    "covid_ct": [
        covid_ct_run(method, seed, pretrained)
        for method in COVID_CT_METHODS
        for pretrained in (False, True)
        for seed in SEEDS
    ],
    "long": [
        long_run(method, seed, train)
        for method in LONG_METHODS
        for train in (LONG_TRAIN, "covid_ct")
        for seed in SEEDS
    ],
}
