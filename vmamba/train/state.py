"""The state of a run, from which it continues as if nothing had happened, and the weights it leaves behind."""
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import UserError
from .build import Run
from .checkpoint import load_newest_state, require_finite, save_state, save_weights
from .loop import Progress
from .sharding import load_whole, shard_optimizer_state, whole

__all__ = ["restore_run", "run_weights", "save_run", "save_run_weights", "step_schedule"]


def run_weights(run: Run, ema: bool = False) -> dict[str, Any]:
    """Returns the `state_dict` of the trained or averaged weights; with `--fsdp` all processes have to call it."""
    state = run.task.get_checkpoint_state(ema=ema)["state_dict_ema" if ema else "state_dict"]
    return whole(state, run.args.rank == 0) if run.args.fsdp else state


def save_run(run: Run) -> None:
    """Writes the state of the run; the one before is kept beside it. The first process does, all have to call it.

    Raises:
        UserError: the weights are not finite, or the file cannot be written. The older states stay as they are.
    """
    if run.args.rank and not run.args.fsdp:
        return
    scaler = run.optimisation.scaler
    state = {
        **run.task.get_checkpoint_state(),
        **(run.task.get_checkpoint_state(ema=True) if run.args.model_ema else {}),
        "optimizer": run.optimisation.optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler is not None else None,
    }
    if run.args.fsdp:
        state = whole(state, run.args.rank == 0)
    if run.args.rank:
        return
    for key in ("state_dict", "state_dict_ema"):
        require_finite(state.get(key, {}), run.directory.state)
    save_state(run.directory.state, {
        **state,
        "progress": asdict(run.progress),
        "steps": run.steps,
        "description": asdict(run.description),
    }, previous=run.directory.previous_state)


def save_run_weights(
    run: Run, results: Mapping[bool, Any], weights: dict[bool, dict[str, Any]], improved: bool
) -> None:
    """Writes the weights of a finished epoch: the last, the best if they are, and those that are kept.

    Args:
        run: the run, `run.progress.epoch` epochs after its beginning.
        results: evaluation of the trained weights (False) and of the averaged ones (True); has `metrics()`.
        weights: of both.
        improved: whether this is the best epoch so far.
    """
    directory, interval = run.directory, run.args.checkpoint_interval
    for ema, result in results.items():
        run.description.epoch, run.description.metrics = run.progress.epoch, result.metrics()
        paths = [directory.last_ema if ema else directory.last]
        if improved:
            paths.append(directory.best_ema if ema else directory.best)
        if interval and run.progress.epoch % interval == 0 and ema == run.args.model_ema:
            paths.append(directory.epoch_weights(run.progress.epoch))
        for path in paths:
            save_weights(path, weights[ema], run.description)


def restore_run(run: Run) -> bool:
    """Loads the newest state that can be read into `run`; returns False if the run has saved none yet.

    Raises:
        UserError: no state can be read, or it is one of other options.
    """
    path = run.directory.path
    state = load_newest_state(run.directory, put_aside=run.args.rank == 0)
    if state is None:
        return False
    known, now = state["description"], asdict(run.description)
    for key in ("architecture", "num_classes", "in_chans"):
        if known[key] != now[key]:
            raise UserError(f"cannot resume {path}: its {key.replace('_', ' ')} is {known[key]}, not {now[key]}")
    try:
        progress = Progress(**state["progress"])
        if not all(type(value) in (int, float) for value in asdict(progress).values()):
            raise ValueError(f"its progress is {progress}")
        if progress.step and state["steps"] != run.steps:
            raise ValueError(f"it stopped at step {progress.step} of {state['steps']} in epoch {progress.epoch + 1}, "
                             f"which would now have {run.steps} steps")
        load = load_whole if run.args.fsdp else type(run.task).load_checkpoint_state
        load(run.task, state["state_dict"], state.get("task_state"))
        if run.args.model_ema:
            load(run.task, state["state_dict_ema"], state.get("task_state_ema"), ema=True)
        run.optimisation.optimizer.load_state_dict(state["optimizer"])
        if run.args.fsdp:
            shard_optimizer_state(run.optimisation.optimizer)
        if run.optimisation.scaler is not None:
            run.optimisation.scaler.load_state_dict(state["scaler"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"cannot resume {path} with these options: {error}") from error
    run.progress = progress
    step_schedule(run)
    return True


def step_schedule(run: Run) -> None:
    """Sets the learning rate that the next step needs."""
    progress, scheduler = run.progress, run.optimisation.scheduler
    scheduler.step(progress.epoch)
    scheduler.step_update(progress.epoch * run.steps + progress.step)
