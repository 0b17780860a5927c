"""How a run ends before its time: what is done is saved, and the error says which step can be gone on from."""

from pathlib import Path

from ..errors import InputError, explain
from ..interrupts import Request, Stopped
from . import distributed
from .checkpoint import LAST
from .evaluate import NotFinite
from .state import RunState

SMALLER = (
    "give --memory, which plans; "
    "or lower -b, raise --grad-accum-steps, add --grad-checkpointing, lower --max-regions, take --amp bf16"
)


def ending(error: BaseException, state: RunState, output: Path, stop: Request) -> BaseException:
    """Save what is done, where it is whole, and make the error with which the run ends.

    Args:
        error: Exception that ended the run.
        state: State of the run when it was raised.
        output: Folder of the run.
        stop: Whether a signal has asked for the end.

    Returns:
        `Stopped` after a signal, an `InputError` for what the user can do something about, else `error` itself. The
        first two say which step is saved, which rank 0 knows of several processes.
    """
    known = explain(error, SMALLER) if isinstance(error, Exception) else None
    diverged = isinstance(error, NotFinite)
    if diverged:
        known.trouble = f"after step {state.step} {known.trouble}"
    stopped = isinstance(error, Stopped)  # a signal ends all processes behind the same step
    together = not state.sharded or stopped
    if distributed.rank():
        if state.sharded and together:
            _keep(state, output, diverged, together)
        return error if known is None else known
    kept = _keep(state, output, diverged, together)
    if stopped:
        return Stopped(stop.number, f"ended after step {state.step}; {kept}")
    return error if known is None else InputError(known.where, known.trouble, f"{known.cure}; {kept}")


def _keep(state: RunState, output: Path, diverged: bool, together: bool) -> str:
    """Save the last step if it is whole and not saved yet; returns the words that say which step is kept.

    Args:
        state: State of the run.
        output: Folder of the run.
        diverged: Whether its weights are not finite.
        together: Whether all processes that hold a part of the state are here.
    """
    trouble = ""
    if state.step and state.step != state.saved and not together:
        trouble = f" (step {state.step} is lost: each process held a part of it)"
    elif state.step and state.step != state.saved and not state.updating and not diverged:
        try:
            state.save(output)
        except (InputError, RuntimeError) as error:
            known = explain(error)
            if known is None:
                raise
            said = distributed.said_first(f"{known.where}: {known.trouble}") if state.sharded else known.trouble
            trouble = f" (step {state.step} could not be saved: {said})"
    elif state.step and state.step != state.saved and state.updating:
        trouble = f" (step {state.step} is lost: its weights were being changed)"
    if state.saved is None:
        return f"no step is saved{trouble}"
    path = output / "checkpoints" / LAST
    if diverged and state.saved == state.step:
        return f"these weights are kept in {path}: start another run"
    return f"step {state.saved} is saved in {path}{trouble}: train goes on from it with --resume, demo by itself"
