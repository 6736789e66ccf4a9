"""From a person's files to a diagnosis: reads, scores, aggregates and decides."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from drenet_jax.ct.lung_crops import to_source
from drenet_jax.ct.prepared_series import PreparedPerson, SampledSlice, input_image
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.sources import CtError
from drenet_jax.evaluation.overlays import LeftOutSlice, ScoredBox, SlicePicture
from drenet_jax.evaluation.predictor import Predictor

if TYPE_CHECKING:
    from drenet_jax.ct.dicom.instances import SourceInstance

PathOrPaths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """A person's diagnosis and what a report shows of it.

    Attributes:
      result: what `predict` writes to `result.json`. A slice's `index`, from 0, and its boxes are
        in the file as stored. For a slice of a volume `axes` has the axes of the array (0 for i, 1
        for j, 2 for k, as nibabel and SimpleITK index it) that `index`, y and x count along:
        usually 2, 1 and 0. Otherwise it is null, and `index` counts the ordered series.
      pictures: the kept slices with their boxes and heat maps.
      left_out: the sampled slices that were not kept.
      instances: the DICOM instances of the kept slices, if requested. They identify the patient;
        nothing else here does.
    """

    result: dict[str, Any]
    pictures: tuple[SlicePicture, ...]
    left_out: tuple[LeftOutSlice, ...]
    instances: tuple[SourceInstance, ...] = ()


class PersonPipeline:
    """A predictor and the reader of the files that it is applied to.

    Attributes:
      predictor: the trained model.
    """

    def __init__(self, predictor: Predictor, reader: Reader | None = None) -> None:
        self.predictor = predictor
        self._reader = reader or Reader()
        # The reader's process ends with this object, or when Python does.
        weakref.finalize(self, self._reader.close)

    def slices(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Scores prepared slices, see `Predictor.slices`."""
        return self.predictor.slices(images)

    def person(self, path: PathOrPaths, *, series_uid: str = "") -> dict[str, Any]:
        """The diagnosis of one person: what `predict` writes to `result.json`.

        Files are decoded in a child process, which a damaged one may bring down.

        Args:
          path: a folder or a zip of DICOM files or of PNG/JPEG slices (lung window), a NIfTI,
            MetaImage or NRRD volume, or a single slice; or several of these.
          series_uid: takes the DICOM series with this SeriesInstanceUID, not the largest.

        Raises:
          CtError: `path` holds no chest CT slice; its `why` gives the reason without the path.
        """
        return self.predict(path, series_uid=series_uid).result

    def predict(
        self,
        path: PathOrPaths,
        *,
        series_uid: str = "",
        with_instances: bool = False,
        with_hu: bool = False,
        watch: Callable[[str], None] = lambda stage: None,
    ) -> PersonResult:
        """As `person`, with the pictures of a report.

        Args:
          path: as for `person`.
          series_uid: as for `person`.
          with_instances: also return the slices' DICOM instances; an InputError if they are no
            DICOM, or not all of one study.
          with_hu: also return the pictures in HU, for the viewer of a report.
          watch: called with "reading" some times a second while files are read, then once with
            "scoring"; what it raises ends the work.
        """
        predictor = self.predictor
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            prepared_later = pool.submit(
                self._reader.prepare,
                [Path(name) for name in paths],
                predictor.meta.ct,
                series_uid=series_uid,
                with_instances=with_instances,
                with_hu=with_hu,
                tick=lambda: watch("reading"),
            )
            # While the child process reads.
            predictor.scorer.compile()
            prepared = prepared_later.result()
        watch("scoring")
        if not prepared.kept:
            raise _nothing_kept(paths, prepared)
        scored = predictor.slices(
            np.stack([self._input_image(sampled) for sampled in prepared.kept])
        )
        person = predictor.rule.person(scored["probabilities"])
        label = predictor.rule.label_of(person)
        pictures = tuple(
            self._picture(sampled, {name: array[i] for name, array in scored.items()}, label)
            for i, sampled in enumerate(prepared.kept)
        )
        return PersonResult(
            result=self._result(prepared, pictures, person, label),
            pictures=pictures,
            left_out=tuple(
                LeftOutSlice(sampled.file_index, sampled.name, sampled.source, sampled.why_excluded)
                for sampled in prepared.picked
                if not sampled.kept
            ),
            instances=tuple(
                sampled.instance for sampled in prepared.kept if with_instances and sampled.instance
            ),
        )

    def _input_image(self, sampled: SampledSlice) -> np.ndarray:
        meta = self.predictor.meta
        return input_image(sampled, meta.config.data.fill, meta.ct, meta.fill_seed)

    def _picture(
        self, sampled: SampledSlice, scored: Mapping[str, np.ndarray], label: int
    ) -> SlicePicture:
        assert sampled.source_box is not None  # a kept slice shows lungs
        edges = to_source(scored["boxes"], sampled.source_box, self.predictor.meta.ct.image_size_px)
        boxes = zip(edges.tolist(), scored["part_probabilities"][:, label].tolist(), strict=True)
        return SlicePicture(
            index=sampled.file_index,
            name=sampled.name,
            source=sampled.source,
            source_box=sampled.source_box,
            probabilities=self._by_label(scored["probabilities"]),
            boxes=[ScoredBox(y0, x0, y1, x1, p) for (y0, x0, y1, x1), p in boxes],
            heat_map=scored["heat_maps"][label],
            crop_heat_maps=scored["crop_heat_maps"][label],
            hu=sampled.hu,
            pixel_aspect=sampled.pixel_aspect,
        )

    def _result(
        self,
        prepared: PreparedPerson,
        pictures: Sequence[SlicePicture],
        person: np.ndarray,
        label: int,
    ) -> dict[str, Any]:
        predictor = self.predictor
        record = predictor.validation_record
        return {
            "person": {
                "label": predictor.meta.labels[label],
                "probabilities": self._by_label(person),
                "n_slices": len(pictures),
                "validation": record
                and record.observed_rate(
                    label,
                    person[label],
                    calibrated=predictor.temperature is not None,
                    aggregate=predictor.rule.aggregate,
                ),
            },
            "slices": [
                {
                    "name": picture.name,
                    "index": picture.index,
                    "probabilities": picture.probabilities,
                    "boxes": [_as_stored(box, sampled) for box in picture.boxes],
                    # Of a volume: which axes of its array, 0 for i to 2 for k, these count along.
                    "axes": sampled.file_axes and sampled.file_axes._asdict(),
                }
                for picture, sampled in zip(pictures, prepared.kept, strict=True)
            ],
            "excluded": [{"name": row.name, "why": row.why} for row in prepared.excluded],
            "notes": list(prepared.notes),
            "model": predictor.identity,
            "runtime": predictor.scorer.runtime,
            "decision": predictor.rule.to_dict(),
        }

    def _by_label(self, values: np.ndarray) -> dict[str, float]:
        return dict(zip(self.predictor.meta.labels, values.tolist(), strict=True))


def _as_stored(box: ScoredBox, sampled: SampledSlice) -> dict[str, float]:
    """A box as `result.json` has it, in pixels of the slice as its file stores it."""
    edges = sampled.orientation.stored_box(box.edges, sampled.source.shape)
    return {**dict(zip(("y0", "x0", "y1", "x1"), edges, strict=True)), "score": box.probability}


def _nothing_kept(paths: Sequence[str | os.PathLike[str]], prepared: PreparedPerson) -> CtError:
    names = ", ".join(str(path) for path in paths[:3])
    first = prepared.excluded[0]
    why = f"({first.name}: {first.why.rstrip('.')})"
    return CtError(
        f"invalid input: no lungs were found in {names} {why}; give axial chest CT slices.",
        f"no lungs {why}",
        prepared.excluded,
    )
