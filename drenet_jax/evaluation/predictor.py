"""From a person's files to a diagnosis, with a trained model."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from drenet_jax import parallel
from drenet_jax.ct.orientation import Box
from drenet_jax.ct.prepared_series import PreparedPerson, SampledSlice, filled
from drenet_jax.ct.reader import Reader
from drenet_jax.ct.sources import CtError
from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import ValidationRecord, apply_temperature
from drenet_jax.evaluation.decisions import DecisionRule
from drenet_jax.evaluation.overlays import LeftOutSlice, SlicePicture
from drenet_jax.evaluation.scoring import SliceScorer
from drenet_jax.models.build import Model, build_model, variable_shapes
from drenet_jax.models.checkpoints import Checkpoints, Meta, PyTree

if TYPE_CHECKING:
    from drenet_jax.ct.dicom.instances import SourceInstance


@dataclasses.dataclass(frozen=True)
class PersonResult:
    """What the model says of one person.

    Attributes:
      result: what `predict` writes to `result.json`. A slice's `index`, from 0,
        and its boxes are places in the file as stored. For a slice of a volume `axes` has the axes
        of the array (0 for i, 1 for j, 2 for k, as nibabel and SimpleITK index it) that `index`, y
        and x count along: usually 2, 1 and 0. Otherwise it is null, and `index` is the place in the
        ordered series.
      pictures: the kept slices with their boxes and heat maps, for the report.
      left_out: the picked slices that were not kept.
      instances: the DICOM instances of the kept slices, if they were asked for. They identify the
        patient; nothing else here does.
    """

    result: dict
    pictures: tuple[SlicePicture, ...]
    left_out: tuple[LeftOutSlice, ...]
    instances: tuple[SourceInstance, ...] = ()


class Predictor:
    """A trained model with all that it needs to know: labels, settings, weights.

    Attributes:
      meta: of the checkpoint.
      identity: what `result.json` says of the model.
      scorer: the compiled forward pass.
      variables: its weights, replicated over the devices.
      temperature: by which `slices` divides the logits before the softmax, or None.
      rule: how a person's label is made of the slices' probabilities.
      experience: what it said of the validation persons, or None.
    """

    def __init__(
        self,
        meta: Meta,
        step: int,
        workdir: Path,
        scorer: SliceScorer,
        variables: dict,
        temperature: float | None = None,
        experience: ValidationRecord | None = None,
        reader: Reader | None = None,
        rule: DecisionRule | None = None,
    ):
        """See `load`; without a `rule` it is that of the checkpoint's config."""
        self.meta = meta
        self.rule = rule or DecisionRule.of(meta.labels, meta.config.evaluation)
        self.identity = {
            "name": meta.config.model.name,
            "workdir": str(workdir),
            "step": step,
            "labels": list(meta.labels),
            "ct": meta.ct.to_dict(),
            "version": meta.version,
            "temperature": 1.0 if temperature is None else temperature,
            "trained_on": meta.trained_on,
        }
        self.temperature = temperature
        self.experience = experience
        self.scorer = scorer
        self.variables = parallel.put_on_devices(variables)
        self._reader = reader or Reader()
        # The reader's process ends with this object, or when Python does.
        weakref.finalize(self, self._reader.close)

    @classmethod
    def load(
        cls,
        workdir: str | os.PathLike,
        *,
        calibrated: bool = False,
        latest: bool = False,
        reader: Reader | None = None,
        threshold: float | None = None,
        aggregate: str | None = None,
    ) -> Predictor:
        """The best checkpoint of `workdir`.

        Args:
          workdir: of the run.
          calibrated: use the temperature that suited the validation slices best.
          latest: the latest checkpoint instead, which no validation has chosen.
          reader: of the persons' files; closed with the predictor.
          threshold: of two labels, a person gets the positive one from this probability on; None:
            as the config of the run says, as in `evaluate`.
          aggregate: how a person's probabilities are made of the slices' (`aggregate.AGGREGATES`);
            None: likewise.

        Raises:
          InputError: `workdir` holds no checkpoint that can be used, or none with a temperature; or
            the threshold or the aggregate cannot be used with its labels.
        """
        with Checkpoints.of(workdir, flag="--workdir") as checkpoints:
            step = checkpoints.latest_step if latest else checkpoints.best_step
            assert step is not None  # `Checkpoints.of` refuses a workdir without any
            meta = checkpoints.meta(step)
            rule = DecisionRule.of(
                meta.labels, meta.config.evaluation, threshold=threshold, aggregate=aggregate
            )
            model = build_model(meta.config, len(meta.labels))
            batch_size = parallel.best_batch_size(meta.config.evaluation.batch_size)
            scorer = SliceScorer(model, batch_size, heat_maps=True)
            variables = _weights(checkpoints, step, model, scorer)
            temperature = _temperature(checkpoints, step, workdir) if calibrated else None
            validation = checkpoints.validation(step)
        experience = None if validation is None else ValidationRecord.from_dict(validation)
        return cls(
            meta, step, Path(workdir), scorer, variables, temperature, experience, reader, rule
        )

    def slices(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Scores prepared slices.

        Args:
          images: uint8 [N, S, S], lung crops of the model's input size, masked (or filled, if
            `data.fill` is "always").

        Returns:
          probabilities (calibrated, if asked for), logits, raw_logits [N, C]; boxes [N, K, 4]
          (y0, x0, y1, x1 in pixels of the model's input, half open, best first); scores [N, K] of
          the proposal head; part_probabilities [N, K, C], what each box alone predicts; heat_maps
          [N, C, h, w], Grad-CAM of each class over the input, at least 0, not scaled;
          crop_heat_maps [N, C, K, h', w'], the same over each box.

        Raises:
          InputError: the images have another type or size.
        """
        size = self.meta.ct.image_size_px
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (size, size):
            raise InputError(
                f"the images are {images.dtype} {list(images.shape)}; "
                f"this model takes uint8 [N, {size}, {size}]."
            )
        if not len(images):
            raise InputError("there are no images; give at least one.")
        scored = self.scorer(self.variables, images)
        if self.temperature is not None:
            scored["probabilities"] = apply_temperature(scored["logits"], self.temperature)
        return scored

    def person(
        self, path: str | os.PathLike | Sequence[str | os.PathLike], *, series_uid: str = ""
    ) -> dict:
        """The diagnosis of one person: what `predict` writes to `result.json`.

        Files are decoded in a child process, which a damaged one may bring down.

        Args:
          path: a folder or a zip of DICOM files or of PNG/JPEG slices (lung window), a NIfTI,
            MetaImage or NRRD volume, or a single slice; or several of these.
          series_uid: takes the DICOM series with this SeriesInstanceUID, not the largest.

        Raises:
          CtError: `path` holds no chest CT slice; its `why` says why without naming the path.
        """
        return self.explain(path, series_uid=series_uid).result

    def explain(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        series_uid: str = "",
        with_instances: bool = False,
        watch: Callable[[str], None] | None = None,
    ) -> PersonResult:
        """As `person`, with the pictures that show why.

        Args:
          path: as for `person`.
          series_uid: as for `person`.
          with_instances: also say from which DICOM instances the slices come; an InputError if they
            are no DICOM, or not all of one study.
          watch: called with "reading" some times a second while files are read, then once with
            "scoring"; what it raises ends the work.
        """
        watch = watch or (lambda stage: None)
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(
                self._reader.prepare,
                [Path(item) for item in paths],
                self.meta.ct,
                series_uid=series_uid,
                with_instances=with_instances,
                tick=lambda: watch("reading"),
            )
            # The child reads meanwhile.
            self.scorer.compile()
            prepared = reading.result()
        watch("scoring")
        if not prepared.kept:
            raise _nothing_kept(paths, prepared)
        images = np.stack([self._input_image(picked) for picked in prepared.kept])
        scored = self.slices(images)
        result = self._person_result(prepared, scored)
        if not with_instances:
            return result
        return dataclasses.replace(
            result,
            instances=tuple(
                picked.instance for picked in prepared.kept if picked.instance is not None
            ),
        )

    def _input_image(self, picked: SampledSlice) -> np.ndarray:
        if self.meta.config.data.fill != "always":
            return picked.masked
        return filled(picked, self.meta.ct, self.meta.fill_seed)

    def _person_result(self, prepared: PreparedPerson, scored: dict) -> PersonResult:
        labels = self.meta.labels
        person = self.rule.person(scored["probabilities"])
        predicted = self.rule.label_of(person)
        pictures = []
        for i, picked in enumerate(prepared.kept):
            assert picked.source_box is not None  # a kept slice shows lungs
            pictures.append(
                SlicePicture(
                    index=picked.file_index,
                    name=picked.name,
                    source=picked.source,
                    source_box=picked.source_box,
                    probabilities=_by_label(labels, scored["probabilities"][i]),
                    boxes=_source_boxes(
                        scored["boxes"][i],
                        scored["part_probabilities"][i, :, predicted],
                        picked.source_box,
                        self.meta.ct.image_size_px,
                    ),
                    heat_map=scored["heat_maps"][i, predicted],
                    crop_heat_maps=scored["crop_heat_maps"][i, predicted],
                )
            )
        result = {
            "person": {
                "label": labels[predicted],
                "probabilities": _by_label(labels, person),
                "n_slices": len(prepared.kept),
                "validation": self.experience
                and self.experience.observed_rate(
                    predicted,
                    person[predicted],
                    calibrated=self.temperature is not None,
                    aggregate=self.rule.aggregate,
                ),
            },
            "slices": [
                {
                    "name": picture.name,
                    "index": picture.index,
                    "probabilities": picture.probabilities,
                    "boxes": [_as_stored(box, picked) for box in picture.boxes],
                    # Of a volume: which axes of its array, 0 for i to 2 for k, these count along.
                    "axes": picked.file_axes and picked.file_axes._asdict(),
                }
                for picture, picked in zip(pictures, prepared.kept, strict=True)
            ],
            "excluded": [{"name": item.name, "why": item.why} for item in prepared.excluded],
            "notes": list(prepared.notes),
            "model": self.identity,
            "decision": self.rule.to_dict(),
        }
        left_out = (
            LeftOutSlice(item.file_index, item.name, item.source, item.why_excluded)
            for item in prepared.picked
            if not item.kept
        )
        return PersonResult(result, tuple(pictures), tuple(left_out))


def _weights(checkpoints: Checkpoints, step: int, model: Model, scorer: SliceScorer) -> PyTree:
    """The weights of a checkpoint, read while the scorer is traced, which shows that they fit."""
    shapes = checkpoints.weight_shapes(step)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        reading = pool.submit(checkpoints.weights, step, shapes)
        # Orbax has little to do in Python, but would wait 5 ms for its turn each time.
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(5e-4)
        try:
            scorer.trace(shapes)
        except Exception:
            # Only now: the model's own shapes take as long as the scorer's trace.
            checkpoints.check_weights(step, variable_shapes(model))
            raise
        finally:
            sys.setswitchinterval(usual_s)
        return reading.result()


def _temperature(checkpoints: Checkpoints, step: int, workdir: str | os.PathLike) -> float:
    """What training fitted on the validation slices when it wrote the checkpoint."""
    figures = checkpoints.figures(step)
    temperature = figures.get("temperature")
    if temperature is None:
        raise InputError(
            f"--calibrated: the checkpoint of {workdir} has no temperature (no validation slices, "
            "none that suits them, or a run of an older version); leave the flag out."
        )
    return temperature


def _by_label(labels: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {label: float(value) for label, value in zip(labels, values, strict=True)}


def _source_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    source_box: Box,
    image_size_px: int,
) -> list[dict[str, float]]:
    """Boxes of the model's input, clipped to it, in pixels of the original slice."""
    y0, x0, y1, x1 = source_box
    scale = np.array([y1 - y0, x1 - x0] * 2) / image_size_px
    offset = np.array([y0, x0] * 2)
    edges = np.clip(boxes, 0, image_size_px) * scale + offset
    return [
        {
            **dict(zip(("y0", "x0", "y1", "x1"), map(float, box), strict=True)),
            "score": float(score),
        }
        for box, score in zip(edges, scores, strict=True)
    ]


def _as_stored(box: Mapping[str, float], picked: SampledSlice) -> dict[str, float]:
    """A box of the upright slice in pixels of the slice as its file has it."""
    edges = picked.orientation.stored_box(
        (box["y0"], box["x0"], box["y1"], box["x1"]), picked.source.shape
    )
    return {**dict(zip(("y0", "x0", "y1", "x1"), edges, strict=True)), "score": box["score"]}


def _nothing_kept(paths: Sequence, prepared: PreparedPerson) -> CtError:
    names = ", ".join(str(path) for path in paths[:3])
    first = prepared.excluded[0]
    result = f"({first.name}: {first.why.rstrip('.')})"
    return CtError(
        f"invalid input: no lungs were found in {names} {result}; give axial chest CT slices.",
        f"no lungs {result}",
        prepared.excluded,
    )
