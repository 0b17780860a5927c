"""One step of training: the gradients of a batch's loss, and the update. Needs a model, a batch and an optimiser.

    config = Config(model.config, train=TrainConfig(lr=0.01, steps=100))
    optimizer, scaler = make_optimizer(model, config.train), make_scaler(device, config.train)
    scheduler = make_scheduler(optimizer, config.train)
    for number, batch in enumerate(stream, 1):
        metrics = train_step(model, batch, optimizer, scaler, config, number)
        scheduler.step()

Reads and writes no file, draws no random numbers, and knows nothing of runs.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ..config import Config, TrainConfig
from ..data.sample import Batch
from ..errors import InputError
from ..models import losses
from ..models.irnet import IRNet
from ..models.shared_linear import taken_by
from .distributed import clip, is_parallel, is_sharded, reducing
from .optim import into_momentum

LOWER = "lower train.lr or set train.clip_norm"
PENDING = 32  # a call of the optimiser waits for one part in so many of all gradients, or for the last
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_scaler(device: torch.device, config: TrainConfig) -> GradScaler:
    """Make the loss scaler that float16 needs; with another train.amp it does nothing.

    Args:
        device: Device of the model.
        config: Settings, of which `amp` is read.

    Returns:
        The scaler. Its state belongs to a checkpoint where it is enabled.
    """
    return GradScaler(device.type, enabled=config.amp == "fp16")


def train_step(
    model: IRNet, batch: Batch, optimizer: Optimizer, scaler: GradScaler, config: Config, number: int
) -> dict[str, float]:
    """Take one step: the gradients of a batch's loss, and the update of the weights.

    Where nothing needs all gradients at once (no clipping, accumulation, loss scaler or other process) weights are
    updated as soon as a few gradients are complete, within the backward pass, and these are freed: the gradients never
    exist together. With SGD, those of the local module's wide layers go into the momentum as they come and do not exist
    at all. The weights come out the same; those of these layers are sums in another order (1e-12 in float64).

    Args:
        model: Model in training mode.
        batch: Batch on any device; its parts are moved to the model's.
        optimizer: Optimiser of the model's parameters. Within the backward pass its `step` runs several times, and so
            do hooks on it. A trunk of one's own must not use reentrant checkpointing, which may complete a gradient
            several times.
        scaler: Loss scaler of `make_scaler`.
        config: Settings, of which `loss` and `train` are read.
        number: Number of the step, for a message.

    Returns:
        Metrics to log, as `gradients` gives them.

    Raises:
        InputError: The loss is not finite; no weight has been changed.
    """
    if config.train.clip_norm or config.train.grad_accum_steps > 1 or scaler.is_enabled() or is_parallel(model):
        metrics = gradients(model, batch, optimizer, scaler, config, number)
        update(optimizer, scaler)
        optimizer.zero_grad(set_to_none=True)  # an evaluation may follow, whose plan counts none
        return metrics
    with _updating_in_backward(optimizer):
        return gradients(model, batch, optimizer, scaler, config, number)


def gradients(
    model: IRNet, batch: Batch, optimizer: Optimizer, scaler: GradScaler, config: Config, number: int = 0
) -> dict[str, float]:
    """Replace the gradients of the model's parameters by those of one batch's loss.

    The batch is split into `train.grad_accum_steps` parts of equally many images, whose gradients add up to the whole
    batch's; then the gradients are clipped to a norm of `train.clip_norm`, if that is not 0.

    Args:
        model: Model in training mode, or what `distributed.parallel` made of it.
        batch: Batch on any device; its parts are moved to the model's. Of a share of a batch (`Batch.whole`) these are
            the share's gradients, which processes add up to the batch's.
        optimizer: Optimiser of the model's parameters, which are left as they are.
        scaler: Loss scaler of `make_scaler`.
        config: Settings, of which `loss` and `train` are read.
        number: Number of the step, for a message.

    Returns:
        Metrics to log: "loss", "loss_conv", "loss_final", one per module that runs, and "grad_norm" before clipping,
        if it is clipped.

    Raises:
        InputError: The loss of a part is not finite; its gradients were not made. Or processes that each hold some rows
            of the weights have exchanged no gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    metrics: dict[str, Tensor] = {}
    images = batch.whole or len(batch.images)
    waiting = batch.split(config.train.grad_accum_steps)
    while waiting:
        part = waiting.pop(0).to(device)
        with reducing(model, now=not waiting):
            loss = compute_loss(model, part, config)
            check_finite(float(loss.total.detach()), number)
            weight = len(part.images) / images
            scaler.scale(loss.total * weight).backward()
        parts = {"loss": loss.total, "loss_conv": loss.conv, "loss_final": loss.final}
        parts |= {f"loss_{module}": value for module, value in loss.modules.items()}
        for name, value in parts.items():
            metrics[name] = metrics.get(name, 0) + value.detach() * weight
    if is_sharded(model) and any(p.grad is None for group in optimizer.param_groups for p in group["params"]):
        trouble = f"torch {torch.__version__} has exchanged no gradients of some weights"
        raise InputError("--parallel fsdp", trouble, "use --parallel ddp")
    if config.train.clip_norm:
        scaler.unscale_(optimizer)
        metrics["grad_norm"] = clip(model, config.train.clip_norm)
    return {name: float(value) for name, value in metrics.items()}


def compute_loss(model: IRNet, batch: Batch, config: Config) -> losses.Loss:
    """Compute the loss of a batch; the roll-out runs in the dtype of train.amp, the loss in float32 at least.

    Args:
        model: Model in training mode.
        batch: Batch on the model's device.
        config: Settings, of which `loss` and `train.amp` are read.

    Returns:
        The loss and its parts, attached to the graph of the model's parameters.
    """
    dtype = AMP_DTYPES.get(config.train.amp)
    with torch.autocast(batch.boxes.device.type, dtype, enabled=dtype is not None):
        predictions = model(batch)
    return losses.compute(predictions, batch.labels, batch.ptr, config.loss)


def check_finite(loss: float, step: int) -> None:
    """Refuse a loss that is infinite or NaN, before its gradients reach the weights.

    Args:
        loss: Loss of the step, or of a part of its batch.
        step: Number of the step, for the message.

    Raises:
        InputError: The loss is not finite.
    """
    if not math.isfinite(loss):
        raise InputError("training", f"the loss at step {step} is {loss}", LOWER)


def update(optimizer: Optimizer, scaler: GradScaler) -> None:
    """Change the weights by their gradients. The scaler leaves a step out whose float16 gradients overflowed.

    Args:
        optimizer: Optimiser with the gradients that `gradients` has made.
        scaler: The scaler that was given to `gradients`.
    """
    scaler.step(optimizer)
    scaler.update()


@contextlib.contextmanager
def _updating_in_backward(optimizer: Optimizer) -> Iterator[None]:
    """Within it, a backward pass hands gradients to the optimiser as soon as they are complete, and frees them."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    enough = sum(p.nbytes for p in parameters) / PENDING
    pending: list[Tensor] = []

    def update_pending() -> None:
        optimizer.step()  # passes over all parameters without a gradient, that is, all others
        for parameter in pending:
            parameter.grad = None
        pending.clear()

    def add(parameter: Tensor) -> None:
        if parameter.grad is None:  # its gradient has gone into the momentum; PyTorch calls hooks all the same
            return
        pending.append(parameter)
        if sum(p.grad.nbytes for p in pending) >= enough:
            update_pending()

    hooks = [p.register_post_accumulate_grad_hook(add) for p in parameters]
    try:
        with taken_by(into_momentum(optimizer, update_pending)):
            yield
        if pending:
            update_pending()
    finally:
        for hook in hooks:
            hook.remove()
