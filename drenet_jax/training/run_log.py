"""What a run tells of itself: `metrics.jsonl`, and events for TensorBoard."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from drenet_jax.errors import InputError

METRICS_FILE = "metrics.jsonl"
EVENTS_FOLDER = "tensorboard"

# Tiles of a proposal picture are at least so large; smaller ones leave no room for the scores.
_TILE_PX = 224
_GAP_PX = 4
_BOX_RGB = (255, 40, 40)


class RunLog:
    """The log of a run that may be killed at any moment and goes on at its last checkpoint.

    `metrics.jsonl` has a line for each validation and is whole at any moment. TensorBoard's events
    are flushed to disk with each validation, so that training does not wait for it in between.
    """

    def __init__(self, workdir: Path, start_step: int):
        """Opens the log of `workdir`; what it tells of later steps is dropped.

        Such lines and events are of a checkpoint that did not get whole, and are made again.

        Args:
          workdir: of the run; an existing folder.
          start_step: updates made so far, 0 for a run from the beginning.
        """
        self._path = Path(workdir) / METRICS_FILE
        self._lines = read_lines(self._path, start_step)
        if self._path.exists():
            self._write_lines()
        folder = Path(workdir) / EVENTS_FOLDER
        folder.mkdir(exist_ok=True)
        for path in sorted(folder.glob("events.out.tfevents.*")):
            _drop_later_events(path, start_step)
        # In the order of the names, TensorBoard reads the files of a run.
        self._events = tf.io.TFRecordWriter(
            str(folder / f"events.out.tfevents.{time.time_ns():020d}.{start_step}")
        )
        self._event(0, file_version="brain.Event:2")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, first to last: step, epoch, train, validation."""
        return list(self._lines)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tells TensorBoard a step's losses, one by one, its learning rate and gradient norm."""
        self._scalars(step, "train", metrics)

    def validation(
        self,
        step: int,
        epoch: float,
        train: Mapping[str, float],
        validation: Mapping[str, float | None],
    ) -> None:
        """Adds a line to `metrics.jsonl`, and tells TensorBoard the validation's figures.

        Args:
          step: updates made so far.
          epoch: passes over the training slices so far.
          train: means over the steps since the last validation.
          validation: figures of the validation split; None where they are not defined.
        """
        self._lines.append(
            {
                "step": step,
                "epoch": round(epoch, 3),
                "train": dict(train),
                "validation": dict(validation),
            }
        )
        self._write_lines()
        self._scalars(step, "validation", validation)
        self._events.flush()

    def picture(self, step: int, image: np.ndarray) -> None:
        """Shows TensorBoard a picture of the validation split: uint8 [H, W, 3], RGB."""
        encoded, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        assert encoded
        height, width, _ = image.shape
        picture = tf.compat.v1.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png.tobytes()
        )
        self._summary(step, [tf.compat.v1.Summary.Value(tag="validation/proposals", image=picture)])
        self._events.flush()

    def close(self) -> None:
        """Writes what is still held back."""
        self._events.close()

    def _write_lines(self) -> None:
        scratch = self._path.with_suffix(".unfinished")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        scratch.replace(self._path)

    def _scalars(self, step: int, group: str, values: Mapping[str, float | None]) -> None:
        # One event for all: summaries of tf.summary cost a call of TensorFlow each, and need the
        # tensorboard package.
        self._summary(
            step,
            [
                tf.compat.v1.Summary.Value(tag=f"{group}/{name}", simple_value=float(value))
                for name, value in values.items()
                if value is not None
            ],
        )

    def _summary(self, step: int, values: Iterable[Any]) -> None:
        self._event(step, summary=tf.compat.v1.Summary(value=values))

    def _event(self, step: int, **what) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), step=step, **what)
        self._events.write(event.SerializeToString())


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


def proposal_picture(images: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A grid of slices with their proposals and scores, the best proposal of a slice on top.

    Args:
      images: uint8 [N, S, S].
      boxes: [N, K, 4], y0, x0, y1, x1 in pixels of the slices, half open, best first; K may be 0.
      scores: [N, K], of the proposals.

    Returns:
      uint8 [H, W, 3], RGB.
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
