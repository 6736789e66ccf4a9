"""What a slice shows beside its lungs, as features for small classifiers (docs/audit.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from drenet_jax.data.batches import CropGeometry, crop_geometries, split_batches
from drenet_jax.data.cohort_table import SPLITS
from drenet_jax.data.facts import GREY, NUMERIC, FactsTable
from drenet_jax.data.prepared_data import PreparedData
from drenet_jax.errors import InputError
from drenet_jax.evaluation.predictions import SlicePredictions

_MASK_PX = 32
_MOST_ITERATIONS = 5000


class Control(NamedTuple):
    """A small classifier.

    Attributes:
      title: for tables.
      claim: a clause that says that it predicts the labels.
      is_reference: it sees the lungs, and so disease too.
      is_wide: it has a thousand features or more.
    """

    title: str
    claim: str
    is_reference: bool = False
    is_wide: bool = False


LUNGS = "lungs"
CONTROLS = {
    "outside": Control(
        "image with its lungs removed", "pixels outside the lungs predict the labels", is_wide=True
    ),
    "mask": Control(
        "shape of the lungs", "the outline of the lungs alone predicts the labels", is_wide=True
    ),
    "facts": Control("facts of the files", "facts of the files alone predict the labels"),
    "grey": Control(
        "mean and deviation outside the lungs",
        "mean and deviation of the grey values outside the lungs predict the labels",
    ),
    "texture": Control(
        "texture outside the lungs", "compression and noise outside the lungs predict the labels"
    ),
    "site": Control("site", "the site alone predicts the labels"),
    LUNGS: Control(
        "lungs alone (filled)", "the lungs predict the labels", is_reference=True, is_wide=True
    ),
    "image": Control("whole crop", "the crop predicts the labels", is_reference=True, is_wide=True),
}

Network = Callable[[UInt8[np.ndarray, "slices size size"]], Float[np.ndarray, "slices features"]]


@dataclasses.dataclass(frozen=True, eq=False)
class ControlFeatures:
    """The features of all slices of a data set, and what is known of them.

    Attributes:
      slices: whose slices; the probabilities have no meaning.
      split: [N] str.
      features: control -> [N, F] float; NaN where a fact is not known.
      why_missing: control -> why it has none.
    """

    slices: SlicePredictions
    split: np.ndarray
    features: Mapping[str, Float[np.ndarray, "slices _"]]
    why_missing: Mapping[str, str]

    def scores(
        self,
        control: str,
        train: Bool[np.ndarray, " slices"],
        test: Bool[np.ndarray, " slices"],
        c: float,
    ) -> SlicePredictions:
        """The predictions of some slices by a logistic regression of others.

        Args:
          control: a key of `features`.
          train: the slices to learn from; at least two labels.
          test: the slices to score.
          c: the inverse of the penalty, after standardization.
        """
        features = self.features[control]
        # The median of the known ones, and a feature that says whether it is known.
        classifier = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
            StandardScaler(),
            LogisticRegression(C=c, max_iter=_MOST_ITERATIONS),
        ).fit(features[train], self.slices.label[train])
        tested = self.slices.of(test)
        probabilities = np.zeros((len(tested), len(tested.labels)))
        probabilities[:, classifier.classes_] = classifier.predict_proba(features[test])
        return dataclasses.replace(tested, probabilities=probabilities)


def control_features(data: PreparedData, batch_size: int, network: Network) -> ControlFeatures:
    """The features of every slice of a data set.

    Args:
      data: what `prepare` wrote.
      batch_size: slices that are read at once.
      network: frozen; gives the features of crops.

    Raises:
      InputError: the facts of the files are missing or are those of another data set.
    """
    table = FactsTable.read(data.records)
    columns: dict[str, list[Any]] = {
        name: [] for name in ("patient_id", "slice_name", "slice_index", "site", "label", "split")
    }
    seen: dict[str, list[np.ndarray]] = {name: [] for name in ("outside", "mask", LUNGS, "image")}
    n = sum(data.n_slices.values())
    with tqdm(total=n, desc="features", unit="slice", leave=False) as bar:
        for split in SPLITS:
            crops, filled = (
                split_batches(data, split, batch_size=batch_size, fill=fill)
                for fill in ("none", "always")
            )
            geometries = crop_geometries(data, split)
            for batch, lungs in zip(crops, filled, strict=True):
                places = [next(geometries) for _ in batch["image"]]
                seen["image"].append(network(batch["image"]))
                seen[LUNGS].append(network(lungs["image"]))
                seen["outside"].append(network(without_lungs(batch["image"], batch["lung_mask"])))
                seen["mask"].append(np.stack(list(map(shape_features, places))))
                for name, column in columns.items():
                    column.extend([split] * len(places) if name == "split" else batch[name])
                bar.update(len(places))
    features = {name: np.concatenate(parts) for name, parts in seen.items()}
    slices = SlicePredictions.from_columns(data.labels, columns, np.zeros((n, len(data.labels))))
    try:
        facts = table.of(slice_keys(slices))
    except KeyError as error:
        raise InputError(
            f"facts.csv of {data.records_name} has no row of slice {error.args[0][1]!r}; "
            "prepare the data again."
        ) from error
    kinds = [one_hot(column) for column in facts.categorical.values()]
    is_grey = np.isin(NUMERIC, GREY)
    features["facts"] = np.concatenate([facts.numeric[:, ~is_grey], *kinds], axis=1)
    features["grey"] = facts.numeric[:, is_grey]
    features["texture"] = facts.texture
    why_missing = {}
    if len(np.unique(slices.site)) > 1:
        features["site"] = one_hot(slices.site)
    else:
        why_missing["site"] = "there is one site, or none is given"
    return ControlFeatures(slices, np.array(columns["split"], np.str_), features, why_missing)


def slice_keys(slices: SlicePredictions) -> list[tuple[str, str, int]]:
    """(patient_id, slice_name, slice_index) of each slice."""
    columns = (slices.patient_id, slices.slice_name, slices.slice_index)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def one_hot(column: np.ndarray) -> Float[np.ndarray, "slices values"]:
    """[N, values] 0 or 1, the values in the order of their names."""
    return (column[:, None] == np.unique(column)).astype(np.float64)


def without_lungs(
    images: UInt8[np.ndarray, "slices size size"], masks: Bool[np.ndarray, "slices size size"]
) -> UInt8[np.ndarray, "slices size size"]:
    """The crops with their lungs painted with the mean of what lies around them."""
    removed = images.copy()
    for image, mask in zip(removed, masks, strict=True):
        if not mask.all():
            image[mask] = np.uint8(round(float(image[~mask].mean())))
    return removed


def shape_features(place: CropGeometry) -> Float[np.ndarray, " features"]:
    """The lungs in the crop, 32 × 32; their area, the box's height over width, the eccentricity."""
    mask = place.lung_mask.astype(np.float32)
    y0, x0, y1, x1 = place.box
    small = cv2.resize(mask, (_MASK_PX, _MASK_PX), interpolation=cv2.INTER_AREA)
    aspect = (y1 - y0) / (x1 - x0)
    return np.r_[small.ravel(), mask.mean(), aspect, eccentricity(place.lung_mask)]


def eccentricity(mask: Bool[np.ndarray, "height width"]) -> float:
    """Of the ellipse with the mask's second moments, 0 to 1, as scikit-image's `regionprops`."""
    points = np.argwhere(mask)
    if len(points) < 2:
        return 0.0
    small, large = np.linalg.eigvalsh(np.cov(points.T, bias=True))
    return float(np.sqrt(1 - max(small, 0.0) / large))
