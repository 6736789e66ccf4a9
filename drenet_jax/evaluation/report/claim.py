"""CLAIM, the checklist for reports of AI in medical imaging: what a run can answer by itself.

Mongan, Moy and Kahn, Radiology: Artificial Intelligence 2020 (10.1148/ryai.2020200029); the 44
items are those of the 2024 update, Tejani et al., same journal (10.1148/ryai.240300), in short
words of our own. Read the original before you submit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from drenet_jax.evaluation.report.formatting import metric_text

# Number, section of the manuscript, what is to be reported.
ITEMS: tuple[tuple[int, str, str], ...] = (
    (1, "Title", "That this is a study of AI, and of which kind"),
    (2, "Abstract", "Summary of design, methods, results and conclusions"),
    (3, "Introduction", "Scientific and clinical background, intended use and role of the AI"),
    (4, "Introduction", "Aims, objectives and hypotheses"),
    (5, "Study design", "Prospective or retrospective"),
    (6, "Study design", "Goal of the study"),
    (7, "Data", "Sources of the data"),
    (8, "Data", "Who was included and who was not, by which criteria"),
    (9, "Data", "Pre-processing"),
    (10, "Data", "Selection of subsets of the data"),
    (11, "Data", "De-identification"),
    (12, "Data", "How missing data were handled"),
    (13, "Data", "Image acquisition protocol"),
    (14, "Reference standard", "How the true label was found"),
    (15, "Reference standard", "Why in this way"),
    (16, "Reference standard", "Who gave the labels, and their qualification"),
    (17, "Reference standard", "Annotation of the test set"),
    (18, "Reference standard", "Agreement between and within readers"),
    (19, "Partitions", "How data were assigned to partitions"),
    (20, "Partitions", "Level at which the partitions are disjoint"),
    (21, "Testing data", "Intended sample size"),
    (22, "Model", "Detailed description of the model"),
    (23, "Model", "Software libraries, frameworks and packages"),
    (24, "Model", "Initialisation of the parameters"),
    (25, "Training", "How it was trained"),
    (26, "Training", "How the final model was selected"),
    (27, "Training", "Ensembles"),
    (28, "Evaluation", "Metrics of performance"),
    (29, "Evaluation", "Measures of significance and uncertainty"),
    (30, "Evaluation", "Robustness or sensitivity analysis"),
    (31, "Evaluation", "Methods of explanation, and how they were validated"),
    (32, "Evaluation", "Evaluation on internal data"),
    (33, "Evaluation", "Testing on external data"),
    (34, "Evaluation", "Registration of a clinical trial"),
    (35, "Results: data", "Numbers of patients and examinations included and excluded"),
    (36, "Results: data", "Demographic and clinical characteristics in each partition"),
    (37, "Results: model", "Performance with its statistical uncertainty"),
    (38, "Results: model", "Estimates of diagnostic performance and their precision"),
    (39, "Results: model", "Analysis of failures"),
    (40, "Discussion", "Limitations"),
    (41, "Discussion", "Implications for practice, intended use and clinical role"),
    (42, "Other", "Where the full protocol or more technical details are"),
    (43, "Other", "Availability of software, trained model and data"),
    (44, "Other", "Funding, and the role of the funders"),
)


def claim_rows(
    *,
    metrics: Mapping[str, Any],
    design: str,
    ct: Mapping[str, Any],
    config: Mapping[str, Any],
    software: Mapping[str, str],
    n_excluded: int,
    n_sites: int,
    n_persons: Mapping[str, int],
) -> list[dict[str, int | str]]:
    """All items, answered as far as a run can.

    Args:
      metrics: what metrics.json holds.
      design: how persons were assigned, in a sentence.
      ct: the preprocessing settings.
      config: the training configuration.
      software: package -> version.
      n_excluded: files and persons that were excluded.
      n_sites: of the evaluated persons; unnamed ones count as one.
      n_persons: label -> evaluated persons.

    Returns:
      Of each item `number`, `part` (of the manuscript), `item`, `answer` ("" where the run has
      none) and `missing`: what is left to the authors; "" where nothing is.
    """
    model, optimizer, train = config["model"], config["optimizer"], config["train"]
    auc = metrics["person"]["auc"]
    kind = ", ".join(str(model[name]) for name in ("name", "backbone") if name in model)
    in_all = sum(n_persons.values())
    by_label = ", ".join(f"{n} {label}" for label, n in n_persons.items())
    weights = config["init"]["weights"]
    # Item -> the answer and what is missing.
    answers = {
        1: (f"Deep learning on chest CT ({kind}).", "the wording of the title"),
        9: (
            f"{ct['slices_per_person']} slices evenly spaced along the series; lung window, level "
            f"{ct['window_level_hu']:g} HU, width {ct['window_width_hu']:g} HU, 8 bits; lungs "
            f"segmented, cropped and resized to {ct['image_size_px']} x {ct['image_size_px']} "
            f'pixels; blank around the lungs filled with lung: "{config["data"]["fill"]}".',
            "",
        ),
        10: (
            f"A picked slice is kept if its lung area is at least {ct['min_area_share']:.0%} of "
            "the person's largest.",
            "whether the cohort itself is a selection",
        ),
        12: (
            f"Nothing was imputed. {n_excluded} files or persons were left out, see Cohort.",
            "persons without CT or label who never came into the cohort file",
        ),
        19: (design, ""),
        20: ("The person; checked whenever the data are opened.", "whether sites are shared"),
        21: (f"{in_all} persons were evaluated ({by_label}).", "how that number was chosen"),
        22: (f"{_listed(model)}.", ""),
        23: (", ".join(f"{name} {version}" for name, version in software.items()) + ".", ""),
        24: (
            f"Weights of {weights}." if weights else f"Random, seed {config['seed']}.",
            "what the weights were trained on" if weights else "",
        ),
        25: (
            f"Data: {_listed(config['data'], without=('dir', 'fill'))}. Optimiser: "
            f"{_listed(optimizer)}. Training: {_listed(train)}.",
            "how many models were tried",
        ),
        26: (
            "The checkpoint with the highest AUC of the validation persons; of equals, the one "
            "with the lowest cross-entropy of their slices.",
            "",
        ),
        27: (
            f"One model a person; aggregated over the person's slices by: {metrics['aggregate']}.",
            "",
        ),
        28: ("See Metrics; defined in docs/evaluation.md.", "which of them is the primary one"),
        29: (
            f"95% intervals, {metrics['draws']} bootstrap draws of persons, seed "
            f"{metrics['seed']}.",
            "",
        ),
        30: (
            f"Results of {n_sites} sites apart, see Sites." if n_sites > 1 else "",
            "analyses of your own" if n_sites > 1 else "all of it",
        ),
        31: (
            "predict shows the regions that the model chose, with scores.",
            "whether readers agree with them: not validated here",
        ),
        32: (f"This page: the {metrics['split']} persons of the same cohort.", ""),
        35: (
            f"See Cohort: {in_all} persons evaluated, {n_excluded} files or persons left out when "
            "the data were prepared.",
            "a flow diagram from the first list of patients on",
        ),
        36: ("Labels and sites only, see Cohort.", "age, sex, severity, scanners"),
        37: (f"See Metrics. AUC of persons: {metric_text(auc)}.", ""),
        38: ("See Metrics, with 95% intervals.", ""),
        39: ("See Worst misses.", "why they were missed, by a reader"),
        43: (
            f"drenet_jax {software['drenet_jax']}, Apache-2.0.",
            "whether the trained model and the data are available",
        ),
    }
    unanswered = ("", "all of it")
    return [
        dict(zip(("number", "part", "item", "answer", "missing"), (*item, *answer), strict=True))
        for item in ITEMS
        for answer in (answers.get(item[0], unanswered),)
    ]


def _listed(values: Mapping[str, object], without: Sequence[str] = ()) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if name not in without)
