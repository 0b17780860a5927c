"""Training: the loop over the steps, the evaluations between them, and the results at the end."""

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from .. import files
from ..config import Config
from ..data.loader import batches, batches_within
from ..data.sample import Batch
from ..interrupts import Request, Stopped, deferred
from ..models.irnet import IRNet
from ..progress import Progress
from ..report.curve import learning_curve
from . import distributed, evaluate, events, predict
from .build import describe
from .checkpoint import Checkpoint
from .endings import ending
from .resume import check_folder
from .run_folder import Meter, Record, locked, log_file, read_lines, recording, write_settings
from .state import RunState
from .step import train_step

EVALUATED = ("step", "split", "images", "regions", "metrics", "attention")  # what metrics.jsonl tells of an evaluation
log = logging.getLogger("irnet")


def train(
    config: Config,
    output: Path,
    device: torch.device,
    resume: Checkpoint | None = None,
    progress: bool = True,
    memory: int | None = None,
) -> dict:
    """Train to config.train.steps and evaluate on the held-out split.

    In a group of processes (distributed.py) each calls it alike; together they take the steps that one would.
    Stopped at any moment and resumed, a run on a CPU ends with the same bits as one that was not stopped: the flips and
    the learning rate follow from the step's number alone, the order of the data from the images seen.

    Args:
        config: Settings of the run.
        output: Folder for the run's settings, log, metrics, results, pictures and checkpoints.
        device: Device on which to train.
        resume: Checkpoint to go on from, as `checkpoint.find` gives it.
        progress: Whether to show how far the run is; the lines of train.log_every come all the same.
        memory: Bytes that a step may take, which decide `train.grad_accum_steps`, and an evaluation; None: the settings
            do.

    Returns:
        The content of results.json; empty on other ranks than 0.

    Raises:
        InputError: Unusable data, a folder that holds another run or in which one is writing, a loss that is not
            finite, too little memory, a full disk. It says which step is saved.
        Stopped: SIGINT, SIGTERM or SIGHUP came. It says so, too.
    """
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(config.train.deterministic)
    events.check(config.train)
    with _writing_in(output):
        same_run = distributed.from_first(lambda: check_folder(output, resume))
        state = RunState(config, device, resume, same_run, memory)
        if distributed.rank() == 0:
            write_settings(output, state.config, device, state.step, state.evaluated == state.step)
        log.info("%s%s", describe(state.model, state.data), distributed.described())
        log.info("results go to %s: log.txt, metrics.jsonl, results.json, checkpoints/, vis/", output)
        with deferred() as stop:
            try:
                results = _run(state, output, stop, hidden=not progress)
            except (Exception, Stopped) as error:
                last_error = ending(error, state, output, stop)
                if last_error is error:
                    raise
                raise last_error from error
            distributed.obey(stop, "ended after the last step; its results are written")
            return results


@contextlib.contextmanager
def _writing_in(output: Path) -> Iterator[None]:
    """Lock the run's folder and copy the log into it, on rank 0, which alone writes there."""
    if distributed.rank():
        yield
        return
    with locked(output), log_file(output / "log.txt"):
        yield


def _run(state: RunState, output: Path, stop: Request, hidden: bool) -> dict:
    """Take all steps that are left, evaluate, and write the results; returns the content of results.json."""
    state.model.train()
    with recording(output, state.config, state.step + _is_evaluated(state)) as record:
        assess = functools.partial(_assess, state, output, record, stop, hidden)
        _take_steps(state, output, record, assess, stop, hidden)
        results, scores = assess()
        state.save(output)
        with state.evaluating():
            model = state.whole()
            if scores is not None:
                evaluate.write(output, results, scores, state.data.classes)
                predict.draw(output / "vis", model, state.held_out, state.config.data, state.config.train.vis)
    return results


def _take_steps(
    state: RunState, output: Path, record: Record, assess: Callable[[], object], stop: Request, hidden: bool
) -> None:
    """Take all steps that are left, with an evaluation or a checkpoint where one is due."""
    config = state.config.train
    if _is_due(state):  # the run that goes on was ended within this evaluation
        assess()
    meter = Meter(record, config.log_every, state.device)
    progress = Progress("training", config.steps, "step", done=state.step, leave=True, hidden=hidden)
    if config.compile:
        progress.note("the first step compiles")
    with progress, contextlib.closing(_stream(state)) as stream:
        while state.step < config.steps:
            if distributed.count() == 1:
                stop.obey()
            batch, position = distributed.next_batch(stream, stop)
            rate, metrics = _take_step(state, batch, position)
            progress.update()
            meter.add(state.step, rate, metrics, batch, progress)
            with meter.paused():
                # Before saving, so that a run that goes on from this step knows its metric.
                if _is_due(state):
                    assess()
                if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                    state.save(output)


def _take_step(state: RunState, batch: Batch, position: tuple[int, int]) -> tuple[float, dict[str, float]]:
    """Train on one batch, which ends at `position`; returns the step's learning rate and its metrics."""
    rate = state.scheduler.get_last_lr()[0]
    metrics = train_step(state.trained, batch, state.optimizer, state.scaler, state.config, state.step + 1)
    if state.average is not None:
        state.average.update(state.step + 1)
    state.scheduler.step()
    state.step, state.position = state.step + 1, position
    state.updating = False
    return rate, metrics


def _is_evaluated(state: RunState) -> bool:
    """Whether the model has been evaluated after this step, and will not be again, as it will at the end."""
    return state.evaluated == state.step < state.config.train.steps


def _is_due(state: RunState) -> bool:
    """Whether an evaluation after this step is still to come, apart from that at the end."""
    every = state.config.train.eval_every
    due = every > 0 and state.step % every == 0 and 0 < state.step < state.config.train.steps
    return due and state.step != state.evaluated


def _assess(
    state: RunState, output: Path, record: Record, stop: Request, hidden: bool
) -> tuple[dict, evaluate.Scores | None]:
    """Evaluate on the held-out split, and keep what comes out; rank 0 has the results."""
    with state.evaluating():
        model = state.whole()
        with evaluate.progress_of(state.held_out, state.config, hidden) as progress:
            stream = evaluate.held_out(state.held_out, state.config, state.device, state.at_once)
            scores = evaluate.collect(model, stream, state.device, progress, stop)
        results = {} if scores is None else _keep(state, model, output, record, scores)
    state.evaluated = state.step
    return results, scores


def _keep(state: RunState, model: IRNet, output: Path, record: Record, scores: evaluate.Scores) -> dict:
    """Record an evaluation, and save the weights if they are the best so far; returns the content of results.json."""
    results = evaluate.results(model, state.step, state.held_out.split, scores)
    record.write({key: results[key] for key in EVALUATED})
    class_ap = results["metrics"]["final"]["class_ap"]
    log.info("step %d: class AP %.2f%% on %d held-out images", state.step, 100 * class_ap, scores.images)
    if class_ap > state.best:
        state.best = class_ap
        state.save_best(output, model)
    record.show(state.step, predict.pictures(model, state.held_out, state.config.data, state.config.train.vis))
    state.model.train()  # pictures are of a model that does not train
    if state.config.train.curve:
        files.write(output / "curve.png", learning_curve(read_lines(record.path)))
    return results


def _stream(state: RunState) -> Iterator[tuple[Batch, tuple[int, int]]]:
    """Batches from the state's position on, epoch after epoch without end, each with the position after it.

    In a group of processes they are the process's shares of the batches.
    """
    data, config = state.data, state.config
    epoch, seen = state.position
    options = {"train": True, "pin_memory": state.device.type == "cuda", "share": distributed.share()}
    while True:
        start, seen = batches_within(data, config, epoch, seen)
        for batch in batches(data, config, epoch=epoch, start_batch=start, **options):
            seen += batch.whole
            yield batch, (epoch, seen) if seen < len(data) else (epoch + 1, 0)
        epoch, seen = epoch + 1, 0
