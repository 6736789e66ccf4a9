"""A whole split through the model: what validation and `evaluate` share."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from drenet_jax import parallel
from drenet_jax.data.batches import split_batches
from drenet_jax.data.records import PreparedData
from drenet_jax.evaluation.persons import SlicePredictions
from drenet_jax.evaluation.scoring import SliceScorer, check_finite


def score_split(
    scorer: SliceScorer,
    variables: dict,
    data: PreparedData,
    split: str,
    fill: str,
    *,
    watch: Callable[[np.ndarray, dict[str, np.ndarray]], None] | None = None,
) -> tuple[SlicePredictions, np.ndarray]:
    """Scores every slice of a split exactly once, in the order of the records.

    With several hosts, each scores its part of every batch, and all get the whole result.

    Args:
      scorer: the model.
      variables: its weights, replicated over the devices.
      data: what `prepare` wrote.
      split: `train`, `validation` or `test`; it must hold slices.
      fill: when the blank is filled (`data.fill`).
      watch: is shown this host's images of each batch, uint8 [b, S, S], and what the scorer says of
        them.

    Returns:
      the predictions, and the logits [N, C] in the same order.

    Raises:
      InputError: a result is not finite, or a batch does not fit the memory.
    """
    columns: dict[str, list] = {
        name: [] for name in ("patient_id", "slice_name", "slice_index", "site", "label")
    }
    probabilities, logits = [], []
    batch_size = scorer.batch_size * parallel.host_count()
    # Read once for the scorer, which is a batch ahead, and once for what belongs to its results.
    batches, images = itertools.tee(split_batches(data, split, batch_size=batch_size, fill=fill))
    scored = scorer.padded(variables, (batch["image"] for batch in images))
    for batch, outputs in tqdm(
        zip(batches, scored, strict=True),
        desc=f"score {split}",
        total=-(-data.n_slices[split] // batch_size),
        unit="batch",
        leave=False,
        disable=not parallel.is_first_host(),
    ):
        probabilities.append(outputs["probabilities"])
        logits.append(outputs["logits"])
        for name, column in columns.items():
            column.extend(batch[name])
        if watch is not None:
            n = len(batch["image"])
            watch(batch["image"], {name: array[:n] for name, array in outputs.items()})
    assert probabilities, split
    # Hosts follow each other in a batch, and the last batch alone is not full: padding comes last.
    n = len(columns["label"])
    found_probabilities = parallel.join_rows(np.stack(probabilities))[:n]
    found_logits = parallel.join_rows(np.stack(logits))[:n]
    check_finite(found_logits)
    predictions = SlicePredictions(
        labels=data.labels,
        patient_id=np.array(columns["patient_id"], np.str_),
        slice_name=np.array(columns["slice_name"], np.str_),
        slice_index=np.array(columns["slice_index"], np.int64),
        site=np.array(columns["site"], np.str_),
        label=np.array(columns["label"], np.int64),
        probabilities=found_probabilities.astype(np.float64),
    )
    return predictions, found_logits
