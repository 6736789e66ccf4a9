"""The training loop, with validation, checkpoints and resumption."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from tqdm import tqdm

from drenet_jax import parallel
from drenet_jax.data.batches import label_counts, train_batches
from drenet_jax.data.prepared_data import PreparedData, open_data
from drenet_jax.errors import InputError
from drenet_jax.evaluation.decisions import positive_class
from drenet_jax.evaluation.predictor import SliceScorer
from drenet_jax.models import checkpoints as ckpt
from drenet_jax.models.build import Model, build_model, init_variables
from drenet_jax.models.checkpoint_metadata import KnownSlices, Meta
from drenet_jax.models.warm_start import start_from
from drenet_jax.training.config_checks import check_config, check_groups, check_same_run
from drenet_jax.training.experiment_tracking import Tracker
from drenet_jax.training.leakage import known_slices
from drenet_jax.training.losses import read_class_weights
from drenet_jax.training.proposal_monitor import geometry_warnings, learning_warning
from drenet_jax.training.run_folder import RunFolder, open_run_folder
from drenet_jax.training.run_log import METRICS_FILE, RunLog, read_lines, read_scalars
from drenet_jax.training.state import TrainState, create_state, learning_rate, make_optimizer
from drenet_jax.training.step import make_train_step
from drenet_jax.training.stopping import Preempted, is_out_of_patience, preemption
from drenet_jax.training.validation import Validation, validate
from drenet_jax.version import __version__


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: str | os.PathLike[str], *, fresh: bool = False
) -> Mapping[str, float | None]:
    """Trains the model that `config` describes, or resumes the run in `workdir`.

    The workdir gets `checkpoints/` (the latest, and the best by validation), `metrics.jsonl` (a
    line for each validation) and `tensorboard/`. The test split is never opened. With several
    hosts (`parallel.start_hosts`) all call this alike, with both folders on shared storage or in a
    bucket.

    Args:
      config: see `configs/drenet.py`.
      workdir: the folder of the run, made if needed, or its address in a bucket.
      fresh: start over, removing what the workdir holds.

    Returns:
      the metrics of the last validation.

    Raises:
      InputError: the config cannot be used, does not fit the data or the workdir's run, the workdir
        cannot be written or another process trains in it, its checkpoint is damaged, or the loss is
        no longer finite.
      Preempted: SIGTERM asked for a stop, and a checkpoint of the last step is written.
    """
    check_groups(config)
    data = open_data(config.data.dir)
    check_config(config, data)
    batch_size, n = config.data.batch_size, data.n_slices["train"]
    positive = positive_class(data.labels, config.evaluation.positive_label)
    class_weights = read_class_weights(
        config.train.class_weights, data.labels, lambda: label_counts(data)
    )
    model = build_model(config, len(data.labels))
    schedule = learning_rate(config, n, batch_size)
    optimizer = make_optimizer(config, schedule)
    scorer = SliceScorer(model, config.evaluation.batch_size)
    meta = _meta(config, data)
    last_step = _last_step(config, n)
    validation_steps = _validation_steps(config, n, last_step)

    # 1. From the first weights, or from the latest checkpoint.
    with (
        open_run_folder(workdir) as folder,
        contextlib.ExitStack() as opened,
        preemption() as is_stop_requested,
    ):
        path = folder.path
        resumes = ckpt.has_checkpoint(path) and not fresh
        if not resumes:
            # Before anything is removed or made, as the initial weights may not be usable.
            state = create_state(
                _first_variables(config, model, data),
                optimizer,
                ema_decay=config.train.ema_decay,
            )
            known = known_slices(config, data)
        if fresh:
            folder.clear()
        checkpoints = opened.enter_context(ckpt.Checkpoints(path, is_shared=folder.is_shared))
        start = (checkpoints.latest_step or 0) if resumes else 0
        since_validation: dict[str, list[float]] = {}
        if resumes:
            check_same_run(checkpoints.meta(start), meta, folder.name)
            state = _restore(checkpoints, start, model, optimizer, config.train.ema_decay)
            known = checkpoints.digests(start) or known_slices(config, data)
            since_validation = checkpoints.progress(start)["since_validation"]
        lines = read_lines(path / METRICS_FILE, start)
        if start >= last_step or is_out_of_patience(lines, config.train.patience_epochs):
            print(f"{folder.name} has made its {start} steps; nothing is left to do.")
            return checkpoints.metrics(start)

        warnings = [] if lines else geometry_warnings(model)
        for warning in warnings:
            _warn(warning)

        # 2. Replication over the devices.
        make_step = make_train_step(model, optimizer, schedule, config, class_weights=class_weights)
        replicated = parallel.replicate(state)
        del state
        batches = _batches(config, data, start)

        # 3. Steps. Metrics are read a step late, so that the devices need not wait.
        late = None
        validated = Validation()
        with (
            (
                _open_log(folder, start, meta.config)
                if parallel.is_first_host()
                else contextlib.nullcontext()
            ) as log,
            tqdm(
                total=last_step * batch_size,
                initial=start * batch_size,
                unit="slice",
                desc="train",
                disable=not parallel.is_first_host(),
            ) as bar,
            parallel.translate_out_of_memory(
                f"a step of --config.data.batch_size={batch_size} slices in "
                f"--config.train.accumulate={config.train.accumulate} micro-batches does not fit "
                "the memory; raise train.accumulate, or lower the batch size"
            ),
        ):

            def record(step: int, metrics: dict[str, Any]) -> None:
                metrics = parallel.to_host(metrics)
                _check_finite(metrics, step, checkpoints, folder.name)
                for name, value in metrics.items():
                    since_validation.setdefault(name, []).append(float(value))
                if log:
                    log.step(step, metrics)
                bar.set_postfix(loss=float(metrics["loss"]), **validated.metrics, refresh=False)

            for step in range(start + 1, last_step + 1):
                replicated, metrics = make_step(replicated, next(batches))
                if late is not None:
                    record(step - 1, late)
                late = metrics
                bar.update(batch_size)
                must_stop = is_stop_requested()
                if step not in validation_steps and not must_stop:
                    continue

                # 4. Validation and checkpoint.
                record(step, late)
                late = None
                validated = Validation()
                if step in validation_steps:
                    validated = validate(config, scorer, replicated, data, positive)
                    means = {name: float(np.mean(x)) for name, x in since_validation.items()}
                    since_validation.clear()
                    epoch = step * batch_size / n
                    lines.append({"epoch": epoch, "train": means, "validation": validated.metrics})
                    if nothing_learnt := learning_warning(lines, config):
                        _warn(nothing_learnt)
                        warnings.append(nothing_learnt)
                    lines[-1]["warnings"], warnings = warnings, []
                    # Before the checkpoint: if that is not completed, resuming drops the line.
                    if log:
                        log.validation(step, epoch, means, validated.logged, lines[-1]["warnings"])
                        if validated.picture is not None:
                            log.image(step, validated.picture)
                if log:
                    # What is copied with the checkpoint must have all its steps.
                    log.flush()
                if folder.saves:
                    # Orbax removes old checkpoints when it saves: not while they are copied.
                    folder.flush()
                    _save(checkpoints, step, replicated, meta, validated, since_validation, known)
                    folder.saved(step, checkpoints.wait)
                if is_out_of_patience(lines, config.train.patience_epochs):
                    break
                if must_stop and step < last_step:
                    checkpoints.wait()
                    folder.flush()
                    raise Preempted(
                        f"{folder.name} received a stop signal at step {step} of {last_step}"
                    )
        checkpoints.wait()
        folder.flush()
        return validated.metrics


def _open_log(folder: RunFolder, start: int, config: ml_collections.ConfigDict) -> RunLog:
    log = RunLog(folder.path, start)
    if config.train.tracker != "none":
        log.tracker = Tracker(
            config.train.tracker,
            folder.path,
            # Not the whole path; the folds of a cross-validation end alike.
            "/".join(PurePath(folder.name).parts[-3:]),
            start,
            json.loads(config.to_json()),
            functools.partial(read_scalars, folder.path, start),
        )
    return log


def _warn(warning: str) -> None:
    """Prints a warning above the progress bar."""
    if parallel.is_first_host():
        tqdm.write(f"warning: {warning}", file=sys.stderr)


def _last_step(config: ml_collections.ConfigDict, n: int) -> int:
    steps = math.ceil(config.train.epochs * n / config.data.batch_size)
    return min(steps, config.train.steps or steps)


def _validation_steps(config: ml_collections.ConfigDict, n: int, last_step: int) -> set[int]:
    every = config.train.validate_every_epochs
    epochs = range(every, config.train.epochs + 1, every)
    return {math.ceil(epoch * n / config.data.batch_size) for epoch in epochs} | {last_step}


def _meta(config: ml_collections.ConfigDict, data: PreparedData) -> Meta:
    config = config.copy_and_resolve_references()
    # Absolute, since evaluate may be called from another folder.
    config.data.dir = data.location
    return Meta(
        config=config,
        labels=data.labels,
        ct=data.ct,
        fill_seed=data.seed,
        data_fingerprint=data.fingerprint,
        version=__version__,
        trained_on=_trained_on(data),
    )


def _trained_on(data: PreparedData) -> dict[str, Any]:
    splits = {}
    for split in ("train", "validation"):
        labels = [data.diagnoses[person][0] for person in data.persons[split]]
        splits[split] = {label: labels.count(label) for label in data.labels}
    sites = {data.diagnoses[person][1] for person in data.persons["train"]}
    return {"splits": splits, "sites": sorted(sites - {""})}


def _first_variables(
    config: ml_collections.ConfigDict, model: Model, data: PreparedData
) -> dict[str, Any]:
    variables = init_variables(model, config.seed)
    if not config.init.weights:
        return variables
    return start_from(config.init.weights, model, variables, data.labels, parts=config.init.parts)


def _restore(
    checkpoints: ckpt.Checkpoints,
    step: int,
    model: Model,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    shapes = jax.eval_shape(
        lambda: create_state(init_variables(model, 0), optimizer, ema_decay=ema_decay)
    )
    return TrainState.resumed(
        step,
        checkpoints.weights(step, shapes.weights),
        checkpoints.optimizer(step, shapes.rest),
    )


def _save(
    checkpoints: ckpt.Checkpoints,
    step: int,
    replicated: TrainState,
    meta: Meta,
    validated: Validation,
    since_validation: Mapping[str, list[float]],
    known: KnownSlices,
) -> None:
    state = parallel.to_host(replicated)
    checkpoints.save(
        step,
        state.weights,
        state.rest,
        meta,
        validated.metrics,
        {"since_validation": {name: list(values) for name, values in since_validation.items()}},
        validated.record.to_dict() if validated.record else None,
        known,
    )


def _batches(config: ml_collections.ConfigDict, data: PreparedData, start: int) -> Iterator[Any]:
    """The micro-batches of each step from `start` on, on the devices."""
    on_host = train_batches(
        data,
        batch_size=config.data.batch_size,
        micro_batches=config.train.accumulate,
        first_step=start,
        fill=config.data.fill,
        shuffle_buffer=config.data.shuffle_buffer,
        seed=config.seed,
    )
    return parallel.on_devices(on_host, parts=config.train.accumulate)


def _check_finite(
    metrics: dict[str, Any], step: int, checkpoints: ckpt.Checkpoints, workdir: str
) -> None:
    # A gradient that is not finite has corrupted the weights even if the loss is finite.
    if np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]):
        return
    checkpoints.wait()
    last = checkpoints.latest_step
    raise InputError(
        f"--workdir={workdir}: the loss or its gradient is not finite at step {step} "
        f"(last good checkpoint: {'none' if last is None else f'step {last}'}); "
        "lower --config.optimizer.learning_rate, or look for broken slices in qc.html."
    )
