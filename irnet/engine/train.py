"""Training: the loop over the steps, the evaluations between them, and the results at the end."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import Config
from ..data.loader import batches, batches_within
from ..data.sample import Batch
from ..interrupts import Request, Stopped, deferred
from ..models.irnet import IRNet
from ..progress import Progress
from . import distributed, evaluate, predict
from .build import describe
from .checkpoint import Checkpoint
from .endings import ending
from .resume import check_folder
from .run_folder import Meter, locked, log_file, write_settings
from .state import RunState
from .step import train_step

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
    with _writing_in(output):
        same_run = distributed.from_first(lambda: check_folder(output, resume))
        state = RunState(config, device, resume, same_run, memory)
        if distributed.rank() == 0:
            write_settings(output, state.config, device, state.step)
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
    config = state.config.train
    meter = Meter(output / "metrics.jsonl", config.log_every)
    progress = Progress("training", config.steps, "step", done=state.step, leave=True, hidden=hidden)
    if config.compile:
        progress.note("the first step compiles")
    with progress, contextlib.closing(_stream(state)) as stream:
        while state.step < config.steps:
            if distributed.count() == 1:
                stop.obey()
            batch, position = next(stream)
            distributed.obey(stop)
            rate, metrics = _take_step(state, batch, position)
            progress.update()
            meter.add(state.step, rate, metrics, batch, progress)
            with meter.paused():
                # Before saving, so that a run that goes on from this step knows its metric.
                if config.eval_every and state.step % config.eval_every == 0 and state.step < config.steps:
                    _assess(state, state.whole(), output, stop, hidden)
                if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                    state.save(output)
    model = state.whole()
    results, scores = _assess(state, model, output, stop, hidden)
    state.save(output)
    if scores is None:
        return results
    evaluate.write(output, results, scores, state.data.classes)
    predict.draw(output / "vis", model, state.held_out, state.config.data, config.vis)
    return results


def _take_step(state: RunState, batch: Batch, position: tuple[int, int]) -> tuple[float, dict[str, float]]:
    """Train on one batch, which ends at `position`; returns the step's learning rate and its metrics."""
    rate = state.scheduler.get_last_lr()[0]
    metrics = train_step(state.trained, batch, state.optimizer, state.scaler, state.config, state.step + 1)
    state.scheduler.step()
    state.step, state.position = state.step + 1, position
    state.updating = False
    return rate, metrics


def _assess(
    state: RunState, model: IRNet, output: Path, stop: Request, hidden: bool
) -> tuple[dict, evaluate.Scores | None]:
    """Evaluate the whole model on the held-out split; save its weights if they are the best so far.

    Rank 0 has the results.
    """
    with evaluate.progress_of(state.held_out, state.config, hidden) as progress:
        stream = evaluate.held_out(state.held_out, state.config, state.device, state.at_once)
        scores = evaluate.collect(model, stream, state.device, progress, stop)
    if scores is None:
        return {}, None
    results = evaluate.results(model, state.step, state.held_out.split, scores)
    class_ap = results["metrics"]["final"]["class_ap"]
    log.info("step %d: class AP %.2f%% on %d held-out images", state.step, 100 * class_ap, scores.images)
    if class_ap > state.best:
        state.best = class_ap
        state.save_best(output, model)
    return results, scores


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
