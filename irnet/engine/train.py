"""Training: steps of the optimiser, the run folder, and going on after a stop to bit-identical weights."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import irnet_kernels

from .. import __version__, files, losses
from ..config import Config, TrainConfig, dump
from ..data.loader import batches
from ..data.sample import Batch
from ..errors import InputError
from ..model import IRNet
from . import checkpoint, evaluate, predict
from .checkpoint import BEST, LAST, PREVIOUS, Checkpoint
from .setup import build_model, compile_parts, open_dataset, same_classes, sizes, some_regions

log = logging.getLogger("irnet")


def train(
    config: Config, output: Path, device: torch.device, resume: Checkpoint | None = None, progress: bool = True
) -> dict:
    """Train to config.train.steps, evaluate on the held-out split, and return the content of results.json.

    output  the run folder: config.yaml, env.txt, log.txt, metrics.jsonl, results.json, per_class.csv, vis/,
            checkpoints/
    resume  the checkpoint to go on from, as `checkpoint.find` gives it
    Stopped at any moment and resumed, a run on a CPU ends with the same bits as one that was not stopped: the order of
    the data, the flips and the learning rate follow from the step's number alone. Raises InputError for unusable data,
    a folder that already holds another run, a loss that is not finite, a full disk.
    """
    begin = time.perf_counter()
    folder = output / "checkpoints"
    own = resume is not None and resume.source.resolve().parent == folder.resolve()
    if checkpoint.exists(output) and not own:
        raise InputError(output, "already holds a run", "add --resume to go on with it, or choose another --output-dir")
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
    torch.use_deterministic_algorithms(config.train.deterministic)
    with _log_file(output / "log.txt"):
        data, held_out = open_dataset(config.data, "train"), open_dataset(config.data, "val")
        some_regions(data)
        some_regions(held_out)
        same_classes(held_out.classes, data.classes, held_out.path, "give both splits the same categories")
        model = build_model(config, data, pretrained=resume is None).to(device)
        optimizer, schedule = make_optimizer(model, config.train)
        scaler = torch.amp.GradScaler(device.type, enabled=config.train.amp == "fp16")
        parameters = dict(model.named_parameters())
        start, best, earlier = 0, -1.0, 0.0
        if resume is not None:
            _check_resume(resume, config, data.classes, model)
            model.load_state_dict(resume.model)
            checkpoint.restore_optimizer(optimizer, parameters, resume.optimizer)
            start, best, earlier = resume.step, resume.extra["best"] if own else -1.0, resume.extra["seconds"]
            if scaler.is_enabled() and resume.extra["scaler"]:
                scaler.load_state_dict(resume.extra["scaler"])
            if own and resume.source.name == PREVIOUS:  # or the next save would keep the damaged one in its place
                os.replace(resume.source, folder / LAST)
            log.info("going on from step %d, %s", start, resume.source)
        _keep_lines(output / "metrics.jsonl", start)
        files.write(output / "config.yaml", dump(config))
        files.write(output / "env.txt", environment(device))
        model.set_grad_checkpointing(config.train.grad_checkpointing)
        if config.train.compile:
            compile_parts(model)
        log.info("%s", describe(model, data))

        def state(step: int, with_optimizer: bool = True) -> Checkpoint:
            seconds = earlier + time.perf_counter() - begin
            extra = {"best": best, "scaler": scaler.state_dict(), "resumable": with_optimizer, "seconds": seconds}
            moments = checkpoint.optimizer_tensors(optimizer, parameters) if with_optimizer else {}
            return Checkpoint(step, config, data.classes, model.state_dict(), moments, extra)

        def assess(step: int) -> tuple[dict, evaluate.Scores]:
            nonlocal best
            with evaluate.progress_bar(held_out, config, hidden) as bar:
                scores = evaluate.collect(model, evaluate.held_out(held_out, config, device), device, bar)
            results = evaluate.results(model, step, held_out.split, scores)
            figure = results["metrics"]["final"]["class_ap"]
            log.info("step %d: class AP %.2f%% on %d held-out images", step, 100 * figure, scores.images)
            if figure > best:
                best = figure
                checkpoint.save(folder / BEST, state(step, with_optimizer=False))
            return results, scores

        model.train()
        meter = _Meter(output / "metrics.jsonl", config.train.log_every)
        stream = _stream(data, config, start, device)
        hidden = None if progress else True  # None: hidden where there is no terminal
        bar = tqdm(total=config.train.steps, initial=start, unit="step", disable=hidden, dynamic_ncols=True)
        with logging_redirect_tqdm(), bar:
            for step in range(start + 1, config.train.steps + 1):
                batch = next(stream)
                rate = schedule(step)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["scale"]
                figures = _step(model, batch, optimizer, scaler, config, device)
                if not math.isfinite(figures["loss"]):
                    trouble = f"the loss at step {step} is {figures['loss']}"
                    raise InputError("training", trouble, "lower train.lr or set train.clip_norm; checkpoints are kept")
                meter.add(step, rate, figures, batch, bar)
                bar.update()
                # Before saving, so that a run that goes on from this step knows its figure.
                with meter.paused():
                    if config.train.eval_every and step % config.train.eval_every == 0 and step < config.train.steps:
                        assess(step)
                    if step % config.train.checkpoint_every == 0 or step == config.train.steps:
                        checkpoint.save(folder / LAST, state(step))
        results, scores = assess(max(start, config.train.steps))
        checkpoint.save(folder / LAST, state(max(start, config.train.steps)))
        evaluate.write(output, results, scores, data.classes)
        predict.draw(output / "vis", model, held_out, config.data, config.train.vis)
    return results


def _check_resume(resume: Checkpoint, config: Config, classes: list[str], model: IRNet) -> None:
    """InputError where the run cannot go on from this checkpoint."""
    same_classes(classes, resume.classes, resume.source)
    for name in ("model", "train"):
        old, new = dataclasses.asdict(getattr(resume.config, name)), dataclasses.asdict(getattr(config, name))
        for key in new if name == "model" else ("optimizer",):
            if old[key] != new[key] and key != "backbone_weights":  # the checkpoint holds what came of them
                trouble = f"was made with {name}.{key} = {old[key]}, not {new[key]}"
                raise InputError(resume.source, trouble, "leave it as it was, or start another run")
    if not resume.extra.get("resumable"):
        raise InputError(resume.source, "holds weights but no state of the optimiser", "go on from last.safetensors")
    shapes = {name: tensor.shape for name, tensor in resume.model.items()}
    misfits = [name for name, tensor in model.state_dict().items() if shapes.pop(name, None) != tensor.shape]
    if misfits or shapes:
        trouble = f"does not fit the model ({[*misfits, *shapes][0]} differs)"
        raise InputError(resume.source, trouble, "use the run's own class graph and word vectors")


def describe(model: IRNet, data) -> str:
    """One line: variant, weights and data."""
    weights = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"{model.config.variant}: {weights:,} weights ({learned:,} learned), {len(data)} training images, "
        f"{len(data.classes)} classes"
    )


def environment(device: torch.device) -> str:
    """The content of env.txt: versions, machine and what the operators run on."""
    facts = {
        "irnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "operators": json.dumps(irnet_kernels.available()),
    }
    return "".join(f"{key}: {value}\n" for key, value in facts.items())


def _step(model: IRNet, batch: Batch, optimizer, scaler, config: Config, device: torch.device) -> dict[str, float]:
    """One step of the optimiser on one batch, in equal parts; the figures to log."""
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
    scaler.step(optimizer)
    scaler.update()
    return {name: float(value) for name, value in figures.items()}


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

    def schedule(step: int) -> float:
        rate = config.lr * min(1.0, step / (config.warmup_steps + 1))
        if config.cosine:
            return rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / config.steps))
        return rate * 0.1 ** sum(step > at for at in config.lr_steps)

    return optimizer, schedule


def _stream(data, config: Config, start: int, device: torch.device):
    """Batches from step `start` on, epoch after epoch."""
    per_epoch = math.ceil(len(data) / config.train.batch_size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        yield from batches(
            data,
            config.train.batch_size,
            seed=config.train.seed,
            epoch=epoch,
            train=True,
            workers=config.train.workers,
            flip=config.data.flip,
            start_batch=skip,
            pin_memory=device.type == "cuda",
            **sizes(config.data),
        )
        epoch, skip = epoch + 1, 0


class _Meter:
    """Averages figures between two lines of metrics.jsonl, and shows them on the progress bar."""

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

    def add(self, step: int, rate: float, figures: dict[str, float], batch: Batch, bar: tqdm) -> None:
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps += 1
        self.images += len(batch.images)
        self.regions += len(batch.boxes)
        if step % self.every and step != bar.total:
            return
        seconds = time.perf_counter() - self.since
        line = {"step": step, "lr": rate, **{name: value / self.steps for name, value in self.sums.items()}}
        line |= {"images_per_s": self.images / seconds, "regions_per_s": self.regions / seconds}
        with files.writing(self.path), open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        parts = {name.removeprefix("loss_"): f"{line[name]:.3f}" for name in line if name.startswith("loss")}
        speed = {"img/s": f"{line['images_per_s']:.1f}", "reg/s": f"{line['regions_per_s']:.0f}"}
        bar.set_postfix(parts | speed, refresh=False)
        if bar.disable:  # no terminal: the log takes the bar's place
            log.info("step %d of %d: %s", step, bar.total, ", ".join(f"{k} {v}" for k, v in (parts | speed).items()))
        self.reset()


def _keep_lines(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl beyond `step`, and a half-written last one."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    files.write(path, "".join(kept))


@contextlib.contextmanager
def _log_file(path: Path):
    """Copy the log into a file while the run lasts."""
    with files.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(min(log.level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        log.removeHandler(handler)
        with contextlib.suppress(OSError):  # a line that could not be written has been told of
            handler.close()


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Called inside emit's `except`: a full disk is for the command line to tell, not for a printed traceback."""
        with files.writing(self.baseFilename):
            raise
