"""The state of a run between two steps, from its start or a checkpoint, and back into checkpoints."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..config import Config
from ..data.dataset import RegionDataset
from ..errors import InputError
from ..models.irnet import IRNet
from . import checkpoint, distributed, sharded
from .build import CHANGED, build_model, compile_parts, open_splits, restore_model, take_weights
from .checkpoint import BEST, LAST, Checkpoint
from .ema import Average
from .evaluate import images_at_once
from .fit import evaluated_at_once, fit_text, fitted, scene_of, size_text
from .memory_shared import held_meanwhile
from .optim import make_optimizer, make_scheduler
from .resume import changes, check_settings, fingerprint, reinstate_previous
from .step import LOWER, make_scaler

log = logging.getLogger("irnet")


class RunState:
    """What the checkpoints of a run hold: its model and optimiser, and where it stands.

    Attributes:
        data: Training part of the data set.
        model: The model.
        trained: What the steps call: the model, or what exchanges its gradients with those of other processes.
        held_out: Part on which the model is evaluated.
        step: Number of steps done.
        average: Average of the weights, where the settings ask for one.
        position: Epoch, and how many of its images have been trained on.
        best: Best class AP of an evaluation so far; -1 before the first.
        evaluated: Step of the last evaluation; None before the first.
        at_once: Images that an evaluation lets through the model together.
        saved: Step of the checkpoint `last`; None before there is one.
        updating: Whether weights are being changed, by the optimiser or `evaluating`; they are no step's then.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        resume: Checkpoint | None = None,
        same_run: bool = False,
        memory: int | None = None,
    ):
        """Open the data and make or restore the model and its optimiser.

        Args:
            config: Settings of the run.
            device: Device on which it trains.
            resume: Checkpoint to go on from.
            same_run: Whether that checkpoint is this run's own, see `resume.check_folder`.
            memory: Bytes that a step may take, which decide `train.grad_accum_steps`; None: the settings do.

        Raises:
            InputError: The data cannot be used, the checkpoint does not fit it or the settings, or no step fits into
                the memory.
        """
        self.device, self.begin = device, time.perf_counter()
        self.data, self.held_out = open_splits(config.data)
        model = make_model(config, self.data, resume)
        self.config, self.at_once = config, images_at_once(self.held_out, config)
        if memory is not None:
            self._plan(model, memory, device.type == "cuda")
        config = self.config
        self.fingerprints = {"train": fingerprint(self.data), "val": fingerprint(self.held_out)}
        hashes = [split["hash"] for split in self.fingerprints.values()]
        trouble, cure = "its annotations are not those of rank 0", "give all machines the same data"
        distributed.check_alike(hashes, self.data.root, trouble, cure)
        self.step, self.position, self.best, self.seconds_before = 0, (0, 0), -1.0, 0.0
        self.saved, self.updating, self.evaluated = None, False, None
        self.model = model.to(device)
        if config.train.parallel == "fsdp" and distributed.count() > 1:
            sharded.shard(self.model, config.train.amp)
        self.optimizer = make_optimizer(self.model, config.train)
        self.optimizer.register_step_pre_hook(self._begin_update)  # in the backward pass or behind it: see train_step
        self.scaler = make_scaler(device, config.train)
        self.parameters = dict(self.model.named_parameters())
        self.average = Average(self.model, config.train.ema) if config.train.ema else None
        if resume is not None:
            self._restore(resume, same_run)
        self.scheduler = make_scheduler(self.optimizer, config.train, self.step)
        self.model.set_grad_checkpointing(config.train.grad_checkpointing)
        if config.train.compile:
            compile_parts(self.model)
        self.trained = distributed.parallel(self.model)

    def _plan(self, model: IRNet, memory: int, gpu: bool) -> None:
        """Decide by the memory what one process works on at once, in a step and in an evaluation."""
        processes = distributed.count()
        fit = fitted(self.config, scene_of(self.data, self.config, model), memory, gpu, processes)
        several = f", {processes} processes, train.parallel={fit.config.train.parallel}" if processes > 1 else ""
        log.info("planned for %s of memory: %s%s", size_text(memory), fit_text(fit), several)
        self.config, scene = fit.config, scene_of(self.held_out, fit.config, model)
        if processes > 1:
            left = memory - held_meanwhile(self.config, fit.footprint, model, processes)
            self.at_once = evaluated_at_once(self.config, scene, left, gpu)
        else:
            self.at_once = evaluated_at_once(self.config, scene, memory, gpu, training=True)

    def _begin_update(self, *_: object) -> None:
        self.updating = True

    def _restore(self, resume: Checkpoint, same_run: bool) -> None:
        """Take over all of a checkpoint but its model."""
        extra = resume.extra
        checkpoint.restore_optimizer(self.optimizer, self.parameters, resume.optimizer, resume.source)
        self.step, self.seconds_before, self.position = resume.step, extra["seconds"], tuple(extra["position"])
        self.evaluated = extra.get("evaluated", self.step)  # earlier checkpoints do not say
        if self.average is not None and resume.trained:
            shapes = {name: t.shape for name, t in resume.model.items()}
            if any(t.shape != shapes.get(name) for name, t in resume.trained.items()):
                raise InputError(resume.source, "holds an average that does not fit its weights", CHANGED)
            self.average.restore(resume.model)
        if self.scaler.is_enabled() and extra["scaler"]:
            self.scaler.load_state_dict(extra["scaler"])
        if same_run:
            self.best, self.saved = extra["best"], resume.step
            if distributed.rank() == 0:
                reinstate_previous(resume)
        log.info("going on from step %d, %s", self.step, resume.source)
        for line in changes(resume, self.config, self.fingerprints):
            log.warning("%s", line)

    def whole(self) -> IRNet:
        """The model with all its weights; to be called by all processes."""
        return sharded.whole(self.model) if self.sharded else self.model

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the model."""
        return distributed.is_sharded(self.model)

    def to_checkpoint(self, with_optimizer: bool = True, model: IRNet | None = None) -> Checkpoint:
        """Make a checkpoint of the state, whose tensors share its memory.

        Args:
            with_optimizer: Whether a run can go on from it.
            model: That of `whole`, where it is at hand, so that each process has the whole checkpoint.

        Returns:
            The checkpoint.

        Raises:
            InputError: A weight or a moment of the optimiser is infinite or NaN.
        """
        extra = {
            "best": self.best,
            "evaluated": self.evaluated,
            "scaler": self.scaler.state_dict(),
            "resumable": with_optimizer,
            "seconds": self.seconds_before + time.perf_counter() - self.begin,
            "position": self.position,
            "data": self.fingerprints,
        }
        moments = checkpoint.optimizer_tensors(self.optimizer, self.parameters) if with_optimizer else {}
        weights, trained = (model or self.model).state_dict(), {}
        if self.average is not None and with_optimizer:
            trained = {name: weights[name] for name in self.average.weights}
            weights = weights | self.average.weights
        if name := checkpoint.not_finite(weights | moments) or checkpoint.not_finite(trained):
            raise InputError("training", f"after step {self.step} the weights are not finite ({name})", LOWER)
        return Checkpoint(self.step, self.config, self.data.classes, weights, moments, extra, trained=trained)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it the model has the weights to be evaluated: their average, where there is one."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Exchange weights and average. Where that fails midway, the weights are no step's, and nothing is saved."""
        if self.average is not None:
            self.updating = True
            self.average.exchange()
            self.updating = False

    def save(self, output: Path) -> None:
        """Write the checkpoint `last` of the run folder `output`; the one before stays as `previous`.

        Rank 0 writes it, or all together where each holds a part.
        """
        if distributed.rank() == 0 or self.sharded:
            checkpoint.save(output / "checkpoints" / LAST, self.to_checkpoint())
        self.saved = self.step

    def save_best(self, output: Path, model: IRNet | None = None) -> None:
        """Write the weights alone, those of `whole` while `evaluating`, as the checkpoint `best` of the run folder."""
        checkpoint.save(output / "checkpoints" / BEST, self.to_checkpoint(with_optimizer=False, model=model))


def make_model(config: Config, data: RegionDataset, resume: Checkpoint | None = None) -> IRNet:
    """Make the model with which a run starts, on the CPU.

    Args:
        config: Settings of the run.
        data: Training part of its data set.
        resume: Checkpoint to go on from.

    Returns:
        The checkpoint's model; without one a fresh model, with another run's weights where `train.init_from` names one.

    Raises:
        InputError: The checkpoint cannot be gone on from, or the run in `train.init_from` cannot be used.
    """
    if resume is not None:
        check_settings(resume, config, data.classes)
        return restore_model(config.model, len(resume.classes), resume.model | resume.trained, resume.source)
    model = build_model(config, data)
    if config.train.init_from:
        source = checkpoint.find(config.train.init_from)
        take_weights(model, data.classes, source.model, source.classes, source.source)
    return model
