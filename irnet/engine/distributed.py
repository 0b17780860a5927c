"""Several processes that train or evaluate as one: their group, what they exchange, and how one that fails ends all.

torchrun starts the processes and tells each its rank. Rank 0 alone writes files, log lines, bars and pictures. Every
function here also serves a single process, for which it does nothing: there is no group then.
"""

import contextlib
import logging
import os
import signal
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import progress
from ..data.loader import blank
from ..errors import InputError, explain
from ..interrupts import GRACE, SIGNALS, Request, Stopped
from .build import choose_device

FAILED = "failed"  # key of the group's store: the rank that failed first
TROUBLE = "trouble"  # key of the group's store: what the first process to leave an exchange could not do
PATIENCE = 600.0  # seconds in which all processes have to come
T = TypeVar("T")
log = logging.getLogger("irnet")


def rank() -> int:
    """The number of this process among those of the run; 0 without a group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def count() -> int:
    """The number of processes of the run; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def share() -> tuple[int, int]:
    """Which part of the work is this process's: its rank, and the number of processes."""
    return rank(), count()


def described() -> str:
    """What a run's first line says of its processes."""
    return f", {count()} processes" if count() > 1 else ""


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Make the group of the processes that torchrun has started, while the context lasts.

    A rank that fails ends the others, too: its error names the rank, and they end with exit code 2 without a word.

    Args:
        device: As of `choose_device`.

    Yields:
        The device of this process: its own GPU where `device` leaves open which.
    """
    if device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        gpu = choose_device(device).type == "cuda"
        store, own, processes = _meeting()
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", store=store, rank=own, world_size=processes)
        with _muted() if rank() else contextlib.nullcontext():
            yield device
        wait()
    except BaseException as error:
        for number in SIGNALS:  # torchrun sends one to all as soon as the first process has ended
            signal.signal(number, signal.SIG_IGN)
        last_error = _ending(error)
        if last_error is error:
            raise
        raise last_error from error
    dist.destroy_process_group()


def _meeting() -> tuple[dist.Store, int, int]:
    """The part of the processes' common store that belongs to this start of them, this process's rank, their number.

    torchrun lets processes that it starts again find the store of those before, with their addresses in it, and no
    count of the starts is the same on all machines (pytorch/pytorch, issue 135712). So rank 0 invents a name for the
    part, and tells it to every process that calls; a call that nobody makes any more is answered in vain.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK") if name not in os.environ]
    if missing:
        raise InputError(missing[0], "is not set, but WORLD_SIZE is", "start irnet with torchrun, or unset WORLD_SIZE")
    store, own, processes = next(dist.rendezvous("env://"))
    end = time.monotonic() + PATIENCE
    name, call = uuid.uuid4().hex, f"irnet/call/{own}"
    if own:
        store.set(call, name)
        while not store.check([f"irnet/{name}"]):
            _pause(end)
        name = store.get(f"irnet/{name}").decode()
        store.set(f"irnet/{name}/{own}", "")
    missed = [] if own else list(range(1, processes))
    while missed:
        for other in missed:
            if store.check([f"irnet/call/{other}"]):
                store.set(f"irnet/{store.get(f'irnet/call/{other}').decode()}", name)
        _pause(end)
        missed = [other for other in missed if not store.check([f"irnet/{name}/{other}"])]
    return dist.PrefixStore(name, store), own, processes


def _pause(end: float) -> None:
    if time.monotonic() > end:
        raise InputError("torchrun", "the other processes have not come", "look for their messages, and start again")
    time.sleep(0.02)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Within it, this process shows neither log lines nor progress bars."""
    silence = lambda record: False  # noqa: E731
    log.addFilter(silence)
    progress.muted = True
    try:
        yield
    finally:
        log.removeFilter(silence)
        progress.muted = False


def _ending(error: BaseException) -> BaseException:
    """The error with which this process ends: one of them tells the trouble, and names its rank."""
    known = explain(error) if isinstance(error, Exception) else None
    own = os.environ.get("RANK", "?")
    first = _first_to_fail(own, isinstance(error, Exception))
    if first not in (own, ""):
        log.info("ended by rank %s%s", first, f": {known.cure}" if known else "")
        return SystemExit(2)
    if isinstance(error, Stopped) and rank():
        return SystemExit(128 + error.number)
    return error if known is None else InputError(f"rank {own}: {known.where}", known.trouble, known.cure)


def _first_to_fail(own: str, failed: bool) -> str:
    """The rank that has failed first; "" where none has.

    Args:
        own: That of this process.
        failed: Whether it has failed.
    """
    if dist.is_initialized():
        store = dist.distributed_c10d._get_default_store()
        with contextlib.suppress(dist.DistError):  # it has gone with the process that held it
            if failed:
                return store.compare_set(FAILED, "", own).decode()
            return store.get(FAILED).decode() if store.check([FAILED]) else ""
    return own if failed else ""


def said_first(trouble: str) -> str:
    """Of the processes that leave an exchange and call this, what the first has said; the others only lose a peer."""
    if count() > 1:
        store = dist.distributed_c10d._get_default_store()
        with contextlib.suppress(dist.DistError):  # it has gone with the process that held it
            return store.compare_set(TROUBLE, "", trouble).decode()
    return trouble


# ------------------------------------------------------------------------------------------------------- exchanges


def total(values: list[float]) -> list[float]:
    """The sum of every value over all processes."""
    return _reduced(torch.tensor(values, dtype=torch.float64), dist.ReduceOp.SUM)


def highest(values: list[int]) -> list[int]:
    """The largest of every value among all processes."""
    return _reduced(torch.tensor(values), dist.ReduceOp.MAX)


def _reduced(values: Tensor, operation: dist.ReduceOp) -> list:
    if count() > 1:
        dist.all_reduce(values, operation)
    return values.tolist()


def wait() -> None:
    """Wait until every process is here."""
    total([0.0])


def from_first(compute: Callable[[], T]) -> T:
    """The result of `compute`, which runs on rank 0 alone, in all processes."""
    results = [compute() if rank() == 0 else None]
    if count() > 1:
        dist.broadcast_object_list(results, src=0)
    return results[0]


def all_of(value: T) -> list[T]:
    """The value of every process, in all processes."""
    values = [value] * count()
    if count() > 1:
        dist.all_gather_object(values, value)
    return values


def check_alike(value: object, where: str | os.PathLike, trouble: str, cure: str) -> None:
    """Raise InputError in a process where `value` is not that of rank 0."""
    if from_first(lambda: value) != value:
        raise InputError(where, trouble, cure)


def gathered(items: Iterable[T], stop: Request | None = None) -> Iterator[T]:
    """All processes' items on rank 0, one of each process in turn; the other processes get none.

    Args:
        items: Those of this process, none of which is None. An earlier rank has as many as a later one, or one more.
        stop: Whether a signal has asked for the end, which is obeyed by all processes at once.
    """
    stream = iter(items)
    while True:
        try:
            item = next(stream, None)
        except Exception as error:
            if stop is not None:
                _wait_for_a_signal(error, stop)
                highest([False])  # the others are there
                obey(stop)
            raise
        (more,) = highest([item is not None])
        if stop is not None:
            obey(stop)
        if not more:
            return
        by_rank = [item] * count()
        if count() > 1:
            dist.gather_object(item, by_rank if rank() == 0 else None)
        if rank() == 0:
            yield from (each for each in by_rank if each is not None)


def obey(stop: Request, text: str = "ended before it was done") -> None:
    """Raise `Stopped` in all processes if a signal has asked one of them to end; to be called by all alike."""
    stop.number = highest([stop.number or 0])[0] or None
    stop.obey(text)


def next_batch(stream: Iterator[T], stop: Request) -> T:
    """The next item of a stream, whose end is not reached; `obey`, also where none comes.

    What signals every process of a job ends loader processes, too, and the signal is what the run ends by then.
    """
    try:
        item = next(stream)
    except Exception as error:
        _wait_for_a_signal(error, stop)
        obey(stop)
        raise
    obey(stop)
    return item


def _wait_for_a_signal(error: Exception, stop: Request) -> None:
    """Where a loader process has died, wait a little: what signals every process may come to the loaders first."""
    known, end = explain(error), time.monotonic() + GRACE
    if isinstance(error, RuntimeError) and known is not None and known.where == "--workers":
        while stop.number is None and time.monotonic() < end:
            time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------- the model


def parallel(model: nn.Module) -> nn.Module:
    """The model whose backward pass adds up the gradients of all processes.

    Without a group it is the model itself, and so it is if each process holds some rows of its weights (sharded.py).

    The graph of a step depends on the images (their sizes, and whether there are regions), so it is not static to
    DistributedDataParallel; but every parameter is used in every step, so it need not look for unused ones.
    """
    if count() == 1 or is_sharded(model):
        return model
    # A gradient whose dimensions of one element have other strides than the weight's is copied all the same.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # torch 2.10 knows no other name
        wrapped = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    wrapped.register_comm_hook(None, _add_up)
    _fix_buckets(wrapped)
    return wrapped


def _fix_buckets(model: DistributedDataParallel) -> None:
    """Let the gradients find the buckets in which they will be exchanged, by a backward pass on a blank image.

    They are put into buckets in the order in which they first come, and where a gradient lies decides in which order
    those of three and more processes are added. So that must not depend on the step with which a run goes on.
    """
    like = next(model.parameters())
    batch = blank().to(like.device)
    batch.images = [image.to(like.dtype) for image in batch.images]
    predictions = model(batch)
    sum(values.sum() for values in [predictions.confidences, *predictions.logits.values()]).backward()
    model.zero_grad()


def _add_up(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum the gradients over all processes. They are not divided: each loss is a part of that of the whole batch."""
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def reducing(model: nn.Module, now: bool) -> contextlib.AbstractContextManager:
    """Within it, forward and backward passes exchange gradients, or add to those of this process until they do.

    Args:
        model: Model of `parallel`.
        now: Whether they are exchanged.
    """
    if isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext() if now else model.no_sync()
    if is_sharded(model):
        model.unshard()  # a forward pass that gathers the weights itself keeps what came twice until its end
        model.set_requires_gradient_sync(now)
        model.set_reshard_after_backward(now)
    return contextlib.nullcontext()


def is_parallel(model: nn.Module) -> bool:
    """Whether the gradients of a model are complete only when its backward pass has ended in all processes."""
    return isinstance(model, DistributedDataParallel) or is_sharded(model)


def is_sharded(thing: nn.Module | Tensor) -> bool:
    """Whether this is a model of `sharded.shard`, or a tensor of which each process holds some rows."""
    return hasattr(thing, "set_requires_gradient_sync") or hasattr(thing, "to_local")


@torch.no_grad()
def clip(model: nn.Module, most: float) -> Tensor:
    """Clip the gradients of a model of `parallel` to a norm of `most`; returns the norm before."""
    if not is_sharded(model):
        return torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    grads = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
    (square,) = total([float(torch.nn.utils.get_total_norm(grads)) ** 2])
    norm = square**0.5
    torch._foreach_mul_(grads, min(1.0, most / (norm + 1e-6)))
    return torch.tensor(norm)
