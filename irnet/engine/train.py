"""Training: steps of the optimiser, and going on after a stop to bit-identical weights."""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from .. import files, losses
from ..config import Config, TrainConfig, dump
from ..data.loader import batches
from ..data.sample import Batch
from ..errors import InputError, explain
from ..interrupts import Request, Stopped, deferred
from ..model import IRNet
from ..progress import Progress, speed
from . import checkpoint, evaluate, predict
from .build import (
    build_model,
    compile_parts,
    open_dataset,
    restore_model,
    same_classes,
    sizes,
    some_regions,
    take_weights,
)
from .checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from .run_folder import environment, keep_lines, locked, log_file

log = logging.getLogger("irnet")
LOWER = "lower train.lr or set train.clip_norm"
SMALLER = "lower -b, raise --grad-accum-steps, add --grad-checkpointing, lower --max-regions, take --amp bf16"
# What a checkpoint holds the outcome of, so that reading it again changes nothing.
SETTLED = ("train.optimizer", "train.init_from", "data.class_graph", "data.word_vectors")


def train(
    config: Config, output: Path, device: torch.device, resume: Checkpoint | None = None, progress: bool = True
) -> dict:
    """Train to config.train.steps, evaluate on the held-out split, and return the content of results.json.

    output  the run folder: config.yaml, env.txt, log.txt, metrics.jsonl, results.json, per_class.csv, vis/,
            checkpoints/
    progress  whether to show how far it is; the lines of log_every come all the same
    resume  the checkpoint to go on from, as `checkpoint.find` gives it
    Stopped at any moment and resumed, a run on a CPU ends with the same bits as one that was not stopped: the flips and
    the learning rate follow from the step's number alone, the order of the data from the images seen. Raises
    InputError for unusable data, a folder that holds another run or in which one is writing, a loss that is not finite,
    too little memory, a full disk; `Stopped` for SIGINT, SIGTERM and SIGHUP. Either says which step is saved.
    """
    folder = output / "checkpoints"
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(config.train.deterministic)
    with locked(output), log_file(output / "log.txt"):
        own = resume is not None and resume.source.resolve().parent == folder.resolve()
        if checkpoint.exists(output) and not own:
            cure = "add --resume to go on with it, or choose another --output-dir"
            raise InputError(output, "already holds a run", cure)
        if own and not (resume.source.exists() and checkpoint.version_of(resume.source) == resume.version):
            raise InputError(output, "another run has just written there", "start again with --resume")
        run = _Run(config, output, device, resume, own)
        keep_lines(output / "metrics.jsonl", run.step)
        files.write(output / "config.yaml", dump(config))
        files.write(output / "env.txt", environment(device))
        log.info("%s", describe(run.model, run.data))
        log.info("results go to %s: log.txt, metrics.jsonl, results.json, checkpoints/, vis/", output)
        with deferred() as stop:
            try:
                results = run.to_the_end(stop, hidden=not progress)
            except (Exception, Stopped) as error:
                told = run.ended(error, stop)
                if told is error:
                    raise
                raise told from error
            stop.obey("ended after the last step; its results are written")
            return results


class _Run:
    """A run between two steps: all that its checkpoints hold.

    step      steps done
    position  the epoch, and how many of its images have been given out
    saved     the step in `last`; None before the first
    updating  whether the optimiser is in the midst of the weights
    """

    def __init__(self, config: Config, output: Path, device: torch.device, resume: Checkpoint | None, own: bool):
        self.config, self.output, self.device, self.begin = config, output, device, time.perf_counter()
        self.data, self.held_out = open_dataset(config.data, "train"), open_dataset(config.data, "val")
        some_regions(self.data)
        some_regions(self.held_out)
        same_classes(
            self.held_out.classes, self.data.classes, self.held_out.path, "give both splits the same categories"
        )
        self.fingerprints = {"train": _fingerprint(self.data), "val": _fingerprint(self.held_out)}
        self.step, self.position, self.best, self.earlier = 0, (0, 0), -1.0, 0.0
        self.saved, self.updating = None, False
        self.model = (self._fresh_model() if resume is None else self._restored_model(resume)).to(device)
        self.optimizer, self.schedule = make_optimizer(self.model, config.train)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        self.parameters = dict(self.model.named_parameters())
        if resume is not None:
            self._go_on(resume, own)
        self.model.set_grad_checkpointing(config.train.grad_checkpointing)
        if config.train.compile:
            compile_parts(self.model)

    def _fresh_model(self) -> IRNet:
        model = build_model(self.config, self.data)
        if self.config.train.init_from:
            source = checkpoint.find(self.config.train.init_from)
            take_weights(model, self.data.classes, source.model, source.classes, source.source)
        return model

    def _restored_model(self, resume: Checkpoint) -> IRNet:
        _check_resume(resume, self.config, self.data.classes)
        return restore_model(self.config.model, len(resume.classes), resume.model, resume.source)

    def _go_on(self, resume: Checkpoint, own: bool) -> None:
        """Take up the state of a checkpoint; `own` tells a run that goes on from one that starts from another's."""
        extra = resume.extra
        checkpoint.restore_optimizer(self.optimizer, self.parameters, resume.optimizer, resume.source)
        self.step, self.earlier, self.position = resume.step, extra["seconds"], tuple(extra["position"])
        if own:
            self.best, self.saved = extra["best"], resume.step
        if self.scaler.is_enabled() and extra["scaler"]:
            self.scaler.load_state_dict(extra["scaler"])
        if own and resume.source.name == PREVIOUS:  # or the next save would keep the damaged one in its place
            last = resume.source.with_name(LAST)
            if last.exists():  # it may be whole: reading fails for a moment where a network does
                os.replace(last, last.with_name("damaged.safetensors"))
                log.warning("%s is kept as damaged.safetensors", last)
            os.replace(resume.source, last)
        log.info("going on from step %d, %s", self.step, resume.source)
        for line in [*_changes(resume, self.config), *_changed_data(extra["data"], self.fingerprints)]:
            log.warning("%s", line)

    def state(self, with_optimizer: bool = True) -> Checkpoint:
        """The content of a checkpoint. InputError where its numbers are not finite."""
        extra = {
            "best": self.best,
            "scaler": self.scaler.state_dict(),
            "resumable": with_optimizer,
            "seconds": self.earlier + time.perf_counter() - self.begin,
            "position": self.position,
            "data": self.fingerprints,
        }
        moments = checkpoint.optimizer_tensors(self.optimizer, self.parameters) if with_optimizer else {}
        model = self.model.state_dict()
        if name := checkpoint.not_finite(model | moments):
            raise InputError("training", f"after step {self.step} the weights are not finite ({name})", LOWER)
        return Checkpoint(self.step, self.config, self.data.classes, model, moments, extra)

    def save(self) -> None:
        """Write `last`."""
        checkpoint.save(self.output / "checkpoints" / LAST, self.state())
        self.saved = self.step

    def to_the_end(self, stop: Request, hidden: bool) -> dict:
        """All steps that are left, the evaluation and its files; the content of results.json."""
        self.model.train()
        steps, every = self.config.train.steps, self.config.train
        meter = _Meter(self.output / "metrics.jsonl", every.log_every)
        progress = Progress("training", steps, "step", done=self.step, leave=True, hidden=hidden)
        if every.compile:
            progress.note("the first step compiles")
        with progress, contextlib.closing(_stream(self.data, self.config, *self.position, self.device)) as stream:
            while self.step < steps:
                stop.obey()
                batch, position = next(stream)
                stop.obey()
                rate, figures = self._train(batch)
                self.step, self.position = self.step + 1, position
                progress.update()
                meter.add(self.step, rate, figures, batch, progress)
                # Before saving, so that a run that goes on from this step knows its figure.
                with meter.paused():
                    if every.eval_every and self.step % every.eval_every == 0 and self.step < steps:
                        self._assess(stop, hidden)
                    if self.step % every.checkpoint_every == 0 or self.step == steps:
                        self.save()
        results, scores = self._assess(stop, hidden)
        self.save()
        evaluate.write(self.output, results, scores, self.data.classes)
        predict.draw(self.output / "vis", self.model, self.held_out, self.config.data, self.config.train.vis)
        return results

    def _train(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """The next step on one batch; its learning rate and the figures to log."""
        step = self.step + 1
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        figures = gradients(self.model, batch, self.optimizer, self.scaler, self.config, self.device)
        if not math.isfinite(figures["loss"]):
            raise InputError("training", f"the loss at step {step} is {figures['loss']}", LOWER)
        self.updating = True
        update(self.optimizer, self.scaler)
        self.updating = False
        return rate, figures

    def _assess(self, stop: Request, hidden: bool) -> tuple[dict, evaluate.Scores]:
        """Evaluate on the held-out split and save the weights if they are the best so far."""
        with evaluate.progress_of(self.held_out, self.config, hidden) as progress:
            stream = _unless(stop, evaluate.held_out(self.held_out, self.config, self.device))
            scores = evaluate.collect(self.model, stream, self.device, progress)
        results = evaluate.results(self.model, self.step, self.held_out.split, scores)
        figure = results["metrics"]["final"]["class_ap"]
        log.info("step %d: class AP %.2f%% on %d held-out images", self.step, 100 * figure, scores.images)
        if figure > self.best:
            self.best = figure
            checkpoint.save(self.output / "checkpoints" / BEST, self.state(with_optimizer=False))
        return results, scores

    def ended(self, error: BaseException, stop: Request) -> BaseException:
        """What to raise for `error`, after saving what is done where that can be: it says which step is kept."""
        known = explain(error, SMALLER) if isinstance(error, Exception) else None
        diverged = isinstance(error, evaluate.NotFinite)
        if diverged:
            known.trouble = f"after step {self.step} {known.trouble}"
        kept = self._keep(diverged)
        if isinstance(error, Stopped) or (stop.number is not None and known is not None and known.where == "--workers"):
            return Stopped(stop.number, f"ended after step {self.step}; {kept}")
        return error if known is None else InputError(known.where, known.trouble, f"{known.cure}; {kept}")

    def _keep(self, diverged: bool) -> str:
        """Save what is done if it is whole and not saved yet; says which step can be gone on from."""
        trouble = ""
        if self.step and self.step != self.saved and not self.updating and not diverged:
            try:
                self.save()
            except InputError as error:
                trouble = f" (step {self.step} could not be saved: {error.trouble})"
        if self.saved is None:
            return f"no step is saved{trouble}"
        place = self.output / "checkpoints" / LAST
        if diverged and self.saved == self.step:
            return f"these weights are kept in {place}: start another run"
        return f"step {self.saved} is saved in {place}{trouble}: train goes on from it with --resume, demo by itself"


def _fingerprint(data) -> dict[str, str | int]:
    """What tells a split from itself with other images or annotations."""
    regions = sum(map(len, data.image_labels()))
    return {"file": str(data.path), "images": len(data), "regions": regions, "hash": data.fingerprint()}


def _changed_data(before: dict[str, dict], now: dict[str, dict]) -> Iterator[str]:
    """A line for each split whose annotations are not those that the checkpoint's run has seen."""
    for part, new in now.items():
        old = before[part]
        if new["hash"] != old["hash"]:
            yield (
                f"{new['file']}: its annotations have changed since the checkpoint, from {old['images']} images with "
                f"{old['regions']} regions to {new['images']} with {new['regions']}; the run goes on with the new ones"
            )


def _unless(stop: Request, stream: Iterable[Batch]) -> Iterator[Batch]:
    for batch in stream:
        stop.obey()
        yield batch


def _check_resume(resume: Checkpoint, config: Config, classes: list[str]) -> None:
    """InputError where the run cannot go on from this checkpoint."""
    same_classes(classes, resume.classes, resume.source, "use the data set of that run, or --init-from in a new run")
    old, new = dataclasses.asdict(resume.config), dataclasses.asdict(config)
    settled = [
        f"model.{key}" for key in new["model"] if key != "backbone_weights"
    ]  # the checkpoint holds what came of it
    for section, key in (name.split(".") for name in [*settled, *SETTLED]):
        if old[section][key] != new[section][key]:
            trouble = f"was made with {section}.{key} = {old[section][key]}, not {new[section][key]}"
            raise InputError(resume.source, trouble, "leave it as it was, or start another run")
    if not resume.extra.get("resumable"):
        raise InputError(resume.source, "holds weights but no state of the optimiser", "go on from last.safetensors")
    missing = {"best", "scaler", "seconds", "position", "data"} - resume.extra.keys()
    if missing:
        raise InputError(resume.source, f"has a damaged header (no {min(missing)})", "take an earlier checkpoint")


def _changes(resume: Checkpoint, config: Config) -> Iterator[str]:
    """A line for every setting that is not the checkpoint's, and for what they do to the learning rate."""
    old, new = dataclasses.asdict(resume.config), dataclasses.asdict(config)
    for section, values in new.items():
        for key, value in values.items():
            if value != old[section][key]:
                yield f"resumed with {section}.{key} = {value}, before {old[section][key]}"
    last = learning_rate(resume.config.train, resume.step)
    planned, rate = (learning_rate(train, resume.step + 1) for train in (resume.config.train, config.train))
    if rate != planned and resume.step < config.train.steps:
        yield (
            f"the learning rate goes on at {rate:.3g}; the last was {last:.3g}, "
            f"and with the settings before it would be {planned:.3g}"
        )


def describe(model: IRNet, data) -> str:
    """One line: variant, weights and data."""
    weights = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"{model.config.variant}: {weights:,} weights ({learned:,} learned), {len(data)} training images, "
        f"{len(data.classes)} classes"
    )


def gradients(model: IRNet, batch: Batch, optimizer, scaler, config: Config, device: torch.device) -> dict[str, float]:
    """Gradients of one batch's loss, made in equal parts and clipped; the figures to log."""
    optimizer.zero_grad(set_to_none=True)
    figures: dict[str, Tensor] = {}
    images = len(batch.images)
    for part in batch.split(config.train.grad_accum_steps):
        part = part.to(device)
        loss = compute_loss(model, part, config)
        share = len(part.images) / images
        scaler.scale(loss.total * share).backward()
        for name, value in {
            "loss": loss.total,
            "loss_conv": loss.conv,
            "loss_final": loss.final,
            **{f"loss_{module}": value for module, value in loss.modules.items()},
        }.items():
            figures[name] = figures.get(name, 0) + value.detach() * share
    if config.train.clip_norm:
        scaler.unscale_(optimizer)
        figures["grad_norm"] = torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm)
    return {name: float(value) for name, value in figures.items()}


def update(optimizer, scaler) -> None:
    """One step of the optimiser."""
    scaler.step(optimizer)
    scaler.update()


def compute_loss(model: IRNet, batch: Batch, config: Config) -> losses.Loss:
    """The loss of a batch on the model's device; the roll-out runs in the dtype of train.amp."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.amp)
    with torch.autocast(batch.boxes.device.type, dtype, enabled=dtype is not None):
        predictions = model(batch)
    return losses.compute(predictions, batch.labels, batch.ptr, config.loss)


def make_optimizer(model: IRNet, config: TrainConfig):
    """The optimiser, and the learning rate as a function of the step (from 1)."""
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    confidence = [p for name, p in learned.items() if name.endswith("confidence.weight")]
    weights = [p for name, p in learned.items() if p.dim() > 1 and not name.endswith("confidence.weight")]
    biases = [p for p in learned.values() if p.dim() <= 1]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": confidence, "weight_decay": config.weight_decay, "scale": config.confidence_lr},
        {"params": biases, "weight_decay": 0.0, "scale": 1.0},
    ]
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=config.lr)

    return optimizer, functools.partial(learning_rate, config)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, counted from 1."""
    rate = config.lr * min(1.0, step / (config.warmup_steps + 1))
    if config.cosine:
        return rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / max(1, config.steps)))
    return rate * 0.1 ** sum(step > at for at in config.lr_steps)


def _stream(
    data, config: Config, epoch: int, seen: int, device: torch.device
) -> Iterator[tuple[Batch, tuple[int, int]]]:
    """Batches after the first `seen` images of an epoch, epoch after epoch, each with the position after it."""
    size = config.train.batch_size
    while True:
        for batch in batches(
            data,
            size,
            seed=config.train.seed,
            epoch=epoch,
            train=True,
            workers=config.train.workers,
            flip=config.data.flip,
            start_batch=seen // size,
            pin_memory=device.type == "cuda",
            **sizes(config.data),
        ):
            seen = (seen // size + 1) * size
            yield batch, (epoch, seen) if seen < len(data) else (epoch + 1, 0)
        epoch, seen = epoch + 1, 0


class _Meter:
    """Averages figures between two lines of metrics.jsonl, and shows them with the progress."""

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, every
        self.reset()

    def reset(self) -> None:
        self.sums, self.steps, self.images, self.regions, self.since = {}, 0, 0, 0, time.perf_counter()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens meanwhile is no training and does not count in the speed."""
        begin = time.perf_counter()
        yield
        self.since += time.perf_counter() - begin

    def add(self, step: int, rate: float, figures: dict[str, float], batch: Batch, progress: Progress) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.images += len(batch.images)
        self.regions += len(batch.boxes)
        if step % self.every and step != progress.total:
            return
        seconds = time.perf_counter() - self.since
        line = {"step": step, "lr": rate, **{name: value / self.steps for name, value in self.sums.items()}}
        line |= {"images_per_s": self.images / seconds, "regions_per_s": self.regions / seconds}
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        parts = {name.removeprefix("loss_"): f"{line[name]:.3f}" for name in line if name.startswith("loss")}
        rates = {"img/s": f"{line['images_per_s']:.1f}", "reg/s": f"{line['regions_per_s']:.0f}"}
        progress.note(f"loss {parts['loss']}, {rates['img/s']} img/s")
        if not progress.visible:  # the log takes the bar's place
            figures = ", ".join(f"{name} {value}" for name, value in (parts | rates).items())
            left = speed(seconds / self.steps, "step", progress.total - step)
            log.info("step %d of %d: %s, %s", step, progress.total, figures, left)
        self.reset()
