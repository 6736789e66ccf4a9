"""Checkpoints of a run: weights, optimiser and metadata, written by Orbax.

A workdir holds `checkpoints/<step>/` with six items: `weights` (params and batch statistics, all
that a prediction needs), `optimizer` and `progress` (what else a run needs to go on), `meta` (JSON:
config, labels, settings of the image side), `validation` (JSON: what the weights said of the
validation persons) and `digests` (of the slices that the weights were trained and chosen on). The
latest and the best by validation are kept.
`meta` also holds checksums of all items: what Orbax stores is read without an error where bytes of
an array have changed on the disk, or where its file is gone.
Weights that `convert_weights` made are step 0, without an optimiser. With several hosts, all must
save and restore alike, in a folder that all of them see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from drenet_jax.errors import InputError
from drenet_jax.models.checkpoint_integrity import (
    ItemChanged,
    check_shapes,
    json_checksum,
    translate_read_errors,
    tree_checksum,
)
from drenet_jax.models.checkpoint_metadata import FORMAT, BackboneMeta, KnownSlices, Meta

PyTree = Any

_ARRAYS = ("weights", "optimizer", "digests")
_JSON = ("progress", "meta", "validation")

# In the item `meta`: the checksums of all items.
_CHECKSUMS = "crc32"

# Marks the hook of `_silence_closed_loops`.
_SILENT = "is_silent"

# Orbax's name for a folder that is being written.
_UNFINISHED = ".orbax-checkpoint-tmp"

# Removals of an unfinished checkpoint after a failed write, and the pause between them.
_REMOVALS = 3
_REMOVAL_S = 0.2

NOT_VALIDATED = {"auc": None, "cross_entropy": None, "temperature": None}


def _multiprocessing(is_shared: bool) -> ocp.options.MultiprocessingOptions:
    if is_shared:
        return ocp.options.MultiprocessingOptions()
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process},
        barrier_sync_key_prefix=f"process{process}",
    )


class Checkpoints:
    """The checkpoints of a workdir; to be used in a `with` statement."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        read_only: bool = False,
        is_shared: bool = True,
    ):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: of the run; made if needed.
          read_only: touch nothing, since a run may be writing there.
          is_shared: whether all hosts use the folder together; otherwise it is this host's own, who
            waits for no other.
        """
        self._folder = Path(workdir).absolute() / "checkpoints"
        self._metadata: dict[int, dict[str, Any]] = {}  # by step; a written step never changes
        _silence_closed_loops()
        if not read_only and not is_shared:
            # Orbax makes none for a part of the hosts.
            self._folder.mkdir(parents=True, exist_ok=True)
        with translate_read_errors(self._folder, None), _without_read_only_warning():
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers={
                    **{name: ocp.StandardCheckpointHandler() for name in _ARRAYS},
                    **{name: ocp.JsonCheckpointHandler() for name in _JSON},
                },
                options=ocp.CheckpointManagerOptions(
                    best_fn=selection_key,
                    preservation_policy=AnyPreservationPolicy(
                        [LatestN(1), BestN(get_metric_fn=selection_key, n=1)]
                    ),
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                    # What Orbax makes of them anyway, with a warning, where it only reads.
                    save_interval_steps=0 if read_only else 1,
                    create=not read_only and is_shared,
                    multiprocessing_options=_multiprocessing(is_shared),
                ),
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error: object) -> None:
        # Orbax's threads outlive an error otherwise, and complain.
        self._manager.close()

    @classmethod
    def of(cls, workdir: str | os.PathLike[str], *, flag: str) -> Checkpoints:
        """The checkpoints of a workdir that must have some, for reading.

        Raises:
          InputError: it has none, or what it has is damaged; `flag` is named as what to correct
            it.
        """
        try:
            there = has_checkpoint(workdir)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{flag}={workdir} cannot be read ({getattr(error, 'strerror', None) or error}); "
                "check the path."
            ) from error
        if not there:
            raise InputError(
                f"{flag}={workdir} holds no checkpoint; name a folder in which train has finished "
                "an epoch."
            )
        return cls(workdir, read_only=True)

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best_step(self) -> int:
        """The step with the best validation metrics, or the latest where none was validated."""
        with translate_read_errors(self._folder, None):
            step = self._manager.best_step()
            return self._manager.latest_step() if step is None else step

    def save(
        self,
        step: int,
        weights: PyTree,
        optimizer: PyTree | None,
        meta: Meta | BackboneMeta,
        metrics: Mapping[str, Any],
        progress: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        digests: KnownSlices | None = None,
    ) -> None:
        """Writes a checkpoint in the background; see `wait`.

        Args:
          step: updates made so far; above the latest one.
          weights: `{"params", "batch_stats"}`.
          optimizer: everything else that a run needs to go on; None: there is no run.
          meta: how to use the weights.
          metrics: of the validation: `auc` (of persons, or None) and `cross_entropy` (of slices);
            `NOT_VALIDATED` if there was none.
          progress: JSON that the run needs to go on; None: there is no run.
          validation: JSON, the weights' results for the validation persons; None: not validated.
          digests: of the slices that the weights know; None: it is not known.
        """
        arrays = {"weights": weights, "optimizer": optimizer}
        if digests is not None:
            # Orbax saves no empty array.
            known = dataclasses.asdict(digests)
            arrays["digests"] = {name: array for name, array in known.items() if array.size}
        arrays = {name: tree for name, tree in arrays.items() if tree is not None}
        texts = {
            name: dict(value)
            for name, value in (("progress", progress), ("validation", validation))
            if value is not None
        }
        sums = {name: tree_checksum(tree) for name, tree in arrays.items()}
        sums |= {name: json_checksum(value) for name, value in texts.items()}
        sums["metrics"] = json_checksum(dict(metrics))
        metadata = {**meta.to_dict(), _CHECKSUMS: sums}
        metadata[_CHECKSUMS] = {**sums, "meta": json_checksum(metadata)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonSave(value) for name, value in texts.items()}
        items["meta"] = ocp.args.JsonSave(metadata)
        args = ocp.args.Composite(**items)
        saved = self._manager.save(step, args=args, metrics=dict(metrics))
        # Orbax says nothing when a step lies below the latest.
        assert saved, step

    def wait(self) -> None:
        """Returns when all that was saved is whole on disk."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> Meta:
        """The metadata of a checkpoint of a whole model.

        Raises:
          InputError: it holds parts of a model only, or another version wrote it.
        """
        metadata = self.metadata(step)
        if isinstance(metadata, BackboneMeta):
            raise InputError(
                f"{self._folder.parent} holds only the {' and the '.join(metadata.parts)} of a "
                f"model ({metadata.architecture} of {metadata.source}); train one that starts from "
                "it, with --config.init.weights."
            )
        return metadata

    def metadata(self, step: int) -> Meta | BackboneMeta:
        """As `meta`, of parts of a model too."""
        values = self._saved_metadata(step)
        kind = BackboneMeta if "parts" in values else Meta
        with translate_read_errors(self._folder, step):
            return kind.from_dict(values)

    def metrics(self, step: int) -> dict[str, float | None]:
        """The `metrics` that `save` was given."""
        return self._verified(step, "metrics", lambda: dict(self._manager.metrics(step)))

    def weights(self, step: int, shapes: PyTree) -> PyTree:
        """Weights as NumPy arrays.

        Args:
          step: of the checkpoint.
          shapes: of the expected weights (`build.variable_shapes`).

        Raises:
          InputError: the checkpoint holds other names or shapes.
        """
        return self._restore(step, "weights", shapes)

    def check_weights(self, step: int, shapes: PyTree) -> None:
        """Raises InputError unless the weights have these names and shapes."""
        self._check(step, "weights", shapes)

    def weight_shapes(self, step: int) -> PyTree:
        """Shapes and types of the weights that a checkpoint holds."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            self._shapes(step, "weights").tree,
            is_leaf=lambda x: hasattr(x, "shape"),
        )

    def optimizer(self, step: int, shapes: PyTree) -> PyTree:
        """What `save` was given as `optimizer`, as NumPy arrays."""
        return self._restore(step, "optimizer", shapes)

    def progress(self, step: int) -> dict[str, Any]:
        """What `save` was given as `progress`."""
        return self._json(step, "progress")

    def validation(self, step: int) -> dict[str, Any] | None:
        """What `save` was given as `validation`."""
        return self._json(step, "validation") if self._has(step, "validation") else None

    def digests(self, step: int) -> KnownSlices | None:
        """What `save` was given as `digests`."""
        if not self._has(step, "digests"):
            return None
        shapes = {
            name: jax.ShapeDtypeStruct(shape.shape, np.uint64)
            for name, shape in self._shapes(step, "digests").tree.items()
        }
        return dataclasses.replace(KnownSlices.none(), **self._restore(step, "digests", shapes))

    def _has(self, step: int, item: str) -> bool:
        # An item that was saved and is gone from the disk is damage, not absence.
        return (self._folder / str(step) / item).is_dir() or item in self._checksums(step)

    def _restore(self, step: int, item: str, shapes: PyTree) -> PyTree:
        # Orbax describes a mismatch in thousands of lines.
        self._check(step, item, shapes)
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        return self._verified(step, item, lambda: self._manager.restore(step, args=args)[item])

    def _json(self, step: int, item: str) -> dict[str, Any]:
        args = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        return self._verified(step, item, lambda: self._manager.restore(step, args=args)[item])

    def _verified(self, step: int, item: str, read: Callable[[], Any]) -> Any:
        """What `read` returns, if it is what was saved."""
        checksum = tree_checksum if item in _ARRAYS else json_checksum
        with translate_read_errors(self._folder, step):
            result = read()
            if checksum(result) != self._checksums(step).get(item):
                raise ItemChanged(f"the item {item} is not what was saved")
        return result

    def _check(self, step: int, item: str, shapes: PyTree) -> None:
        check_shapes(self._shapes(step, item), shapes, str(self._folder / str(step) / item))

    def _shapes(self, step: int, item: str) -> PyTree:
        with translate_read_errors(self._folder, step):
            shapes = self._manager.item_metadata(step)[item]
            if shapes is None:
                raise ItemChanged(f"the item {item} is gone")
        return shapes

    def _saved_metadata(self, step: int) -> dict[str, Any]:
        """The item `meta`, as it was written."""
        if step not in self._metadata:
            args = ocp.args.Composite(meta=ocp.args.JsonRestore())
            with translate_read_errors(self._folder, step):
                values = self._manager.restore(step, args=args)["meta"]
                if values.get("format") != FORMAT:
                    raise InputError(
                        f"{self._folder / str(step)} was written by another version of "
                        "drenet_jax; train again, or use that version."
                    )
                checksums = values.get(_CHECKSUMS, {})
                others = {name: value for name, value in checksums.items() if name != "meta"}
                if json_checksum({**values, _CHECKSUMS: others}) != checksums.get("meta"):
                    raise ItemChanged("the item meta is not what was saved")
            self._metadata[step] = values
        return self._metadata[step]

    def _checksums(self, step: int) -> Mapping[str, int]:
        return self._saved_metadata(step)[_CHECKSUMS]


def _silence_closed_loops() -> None:
    """Silences tensorstore's threads that come too late; called again, it changes nothing.

    Where a file is damaged or the disk is full, Orbax closes its event loop at the first error and
    raises it; each of tensorstore's reads or writes that fails after that would print a traceback
    of its own.
    """
    hook = sys.unraisablehook
    if getattr(hook, _SILENT, False):
        return

    def quiet(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    setattr(quiet, _SILENT, True)
    sys.unraisablehook = quiet


@contextlib.contextmanager
def _without_read_only_warning() -> Iterator[None]:
    """Orbax warns that a folder is opened for reading only, which was asked of it."""

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Given directory is read only")

    logger = logging.getLogger("absl")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def selection_key(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Higher is better: person AUC first; of equal ones the lower cross-entropy of slices.

    A checkpoint without validation is worse than any with one. Without any validation all are
    equal, and Orbax takes the latest of equals.
    """
    auc, cross_entropy = metrics["auc"], metrics["cross_entropy"]
    if cross_entropy is None:
        return (-2.0, 0.0)
    return (-1.0 if auc is None else auc, -cross_entropy)


def save_converted(
    folder: str | os.PathLike[str], weights: PyTree, meta: Meta | BackboneMeta
) -> None:
    """Writes weights that no run of ours made as the only checkpoint of `folder`, step 0.

    Args:
      folder: made if needed; `Checkpoints.of` reads it.
      weights: `{"params", "batch_stats"}`, of a whole model or of the parts that `meta` names.
      meta: how to use the weights.
    """
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, weights, None, meta, NOT_VALIDATED)
        checkpoints.wait()


def has_checkpoint(workdir: str | os.PathLike[str]) -> bool:
    """Whether `workdir` holds a checkpoint that got whole."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def remove_unfinished(workdir: str | os.PathLike[str]) -> None:
    """Removes the checkpoint that did not get whole, which takes space."""
    # Threads that still write may make it again.
    for _ in range(_REMOVALS):
        for folder in (Path(workdir) / "checkpoints").glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(folder, ignore_errors=True)
        time.sleep(_REMOVAL_S)


def remove(workdir: str | os.PathLike[str]) -> None:
    """Removes a workdir's checkpoints."""
    shutil.rmtree(Path(workdir) / "checkpoints", ignore_errors=True)
