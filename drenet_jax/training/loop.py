"""Training from the first step, or from wherever the workdir stands, to the last."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_collections
import numpy as np
import optax
from tqdm import tqdm

from drenet_jax import parallel
from drenet_jax.data.batches import FILLS, train_batches
from drenet_jax.data.records import PreparedData, open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.calibration import fit_temperature, negative_log_likelihood
from drenet_jax.evaluation.metrics import classification_metrics
from drenet_jax.evaluation.persons import person_predictions
from drenet_jax.evaluation.scoring import SliceScorer
from drenet_jax.evaluation.splits import positive_class, score_split
from drenet_jax.models import checkpoints as ckpt
from drenet_jax.models.build import Model, build_model, init_variables
from drenet_jax.models.pretrained import start_from
from drenet_jax.training.state import TrainState, create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step
from drenet_jax.version import __version__

METRICS_FILE = "metrics.jsonl"

_GROUPS = ("seed", "data", "model", "optimizer", "train", "init", "evaluation")

# Config fields that may differ between the start of a run and its continuation.
_MAY_CHANGE = ("data.dir", "train.epochs", "train.steps", "train.validate_every_epochs")
_MAY_CHANGE_BELOW = ("evaluation.",)


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, *, fresh: bool = False
) -> dict[str, float | None]:
    """Trains the model that `config` describes; called again, it goes on where it stopped.

    The workdir gets `checkpoints/` (the latest, and the best by validation) and `metrics.jsonl` (a
    line for each validation). The test split is never opened.

    Args:
      config: see `configs/drenet.py`.
      workdir: the folder of the run; made if needed.
      fresh: start over, removing what the workdir holds.

    Returns:
      the last validation's figures.

    Raises:
      InputError: the config cannot be used, does not fit the data or the workdir's run, or the loss
        is no longer finite.
    """
    _check_groups(config)
    data = open_data(config.data.dir)
    _check(config, data)
    batch_size, n = config.data.batch_size, data.n_slices["train"]
    positive = positive_class(data.labels, config.evaluation.positive_label)
    model = build_model(config, len(data.labels))
    schedule = learning_rate(config, n, batch_size)
    optimizer = make_optimizer(config, schedule)
    scorer = SliceScorer(model, config.evaluation.batch_size)
    meta = _meta(config, data)
    last_step = _last_step(config, n)
    validation_steps = _validation_steps(config, n, last_step)

    goes_on = ckpt.has_checkpoint(workdir) and not fresh
    if not goes_on:
        # Before anything is removed or made: the weights to start from may not be usable.
        state = create_state(_first_variables(config, model, data), optimizer)
    if fresh:
        ckpt.remove(workdir)
        (workdir / METRICS_FILE).unlink(missing_ok=True)
    with _open_checkpoints(workdir) as checkpoints:
        start = 0
        if goes_on:
            start = checkpoints.latest_step
            _check_same_run(checkpoints.meta(start), meta, workdir)
            state = _restore(checkpoints, start, model, optimizer)
        if start >= last_step:
            print(f"{workdir} has made its {start} steps; nothing is left to do.")
            return checkpoints.figures(start)

        log = _read_log(workdir / METRICS_FILE, start)
        make_step = make_train_step(model, optimizer, schedule, config)
        replicated = parallel.replicate(state)
        del state
        batches = train_batches(
            data,
            batch_size=batch_size,
            first_step=start,
            fill=config.data.fill,
            shuffle_buffer=config.data.shuffle_buffer,
            seed=config.seed,
        )
        since_validation: list[dict] = []
        with tqdm(total=last_step, initial=start, unit="step", desc="train") as bar:
            for step, batch in zip(range(start + 1, last_step + 1), batches, strict=False):
                with parallel.out_of_memory_told(_too_large(config)):
                    replicated, metrics = make_step(replicated, *batch)
                    since_validation.append(metrics)
                    # One step late, so that the host does not wait for the devices.
                    for late in since_validation[-2:-1]:
                        _check_finite(late, step - 1, checkpoints, workdir)
                bar.update()
                if step not in validation_steps:
                    continue
                _check_finite(metrics, step, checkpoints, workdir)
                figures = _validate(scorer, replicated, data, config.data.fill, positive)
                log.append(_log_line(step, step * batch_size / n, since_validation, figures))
                since_validation = []
                bar.set_postfix(loss=log[-1]["train"]["loss"], **figures)
                # The log first: of a checkpoint that did not get whole, its line is dropped.
                _write_log(workdir / METRICS_FILE, log)
                _save(checkpoints, step, parallel.to_host(replicated), meta, figures)
        checkpoints.wait()
        return figures


def _check_groups(config: ml_collections.ConfigDict) -> None:
    missing = [name for name in _GROUPS if name not in config]
    if missing:
        raise InputError(
            f"--config: the file has no {', '.join(missing)}; give a training config like "
            "configs/drenet.py."
        )


def _check(config: ml_collections.ConfigDict, data: PreparedData) -> None:
    if not data.n_slices["train"]:
        raise InputError(f"--config.data.dir={data.path} holds no training slices; prepare some.")
    if config.data.fill not in FILLS:
        raise InputError(
            f"--config.data.fill={config.data.fill!r} must be one of {', '.join(FILLS)}."
        )
    if config.model.image_size_px != data.ct.image_size_px:
        raise InputError(
            f"--config.model.image_size_px={config.model.image_size_px}, but {data.path} holds "
            f"slices of {data.ct.image_size_px} pixels; set the one or prepare the other."
        )
    for field, value in (
        ("data.shuffle_buffer", config.data.shuffle_buffer),
        ("train.accumulate", config.train.accumulate),
        ("train.epochs", config.train.epochs),
        ("train.validate_every_epochs", config.train.validate_every_epochs),
        ("evaluation.bootstrap_draws", config.evaluation.bootstrap_draws),
    ):
        if value < 1:
            raise InputError(f"--config.{field}={value} must be 1 or more.")
    if config.train.steps < 0:
        raise InputError(f"--config.train.steps={config.train.steps} must be 0 or more.")
    parallel.check_batch_size(config.data.batch_size, config.train.accumulate)


def _last_step(config: ml_collections.ConfigDict, n: int) -> int:
    steps = math.ceil(config.train.epochs * n / config.data.batch_size)
    return min(steps, config.train.steps or steps)


def _validation_steps(config: ml_collections.ConfigDict, n: int, last_step: int) -> set[int]:
    every = config.train.validate_every_epochs
    epochs = range(every, config.train.epochs + 1, every)
    return {math.ceil(epoch * n / config.data.batch_size) for epoch in epochs} | {last_step}


def _open_checkpoints(workdir: Path) -> ckpt.Checkpoints:
    try:
        return ckpt.Checkpoints(workdir)
    except OSError as error:
        raise InputError(
            f"--workdir={workdir} cannot be written ({error.strerror}); name another folder."
        ) from error


def _meta(config: ml_collections.ConfigDict, data: PreparedData) -> ckpt.Meta:
    config = config.copy_and_resolve_references()
    # As seen from everywhere: evaluate may be called from another folder.
    config.data.dir = str(data.path.resolve())
    return ckpt.Meta(
        config=config,
        labels=data.labels,
        ct=data.ct,
        fill_seed=data.seed,
        data_fingerprint=data.fingerprint,
        version=__version__,
    )


def _first_variables(config: ml_collections.ConfigDict, model: Model, data: PreparedData) -> dict:
    variables = init_variables(model, config.seed)
    if not config.init.weights:
        return variables
    return start_from(config.init.weights, model, variables, data.labels)


def _check_same_run(found: ckpt.Meta, wanted: ckpt.Meta, workdir: Path) -> None:
    old, new = (_flat(one.config.to_dict()) for one in (found, wanted))
    differing = [
        f"{field} {old.get(field)!r} there, {new.get(field)!r} now"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field)
        and field not in _MAY_CHANGE
        and not field.startswith(_MAY_CHANGE_BELOW)
    ]
    if found.labels != wanted.labels:
        differing.append(f"labels {', '.join(found.labels)} there, {', '.join(wanted.labels)} now")
    if found.data_fingerprint != wanted.data_fingerprint:
        differing.append("the data were prepared anew, with other persons, splits or settings")
    if differing:
        raise InputError(
            f"--workdir={workdir} holds a run with other settings ({'; '.join(differing)}); "
            "name another folder, or add --fresh to remove that run and start over."
        )


def _flat(values: Mapping, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            # JSON, through which a checkpoint's config went, knows no tuples.
            flat[prefix + name] = json.loads(json.dumps(value))
    return flat


def _restore(
    checkpoints: ckpt.Checkpoints,
    step: int,
    model: Model,
    optimizer: optax.GradientTransformation,
) -> TrainState:
    shapes = jax.eval_shape(lambda: create_state(init_variables(model, 0), optimizer))
    weights = {"params": shapes.params, "batch_stats": shapes.batch_stats}
    return TrainState(
        step=np.int32(step),
        **checkpoints.weights(step, weights),
        **checkpoints.optimizer(step, {"opt_state": shapes.opt_state}),
    )


def _save(
    checkpoints: ckpt.Checkpoints,
    step: int,
    state: TrainState,
    meta: ckpt.Meta,
    figures: Mapping[str, float | None],
) -> None:
    weights = {"params": state.params, "batch_stats": state.batch_stats}
    checkpoints.save(step, weights, {"opt_state": state.opt_state}, meta, figures)


def _validate(
    scorer: SliceScorer, replicated: TrainState, data: PreparedData, fill: str, positive: int
) -> dict[str, float | None]:
    """The validation split's person AUC, the cross-entropy of its slices, and their temperature."""
    if not data.n_slices["validation"]:
        return {"auc": None, "cross_entropy": None, "temperature": None}
    variables = {"params": replicated.params, "batch_stats": replicated.batch_stats}
    slices, logits = score_split(scorer, variables, data, "validation", fill)
    persons = person_predictions(slices)
    figures = classification_metrics(persons.label, persons.probabilities, data.labels, positive)
    return {
        "auc": figures["auc"],
        "cross_entropy": negative_log_likelihood(logits, slices.label),
        "temperature": fit_temperature(logits, slices.label),
    }


def _too_large(config: ml_collections.ConfigDict) -> str:
    return (
        f"a step of --config.data.batch_size={config.data.batch_size} slices in "
        f"--config.train.accumulate={config.train.accumulate} micro-batches does not fit the "
        "memory; raise train.accumulate, or lower the batch size"
    )


def _check_finite(metrics: dict, step: int, checkpoints: ckpt.Checkpoints, workdir: Path) -> None:
    metrics = parallel.unreplicate(metrics)
    # A loss that is finite still, with a gradient that is not, has spoilt the weights already.
    if np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]):
        return
    checkpoints.wait()
    last = checkpoints.latest_step
    raise InputError(
        f"--workdir={workdir}: the loss or its gradient is not finite at step {step} "
        f"(last good checkpoint: {'none' if last is None else f'step {last}'}); "
        "lower --config.optimizer.learning_rate, or look for broken slices in qc.html."
    )


def _log_line(
    step: int, epoch: float, metrics: list[dict], validation: Mapping[str, float | None]
) -> dict:
    train = jax.tree.map(
        lambda *values: float(np.mean(values)), *(parallel.unreplicate(one) for one in metrics)
    )
    return {"step": step, "epoch": round(epoch, 3), "train": train, "validation": dict(validation)}


def _read_log(path: Path, last_step: int) -> list[dict]:
    """The log up to a step: lines of steps whose checkpoint did not get whole are made again."""
    if not path.exists():
        return []
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [line for line in lines if line["step"] <= last_step]


def _write_log(path: Path, log: list[dict]) -> None:
    scratch = path.with_suffix(".unfinished")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in log))
    scratch.replace(path)
