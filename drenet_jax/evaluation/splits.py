"""A whole split through the model: what validation and `evaluate` share."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from drenet_jax.data.batches import split_batches
from drenet_jax.data.records import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation.persons import SlicePredictions
from drenet_jax.evaluation.scoring import SliceScorer


def score_split(
    scorer: SliceScorer, variables: dict, data: PreparedData, split: str, fill: str
) -> tuple[SlicePredictions, np.ndarray]:
    """Scores every slice of a split exactly once.

    Args:
      scorer: the model.
      variables: its weights, replicated over the devices.
      data: what `prepare` wrote.
      split: `train`, `validation` or `test`; it must hold slices.
      fill: when the blank is filled (`data.fill`).

    Returns:
      the predictions, and the logits [N, C] in the same order.
    """
    columns: dict[str, list] = {
        name: [] for name in ("patient_id", "slice_name", "slice_index", "site", "label")
    }
    probabilities, logits = [], []
    batches = split_batches(data, split, batch_size=scorer.batch_size, fill=fill)
    n_batches = -(-data.n_slices[split] // scorer.batch_size)
    for batch in tqdm(batches, desc=f"score {split}", total=n_batches, unit="batch", leave=False):
        outputs = scorer(variables, batch["image"])
        probabilities.append(outputs["probabilities"])
        logits.append(outputs["logits"])
        for name, column in columns.items():
            column.extend(batch[name])
    assert probabilities, split
    predictions = SlicePredictions(
        labels=data.labels,
        patient_id=np.array(columns["patient_id"], np.str_),
        slice_name=np.array(columns["slice_name"], np.str_),
        slice_index=np.array(columns["slice_index"], np.int64),
        site=np.array(columns["site"], np.str_),
        label=np.array(columns["label"], np.int64),
        probabilities=np.concatenate(probabilities).astype(np.float64),
    )
    return predictions, np.concatenate(logits)


def positive_class(labels: tuple[str, ...], name: str) -> int:
    """The index of the label that counts as positive.

    Args:
      labels: names of the classes.
      name: `evaluation.positive_label`; "": the label that begins with "covid".

    Raises:
      InputError: there is no such label.
    """
    if name in labels:
        return labels.index(name)
    covid = [i for i, label in enumerate(labels) if label.lower().startswith("covid")]
    if name or len(covid) != 1:
        raise InputError(
            f"--config.evaluation.positive_label={name!r} names none of the labels "
            f"{', '.join(labels)}; name the one that counts as positive."
        )
    return covid[0]
