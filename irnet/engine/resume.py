"""Going on from a checkpoint: whether a run can, and what has changed since. Reads checkpoints, restores no weights."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ..config import Config
from ..data.dataset import RegionDataset
from ..errors import InputError
from . import checkpoint
from .build import same_classes
from .checkpoint import LAST, PREVIOUS, Checkpoint
from .optim import learning_rate

# The checkpoint holds the outcome of these settings, so reading them again changes nothing.
SETTLED = ("train.optimizer", "train.init_from", "data.class_graph", "data.word_vectors")
EXTRA = ("best", "scaler", "seconds", "position", "data")  # entries of a checkpoint that a resumed run needs
log = logging.getLogger("irnet")


def check_folder(output: Path, resume: Checkpoint | None) -> bool:
    """Refuse to train over another run; to be called while the folder is locked.

    Args:
        output: Folder of the run that is to start.
        resume: Checkpoint from which it goes on, if any.

    Returns:
        Whether the checkpoint is this folder's own, so that the run in it goes on; otherwise a new run starts there.

    Raises:
        InputError: The folder holds a run that is not gone on with, or another process has written there meanwhile.
    """
    same_run = resume is not None and resume.source.resolve().parent == (output / "checkpoints").resolve()
    if checkpoint.exists(output) and not same_run:
        raise InputError(output, "already holds a run", "add --resume to go on with it, or choose another --output-dir")
    if same_run and not (resume.source.exists() and checkpoint.version_of(resume.source) == resume.version):
        raise InputError(output, "another run has just written there", "start again with --resume")
    return same_run


def check_settings(resume: Checkpoint, config: Config, classes: list[str]) -> None:
    """Refuse a checkpoint that does not belong to a run's settings and data.

    Args:
        resume: Checkpoint to go on from.
        config: Settings of the run.
        classes: Names of the data's classes, in their order.

    Raises:
        InputError: The classes or a setting that cannot change differ, or the checkpoint holds no state of a run.
    """
    same_classes(classes, resume.classes, resume.source, "use the data set of that run, or --init-from in a new run")
    old, new = dataclasses.asdict(resume.config), dataclasses.asdict(config)
    model = [f"model.{key}" for key in new["model"] if key != "backbone_weights"]  # whose outcome the checkpoint holds
    for section, key in (name.split(".") for name in [*model, *SETTLED]):
        if old[section][key] != new[section][key]:
            trouble = f"was made with {section}.{key} = {old[section][key]}, not {new[section][key]}"
            raise InputError(resume.source, trouble, "leave it as it was, or start another run")
    if not resume.extra.get("resumable"):
        raise InputError(resume.source, "holds weights but no state of the optimiser", "go on from last.safetensors")
    missing = set(EXTRA) - resume.extra.keys()
    if missing:
        raise InputError(resume.source, f"has a damaged header (no {min(missing)})", "take an earlier checkpoint")


def fingerprint(data: RegionDataset) -> dict[str, str | int]:
    """Describe a split by plain values that differ where its images or annotations do."""
    regions = sum(map(len, data.image_labels()))
    return {"file": str(data.path), "images": len(data), "regions": regions, "hash": data.fingerprint()}


def changes(resume: Checkpoint, config: Config, fingerprints: dict[str, dict]) -> Iterator[str]:
    """Say in a line each what differs between a checkpoint's run and the one that goes on from it.

    Args:
        resume: Checkpoint to go on from.
        config: Settings of the run.
        fingerprints: `fingerprint` of each split by its name.

    Yields:
        Lines for the log: settings, what they do to the learning rate, and annotations.
    """
    yield from _changed_settings(resume, config)
    yield from _changed_rate(resume, config)
    yield from _changed_data(resume.extra["data"], fingerprints)


def _changed_settings(resume: Checkpoint, config: Config) -> Iterator[str]:
    old, new = dataclasses.asdict(resume.config), dataclasses.asdict(config)
    for section, values in new.items():
        for key, value in values.items():
            if value != old[section][key]:
                yield f"resumed with {section}.{key} = {value}, before {old[section][key]}"


def _changed_rate(resume: Checkpoint, config: Config) -> Iterator[str]:
    last = learning_rate(resume.config.train, resume.step)
    planned, rate = (learning_rate(train, resume.step + 1) for train in (resume.config.train, config.train))
    if rate != planned and resume.step < config.train.steps:
        yield (
            f"the learning rate goes on at {rate:.3g}; the last was {last:.3g}, "
            f"and with the settings before it would be {planned:.3g}"
        )


def _changed_data(before: dict[str, dict], now: dict[str, dict]) -> Iterator[str]:
    for split, new in now.items():
        old = before[split]
        if new["hash"] != old["hash"]:
            yield (
                f"{new['file']}: its annotations have changed since the checkpoint, from {old['images']} images with "
                f"{old['regions']} regions to {new['images']} with {new['regions']}; the run goes on with the new ones"
            )


def reinstate_previous(resume: Checkpoint) -> None:
    """Make the checkpoint `previous` the `last` again, if it is the one that the run goes on from.

    Otherwise the next save would keep the damaged `last` in its place. That one is renamed, not deleted: it may be
    whole, for reading fails for a moment where a network does.
    """
    if resume.source.name != PREVIOUS:
        return
    last = resume.source.with_name(LAST)
    if last.exists():
        os.replace(last, last.with_name("damaged.safetensors"))
        log.warning("%s is kept as damaged.safetensors", last)
    os.replace(resume.source, last)
