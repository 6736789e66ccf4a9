"""Checkpoints of a run: weights, optimiser and an account of both, written by Orbax.

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
import json
import logging
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from drenet_jax.ct.settings import CtSettings
from drenet_jax.errors import InputError

PyTree = Any

FORMAT = 1

# In the item `meta`: the checksums of all items.
_CHECKSUMS = "crc32"

# Orbax's name for a folder that is being written.
_UNFINISHED = ".orbax-checkpoint-tmp"

# How often it is removed, and after how long again, when writing has failed.
_REMOVALS = 3
_REMOVAL_S = 0.2

# Characters of what Orbax says of a damaged file.
_LONGEST_REASON = 200

NOT_VALIDATED = {"auc": None, "cross_entropy": None, "temperature": None}


@dataclasses.dataclass(frozen=True)
class Meta:
    """What must be known of weights to use them.

    Attributes:
      config: the training configuration.
      labels: names of the classes, in order.
      ct: the settings of the image side; a new person is prepared in the same way.
      fill_seed: of the data set's fill.
      data_fingerprint: of the data set (`records.PreparedData`): which persons are in which split.
      version: of drenet_jax.
      trained_on: {"splits": {"train": {label: persons}, "validation": likewise}, "sites": [...]};
        None of weights that no run of ours made.
    """

    config: ml_collections.ConfigDict
    labels: tuple[str, ...]
    ct: CtSettings
    fill_seed: int
    data_fingerprint: str
    version: str
    trained_on: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "config": json.loads(self.config.to_json()),
            "labels": list(self.labels),
            "ct": self.ct.to_dict(),
            "fill_seed": self.fill_seed,
            "data_fingerprint": self.data_fingerprint,
            "version": self.version,
            "trained_on": self.trained_on,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Meta:
        return cls(
            config=ml_collections.ConfigDict(values["config"]),
            labels=tuple(values["labels"]),
            ct=CtSettings.from_dict(values["ct"]),
            fill_seed=values["fill_seed"],
            data_fingerprint=values["data_fingerprint"],
            version=values["version"],
            # Checkpoints of earlier versions do not say.
            trained_on=values.get("trained_on"),
        )


@dataclasses.dataclass(frozen=True)
class BackboneMeta:
    """What must be known of weights of some parts of a model, from which training can start.

    Attributes:
      architecture: of the backbone.
      width: channels of the backbone's first stage.
      parts: names of the parts among a model's parameters, such as `backbone`.
      source: the name of the file from which they were converted.
      version: of drenet_jax.
    """

    architecture: str
    width: int
    parts: tuple[str, ...]
    source: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self), "parts": list(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneMeta:
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"parts": tuple(values["parts"])})


@dataclasses.dataclass(frozen=True, eq=False)
class KnownSlices:
    """Digests of the slices that weights know, those of earlier runs that they come from too.

    Attributes:
      trained: uint64 [N], of the slices that they were trained on, ascending.
      chosen: uint64 [N], of the slices by which they were chosen (validation), ascending.
    """

    trained: np.ndarray
    chosen: np.ndarray

    @classmethod
    def none(cls) -> KnownSlices:
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))

    @property
    def all(self) -> np.ndarray:
        return np.union1d(self.trained, self.chosen)

    def __or__(self, other: KnownSlices) -> KnownSlices:
        return KnownSlices(
            np.union1d(self.trained, other.trained), np.union1d(self.chosen, other.chosen)
        )


class Checkpoints:
    """The checkpoints of a workdir; to be used in a `with` statement."""

    def __init__(self, workdir: str | os.PathLike[str], *, read_only: bool = False):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: of the run; made if needed.
          read_only: touch nothing, since a run may be writing there.
        """
        self._folder = Path(workdir).absolute() / "checkpoints"
        _silence_closed_loops()
        with self._read(None), _without_read_only_warning():
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers={
                    "weights": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    "progress": ocp.JsonCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                    "validation": ocp.JsonCheckpointHandler(),
                    "digests": ocp.StandardCheckpointHandler(),
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
                    create=not read_only,
                ),
            )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error) -> None:
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
        """The step with the best validation figures, or the latest where none was validated."""
        with self._read(None):
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
          meta: the account.
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
        texts = {"progress": progress, "validation": validation}
        arrays = {name: tree for name, tree in arrays.items() if tree is not None}
        texts = {name: dict(value) for name, value in texts.items() if value is not None}
        sums = {name: _checksum(tree) for name, tree in arrays.items()}
        sums |= {name: _text_checksum(value) for name, value in texts.items()}
        sums["metrics"] = _text_checksum(dict(metrics))
        account = {**meta.to_dict(), _CHECKSUMS: sums}
        account[_CHECKSUMS] = {**sums, "meta": _text_checksum(account)}
        items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
        items |= {name: ocp.args.JsonSave(value) for name, value in texts.items()}
        items["meta"] = ocp.args.JsonSave(account)
        args = ocp.args.Composite(**items)
        saved = self._manager.save(step, args=args, metrics=dict(metrics))
        # Orbax says nothing when a step lies below the latest.
        assert saved, step

    def wait(self) -> None:
        """Returns when all that was saved is whole on disk."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> Meta:
        """The account of a checkpoint of a whole model.

        Raises:
          InputError: it holds parts of a model only, or another version wrote it.
        """
        account = self.account(step)
        if isinstance(account, BackboneMeta):
            raise InputError(
                f"{self._folder.parent} holds only the {' and the '.join(account.parts)} of a "
                f"model ({account.architecture} of {account.source}); train one that starts from "
                "it, with --config.init.weights."
            )
        return account

    def account(self, step: int) -> Meta | BackboneMeta:
        """As `meta`, of parts of a model too."""
        values = self._account(step)
        if values.get("format") != FORMAT:
            raise InputError(
                f"{self._folder / str(step)} was written by another version of drenet_jax; "
                "train again, or use that version."
            )
        kind = BackboneMeta if "parts" in values else Meta
        with self._read(step):
            return kind.from_dict(values)

    def figures(self, step: int) -> dict[str, float | None]:
        """The `metrics` that `save` was given."""
        wanted = self._checksums(step).get("metrics")
        with self._read(step):
            result = dict(self._manager.metrics(step))
            if wanted is not None and _text_checksum(result) != wanted:
                raise _Changed("the metrics are not those that were saved")
        return result

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

    def optimizer(self, step: int, shapes: PyTree) -> PyTree:
        """What `save` was given as `optimizer`, as NumPy arrays."""
        return self._restore(step, "optimizer", shapes)

    def progress(self, step: int) -> dict[str, Any]:
        """What `save` was given as `progress`."""
        return self._text(step, "progress")

    def validation(self, step: int) -> dict[str, Any] | None:
        """What `save` was given as `validation`."""
        there = (self._folder / str(step) / "validation").is_dir()
        if not there and "validation" not in self._checksums(step):
            return None
        return self._text(step, "validation")

    def digests(self, step: int) -> KnownSlices | None:
        """What `save` was given as `digests`."""
        there = (self._folder / str(step) / "digests").is_dir()
        if not there and "digests" not in self._checksums(step):
            return None
        shapes = self._shapes(step, "digests").tree
        arrays = self._restore(
            step,
            "digests",
            {name: jax.ShapeDtypeStruct(shape.shape, np.uint64) for name, shape in shapes.items()},
        )
        return dataclasses.replace(KnownSlices.none(), **arrays)

    def weight_shapes(self, step: int) -> PyTree:
        """Shapes and types of the weights that a checkpoint holds."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            self._shapes(step, "weights").tree,
            is_leaf=lambda x: hasattr(x, "shape"),
        )

    def _restore(self, step: int, item: str, shapes: PyTree) -> PyTree:
        # Orbax tells a mismatch in thousands of lines.
        self._check(step, item, shapes)
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        wanted = self._checksums(step).get(item)
        with self._read(step):
            result = self._manager.restore(step, args=args)[item]
            if wanted is not None and _checksum(result) != wanted:
                raise _Changed(f"the {item} are not those that were saved")
        return result

    def _check(self, step: int, item: str, shapes: PyTree) -> None:
        check_shapes(self._shapes(step, item), shapes, str(self._folder / str(step) / item))

    def _shapes(self, step: int, item: str) -> PyTree:
        with self._read(step):
            shapes = self._manager.item_metadata(step)[item]
            if shapes is None:
                raise _Changed(f"the {item} are gone")
        return shapes

    def _account(self, step: int) -> dict[str, Any]:
        """The item `meta`, as it was written."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        with self._read(step):
            values = self._manager.restore(step, args=args)["meta"]
            sums = values.get(_CHECKSUMS)
            # Checkpoints of earlier versions have none.
            if sums is not None:
                others = {name: item for name, item in sums.items() if name != "meta"}
                if _text_checksum({**values, _CHECKSUMS: others}) != sums["meta"]:
                    raise _Changed("the item meta is not what was saved")
        return values

    def _checksums(self, step: int) -> Mapping[str, int]:
        return self._account(step).get(_CHECKSUMS) or {}

    def _text(self, step: int, item: str) -> dict[str, Any]:
        """An item of JSON."""
        args = ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        wanted = self._checksums(step).get(item)
        with self._read(step):
            values = self._manager.restore(step, args=args)[item]
            if wanted is not None and _text_checksum(values) != wanted:
                raise _Changed(f"the item {item} is not what was saved")
        return values

    def _step_without_metrics(self) -> int | None:
        """The step that Orbax stumbles over when it reads the metrics of all, if there is one."""
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if folder.name.isdigit():
                try:
                    json.loads((folder / "metrics" / "metrics").read_text(encoding="utf-8"))
                except (OSError, ValueError):
                    return int(folder.name)
        return None

    @contextlib.contextmanager
    def _read(self, step: int | None) -> Iterator[None]:
        """Turns whatever goes wrong while a checkpoint is read into an InputError.

        Orbax, tensorstore and JSON each have errors of their own, of many kinds, for a file that is
        cut, changed or gone.
        """
        try:
            yield
        except (InputError, MemoryError):
            raise
        except Exception as error:
            if isinstance(error, PermissionError):
                raise InputError(
                    f"{error.filename or self._folder} cannot be read ({error.strerror}); change "
                    "its permissions, or name another folder."
                ) from error
            raise InputError(self._damage(step, error)) from error

    def _damage(self, step: int | None, error: Exception) -> str:
        """A sentence that says which checkpoint is damaged, and what can be done."""
        if step is None:
            step = self._step_without_metrics()
        place = self._folder if step is None else self._folder / str(step)
        if not place.exists():
            return (
                f"{place} was removed while it was read, as a run does that goes on there; call "
                "again."
            )
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if len(why) > _LONGEST_REASON:
            why = f"{why[:_LONGEST_REASON]}..."
        others = sorted(
            (int(path.name) for path in self._folder.iterdir() if path.name.isdigit()), reverse=True
        )
        others = [str(other) for other in others if other != step]
        remedy = "restore it from a copy, or make it anew (train with --fresh, or convert_weights)"
        if step is not None and others:
            remedy = (
                f"restore it from a copy, or remove this folder, so that {' or '.join(others)} "
                "beside it is taken"
            )
        return f"the checkpoint {place} is damaged ({why}); {remedy}."


class _Changed(Exception):
    """An item is not what was saved."""


def _checksum(tree: PyTree) -> int:
    """CRC-32 of the names, types and bytes of a tree's arrays."""
    result = 0
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        array = np.ascontiguousarray(leaf)
        head = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        result = zlib.crc32(head.encode(), result)
        # Types that NumPy does not know, as bfloat16, give no buffer themselves.
        result = zlib.crc32(array.reshape(-1).view(np.uint8), result)
    return result


def _text_checksum(values: Mapping[str, Any]) -> int:
    """CRC-32 of what is written as JSON."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _silence_closed_loops() -> None:
    """Silences tensorstore's threads that come too late; called again, it changes nothing.

    Where a file is damaged or the disk is full, Orbax closes its event loop at the first error and
    raises it; each of tensorstore's reads or writes that fails after that would print a traceback
    of its own.
    """
    hook = sys.unraisablehook
    if getattr(hook, "is_silent", False):
        return

    def quiet(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    quiet.is_silent = True
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
      meta: the account.
    """
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, weights, None, meta, NOT_VALIDATED)
        checkpoints.wait()


def check_shapes(
    arrays: PyTree,
    wanted: PyTree,
    where: str,
    fix: str = "use the config with which the weights were made",
) -> None:
    """Compares two trees of arrays (or of their shapes) by name.

    Args:
      arrays: what there is.
      wanted: what there should be.
      where: `found` is, for the message.
      fix: the advice for the error message.

    Raises:
      InputError: one sentence that lists every missing, extra and wrongly shaped array.
    """
    arrays, wanted = _named_shapes(arrays), _named_shapes(wanted)
    faults = [
        *(f"{name} is missing" for name in wanted if name not in arrays),
        *(f"{name} is not expected" for name in arrays if name not in wanted),
        *(
            f"{name} has shape {arrays[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in arrays and arrays[name] != shape
        ),
    ]
    if faults:
        raise InputError(f"{where} does not fit the model: {'; '.join(faults)}; {fix}.")


def _named_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


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
