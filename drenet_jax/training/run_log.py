"""The log of a run: `metrics.jsonl`, and events for TensorBoard."""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

import cv2
import numpy as np
import tensorflow as tf
from flax.metrics.tensorboard import SummaryWriter
from jaxtyping import Float, UInt8

from drenet_jax.errors import InputError
from drenet_jax.training.experiment_tracking import Tracker

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

# Proposal plots have tiles of at least this size; smaller ones leave no room for the scores.
_TILE_PX = 224
_GAP_PX = 4
_BOX_RGB = (255, 40, 40)


class RunLog:
    """The log of a run that may be killed at any moment and resumes from its last checkpoint.

    `metrics.jsonl` has a line for each validation and is complete at any moment. TensorBoard events
    are flushed with each validation, so that training does not wait for the disk in between.

    Attributes:
      tracker: gets all scalars too, if it is set.
    """

    tracker: Tracker | None = None

    def __init__(self, workdir: Path, start_step: int):
        """Opens the log of `workdir` and drops the entries after `start_step`.

        Those were written before a checkpoint that was not completed, and are made again.

        Args:
          workdir: of the run; an existing folder.
          start_step: updates made so far, 0 for a new run.
        """
        self._path = workdir / METRICS_FILE
        self._lines = read_lines(self._path, start_step)
        if self._path.exists():
            self._write_lines()
        folder = workdir / EVENTS_FOLDER
        folder.mkdir(exist_ok=True)
        for path in sorted(folder.glob("events.out.tfevents.*")):
            _drop_later_events(path, start_step)
        self._events = SummaryWriter(str(folder), auto_flush=False)

    def step(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Logs a step's losses, its learning rate and its gradient norm to TensorBoard."""
        self._scalars(step, "train", metrics)

    def validation(
        self,
        step: int,
        epoch: float,
        train: Mapping[str, float],
        validation: Mapping[str, float | None],
        warnings: Sequence[str] = (),
    ) -> None:
        """Adds a line to `metrics.jsonl`, and logs the validation metrics to TensorBoard.

        Args:
          step: updates made so far.
          epoch: passes over the training slices so far.
          train: means over the steps since the last validation.
          validation: metrics of the validation split; None where they are not defined.
          warnings: printed since the last line; the line has the key only if there are any.
        """
        line = {
            "step": step,
            "epoch": round(epoch, 3),
            "train": dict(train),
            "validation": dict(validation),
        }
        if warnings:
            line["warnings"] = list(warnings)
        self._lines.append(line)
        self._write_lines()
        self._scalars(step, "validation", validation)
        self.flush()

    def image(self, step: int, image: UInt8[np.ndarray, "height width 3"]) -> None:
        """Logs an RGB image of the validation split to TensorBoard."""
        self._events.image("validation/proposals", image, step)
        self.flush()

    def flush(self) -> None:
        """Returns when all events are in their file."""
        self._events.flush()

    def close(self, *, succeeded: bool = True) -> None:
        """Flushes and closes the event file, and ends the tracker's run.

        Args:
          succeeded: whether training reached its end.
        """
        self._events.close()
        if self.tracker is not None:
            self.tracker.close(succeeded=succeeded)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        self.close(succeeded=kind is None)

    def _write_lines(self) -> None:
        scratch = self._path.with_suffix(".unfinished")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        scratch.replace(self._path)

    def _scalars(self, step: int, group: str, values: Mapping[str, SupportsFloat | None]) -> None:
        scalars = {f"{group}/{name}": float(x) for name, x in values.items() if x is not None}
        for tag, value in scalars.items():
            self._events.scalar(tag, value, step)
        if self.tracker is not None:
            self.tracker.log(step, scalars)


def read_lines(path: Path, last_step: int) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` up to a step; none if there is no such file.

    Raises:
      InputError: the file is damaged.
    """
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["step"] <= last_step]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}); restore it from a copy, or remove its damaged lines, "
            "by which train.patience_epochs counts."
        ) from error


def read_scalars(workdir: Path, last_step: int) -> dict[int, dict[str, float]]:
    """The scalars of each step up to `last_step`, by their TensorBoard tags."""
    rows: dict[int, dict[str, float]] = collections.defaultdict(dict)
    for path in sorted((workdir / EVENTS_FOLDER).glob("events.out.tfevents.*")):
        for record in _whole_records(path):
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                is_scalar = value.metadata.plugin_data.plugin_name == "scalars"
                if is_scalar and event.step <= last_step:
                    rows[event.step][value.tag] = float(tf.make_ndarray(value.tensor))
    # Events have 32 bits only.
    for line in read_lines(workdir / METRICS_FILE, last_step):
        validation = {f"validation/{name}": x for name, x in line["validation"].items()}
        rows[line["step"]] |= {tag: x for tag, x in validation.items() if x is not None}
    return rows


def _drop_later_events(path: Path, last_step: int) -> None:
    """Rewrites a file of events without those after `last_step` and without a torn end."""
    scratch = path.with_name(f".{path.name}.unfinished")
    last = 0
    with tf.io.TFRecordWriter(str(scratch)) as writer:
        for record in _whole_records(path):
            step = tf.compat.v1.Event.FromString(record).step
            if step <= last_step:
                writer.write(record)
                last = step
    scratch.replace(path)
    if not last:
        path.unlink()  # its header only


def _whole_records(path: Path) -> Iterator[bytes]:
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            yield record.numpy()
    except tf.errors.DataLossError:
        # A killed run leaves half an event at the end.
        return


def proposal_grid(
    images: UInt8[np.ndarray, "slices size size"],
    boxes: Float[np.ndarray, "slices proposals 4"],
    scores: Float[np.ndarray, "slices proposals"],
) -> UInt8[np.ndarray, "height width 3"]:
    """An RGB grid of slices with their proposals and scores, the best of a slice drawn on top.

    Args:
      images: slices.
      boxes: y0, x0, y1, x1 in pixels of the slices, half open, best first; may be none.
      scores: of the proposals.
    """
    n, size = len(images), images.shape[1]
    factor = max(1, math.ceil(_TILE_PX / size))
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    tile_px = size * factor
    pitch_px = tile_px + _GAP_PX
    grid = np.zeros((rows * pitch_px - _GAP_PX, columns * pitch_px - _GAP_PX, 3), np.uint8)
    for i, image in enumerate(images):
        tile = cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        tile = cv2.resize(tile, (tile_px, tile_px), interpolation=cv2.INTER_NEAREST)
        for box, score in zip(boxes[i, ::-1], scores[i, ::-1], strict=True):
            # Half open, and boxes may reach over the edge of the slice.
            y0, x0, y1, x1 = np.clip(np.rint(box * factor), 0, tile_px).astype(int).tolist()
            cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), _BOX_RGB, 2)
            cv2.putText(
                tile, f"{score:.2f}", (x0 + 4, y0 + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _BOX_RGB, 1
            )
        top, left = (i // columns) * pitch_px, (i % columns) * pitch_px
        grid[top : top + tile_px, left : left + tile_px] = tile
    return grid
