"""One training run, read top to bottom."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from train.config import TrainConfig
from train.run import resume
from train.run.checkpoints import Checkpoints
from train.run.log import DataWait, RunLog
from train.run.preemption import Preempted, Preemption
from train.run.time_left import TimeLeft
from train.run.watchdog import Watchdog
from train.trainer import mesh as meshes
from train.trainer import nonfinite, online_probe
from train.trainer.diagnostics import Diagnostics
from train.trainer.evaluation import Trained, device_batches, evaluate
from train.trainer.model import create_state, put_weights
from train.trainer.objective import objective
from train.trainer.optim import learning_rates
from train.trainer.prepare import Prepared, prepare
from train.trainer.step import Normalize, State, make_loss, make_predict, make_train_step, weights_to_use
from vcreg_jax import Sites


def train(
    config: TrainConfig,
    sites: Sites,
    seed: int,
    directory: Path,
    title: str,
    weights: tuple[dict, dict] | None = None,
    time_left: TimeLeft | None = None,
) -> Trained:
    """Trains to `config.steps`, going on from the newest checkpoint under `directory` if there is one.

    `weights`, parameters and batch statistics, are what it starts from in place of those that the seed draws.
    `time_left` knows what else the run does, so that one line says when all is done.

    Writes `metrics.jsonl` and `checkpoints/`. The order within a step is fixed: evaluate, save, diagnose, step, log.
    """
    run = prepare(config, sites)
    normalize = Normalize(config.data.mean, config.data.std)
    known = make_train_step.cache_info().misses
    train_step = make_train_step(
        run.graphdef, run.optimizer, normalize, objective(config), run.mesh, config.ema, config.guard
    )
    predict_with = make_predict(run.graphdef, normalize)
    rates = learning_rates(config.optimizer.schedule, config.steps)
    directory.mkdir(parents=True, exist_ok=True)
    about = resume.description(config, sites, seed, run.mesh, run.data)
    with (
        jax.set_mesh(run.mesh),
        Watchdog(config.hang_seconds) as watchdog,
        Preemption(run.mesh) as preemption,
        Checkpoints(directory / "checkpoints", config.checkpoints, about, config.tested_by) as checkpoints,
    ):
        state = create_state(run.architecture, run.optimizer, run.mesh, seed, config.ema is not None, config.guard)
        if weights is not None:
            state = put_weights(state, *weights)
        start, warnings = 0, []
        if restored := checkpoints.restore_newest(like=state):
            start, state = restored.step, restored.state
            warnings = [*restored.warnings, *resume.check(start, restored.run, about)]
        diagnostics = Diagnostics(run.architecture, normalize, objective(config))
        batches = DataWait(_train_batches(run, config, seed, start), watchdog)
        boundary = functools.partial(_boundary, watchdog, preemption)
        with RunLog(directory, title, config, start, time_left) as log:
            log.warn(step := start, warnings)
            if make_train_step.cache_info().misses > known and start < config.steps:
                log.compiling(start)
            try:
                for step in range(start, config.steps + 1):
                    boundary()
                    last, validation = step == config.steps, {}
                    if last or step % config.eval_every == 0:
                        validation = evaluate_network(predict_with, state, run, config, boundary)
                        log.validation(step, validation)
                    if last or (step % config.save_every == 0 and step > start):
                        log.warn(step, checkpoints.save(step, state, validation, wait=last))
                    if last:
                        stop_if_stuck(config, run, state, seed, directory)
                        break
                    batch = next(batches)
                    if config.diagnose_every and (step == 1 or (step and step % config.diagnose_every == 0)):
                        diagnostics.look(step, state, batch, seed, log)
                    state, metrics = train_step(state, batch, seed)
                    preemption.step_taken()
                    watchdog.compiled()
                    if step % config.log_every == 0:
                        log.train(step, metrics | {"learning_rate": rates[step], "data_wait": batches.share()})
                        stop_if_stuck(config, run, state, seed, directory)
            except Preempted:
                log.warn(step, checkpoints.save(step, state, {}, wait=True))
                raise
        if config.tested_by is not None:
            step, state, validation = checkpoints.restore_best(like=state)
    predict = functools.partial(predict_with, *weights_to_use(state))
    return Trained(state, run.mesh, predict, validation["accuracy"], step)


def load_given(config: TrainConfig, sites: Sites, weights: tuple[dict, dict]) -> Trained:
    """The network with these weights, not trained; they must be complete."""
    run = prepare(config, sites)
    predict_with = make_predict(run.graphdef, Normalize(config.data.mean, config.data.std))
    with jax.set_mesh(run.mesh):
        state = put_weights(create_state(run.architecture, run.optimizer, run.mesh, 0, guard=config.guard), *weights)
        validation = evaluate_network(predict_with, state, run, config, lambda: None)
    return Trained(state, run.mesh, functools.partial(predict_with, *weights_to_use(state)), validation["accuracy"])


def _boundary(watchdog: Watchdog, preemption: Preemption) -> None:
    """Between two steps or two evaluated batches: nothing is half done."""
    watchdog.beat("a step, an evaluated batch or a checkpoint")
    preemption.check()


def evaluate_network(
    predict_with: Any, state: State, run: Prepared, config: TrainConfig, boundary: Callable[[], None]
) -> dict[str, float]:
    """What there is to say of the network on validation images; without labels to train on, what its features say."""
    predict, watched = functools.partial(predict_with, *weights_to_use(state)), {}
    if config.monitor_images:
        watched = online_probe.watch(predict, run.data, run.validation, config, run.mesh, boundary)
    if config.joint_embedding is not None:
        return watched | {"accuracy": watched["knn_accuracy"]}
    return watched | evaluate(predict, run.validation, config.batch_size, run.mesh, boundary)


def stop_if_stuck(config: TrainConfig, run: Prepared, state: State, seed: int, directory: Path) -> None:
    """Raises FloatingPointError, with where it began, when no update has been taken for too long."""
    if (first_step := nonfinite.first_bad_step(config.guard, state)) is not None:
        loss_fn = make_loss(run.graphdef, Normalize(config.data.mean, config.data.std), objective(config))
        batch = next(_train_batches(run, config, seed, first_step))
        raise nonfinite.stop(loss_fn, state, batch, seed, first_step, directory)


def _train_batches(run: Prepared, config: TrainConfig, seed: int, start: int) -> Iterator[dict[str, jax.Array]]:
    rows = meshes.host_rows(run.mesh, config.batch_size)
    return device_batches(run.data.train_batches(config.batch_size, seed, start, config.mix.group_size, rows), run.mesh)
