"""Checkpoints of a run: weights, optimiser and an account of both, written by Orbax.

A workdir holds `checkpoints/<step>/` with six items: `weights` (params and batch statistics, all
that a prediction needs), `optimizer` and `progress` (what else a run needs to go on), `meta` (JSON:
config, labels, settings of the image side), `validation` (JSON: what the weights said of the
validation persons) and `digests` (of the slices that the weights were trained and chosen on). The
latest and the best by validation are kept.
Weights that `convert_weights` made are step 0, without an optimiser. With several hosts, all must
save and restore alike, in a folder that all of them see.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
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
    trained_on: Mapping | None = None

    def to_dict(self) -> dict:
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
    def from_dict(cls, values: Mapping) -> Meta:
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
class PartMeta:
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

    def to_dict(self) -> dict:
        return {"format": FORMAT, **dataclasses.asdict(self), "parts": list(self.parts)}

    @classmethod
    def from_dict(cls, values: Mapping) -> PartMeta:
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

    def __init__(self, workdir: str | os.PathLike, *, read_only: bool = False):
        """Opens the checkpoints of `workdir`.

        Args:
          workdir: of the run; made if needed.
          read_only: touch nothing, since a run may be writing there.
        """
        self._folder = Path(workdir).absolute() / "checkpoints"
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
                best_fn=goodness,
                preservation_policy=AnyPreservationPolicy(
                    [LatestN(1), BestN(get_metric_fn=goodness, n=1)]
                ),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *error) -> None:
        # Orbax's threads outlive an error otherwise, and complain.
        self._manager.close()

    @classmethod
    def of(cls, workdir: str | os.PathLike, *, flag: str) -> Checkpoints:
        """The checkpoints of a workdir that must have some, for reading.

        Raises:
          InputError: it has none; `flag` is named as the place to mend it.
        """
        if not has_checkpoint(workdir):
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
        step = self._manager.best_step()
        return self._manager.latest_step() if step is None else step

    def save(
        self,
        step: int,
        weights: PyTree,
        optimizer: PyTree | None,
        meta: Meta | PartMeta,
        metrics: Mapping,
        progress: Mapping | None = None,
        validation: Mapping | None = None,
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
          validation: JSON, what the weights say of the validation persons; None: nobody was asked.
          digests: of the slices that the weights know; None: it is not known.
        """
        items = {
            "weights": ocp.args.StandardSave(weights),
            "meta": ocp.args.JsonSave(meta.to_dict()),
        }
        if optimizer is not None:
            items["optimizer"] = ocp.args.StandardSave(optimizer)
        if progress is not None:
            items["progress"] = ocp.args.JsonSave(dict(progress))
        if validation is not None:
            items["validation"] = ocp.args.JsonSave(dict(validation))
        if digests is not None:
            # Orbax saves no empty array.
            arrays = {
                name: array for name, array in dataclasses.asdict(digests).items() if array.size
            }
            items["digests"] = ocp.args.StandardSave(arrays)
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
        if isinstance(account, PartMeta):
            raise InputError(
                f"{self._folder.parent} holds only the {' and the '.join(account.parts)} of a "
                f"model ({account.architecture} of {account.source}); train one that starts from "
                "it, with --config.init.weights."
            )
        return account

    def account(self, step: int) -> Meta | PartMeta:
        """As `meta`, of parts of a model too."""
        values = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        if values["meta"].get("format") != FORMAT:
            raise InputError(
                f"{self._folder / str(step)} was written by another version of drenet_jax; "
                "train again, or use that version."
            )
        kind = PartMeta if "parts" in values["meta"] else Meta
        return kind.from_dict(values["meta"])

    def figures(self, step: int) -> dict[str, float | None]:
        """The `metrics` that `save` was given."""
        return dict(self._manager.metrics(step))

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

    def progress(self, step: int) -> dict:
        """What `save` was given as `progress`."""
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["progress"]

    def validation(self, step: int) -> dict | None:
        """What `save` was given as `validation`."""
        if not (self._folder / str(step) / "validation").is_dir():
            return None
        args = ocp.args.Composite(validation=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["validation"]

    def digests(self, step: int) -> KnownSlices | None:
        """What `save` was given as `digests`."""
        if not (self._folder / str(step) / "digests").is_dir():
            return None
        shapes = self._shapes(step, "digests").tree
        target = {name: np.empty(one.shape, np.uint64) for name, one in shapes.items()}
        args = ocp.args.Composite(digests=ocp.args.StandardRestore(target))
        arrays = self._manager.restore(step, args=args)["digests"]
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
        return self._manager.restore(step, args=args)[item]

    def _check(self, step: int, item: str, shapes: PyTree) -> None:
        check_shapes(self._shapes(step, item), shapes, str(self._folder / str(step) / item))

    def _shapes(self, step: int, item: str) -> PyTree:
        return self._manager.item_metadata(step)[item]


def goodness(metrics: Mapping) -> tuple[float, float]:
    """Higher is better: person AUC first; of equal ones the lower cross-entropy of slices.

    A checkpoint without validation is worse than any with one. Without any validation all are
    equal, and Orbax takes the latest of equals.
    """
    auc, cross_entropy = metrics["auc"], metrics["cross_entropy"]
    if cross_entropy is None:
        return (-2.0, 0.0)
    return (-1.0 if auc is None else auc, -cross_entropy)


def save_converted(folder: str | os.PathLike, weights: PyTree, meta: Meta | PartMeta) -> None:
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
    found: PyTree,
    wanted: PyTree,
    where: str,
    mend: str = "use the config with which the weights were made",
) -> None:
    """Compares two trees of arrays (or of their shapes) by name.

    Args:
      found: what there is.
      wanted: what there should be.
      where: `found` is, for the message.
      mend: what the caller can do, for the message.

    Raises:
      InputError: one sentence that lists every missing, extra and wrongly shaped array.
    """
    found, wanted = _named_shapes(found), _named_shapes(wanted)
    faults = [
        *(f"{name} is missing" for name in wanted if name not in found),
        *(f"{name} is not expected" for name in found if name not in wanted),
        *(
            f"{name} has shape {found[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in found and found[name] != shape
        ),
    ]
    if faults:
        raise InputError(f"{where} does not fit the model: {'; '.join(faults)}; {mend}.")


def _named_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def has_checkpoint(workdir: str | os.PathLike) -> bool:
    """Whether `workdir` holds a checkpoint that got whole."""
    folder = Path(workdir) / "checkpoints"
    return folder.is_dir() and any(one.name.isdigit() for one in folder.iterdir())


def remove(workdir: str | os.PathLike) -> None:
    """Removes a workdir's checkpoints."""
    shutil.rmtree(Path(workdir) / "checkpoints", ignore_errors=True)
