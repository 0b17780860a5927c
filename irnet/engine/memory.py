"""The memory of one training step, planned without running it, or measured by running it. Searches for nothing.
Its arithmetic is counted, too.

A plan runs the step of step.py on fake tensors, which have shapes, dtypes and lifetimes but no numbers, and adds up
what is there after every operator. What operators take within themselves comes from formulas (irnet_kernels.workspace).
"""

import contextlib
import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from irnet_kernels import EdgeSet, counts, flops
from irnet_kernels.workspace import workspace

from ..config import Config
from ..data.loader import batch_images
from ..data.sample import Batch
from ..models.irnet import CHUNK, IRNet, nodes_of, together
from .ema import Average
from .optim import make_optimizer
from .segments import Segments
from .step import make_scaler, train_step

# Where memory goes, in the order of the table; "average", of the weights, comes behind them where there is one.
CATEGORIES = ("parameters", "gradients", "optimizer", "batch", "activations", "temporaries")
UNUSED = "unused"  # what a GPU's allocator needs for its segments beyond the tensors of the peak


@dataclass(frozen=True)
class Scene:
    """What images look like, as far as memory depends on it.

    height, width  of the largest image, in pixels, as the model takes it
    regions        of the images that have most, in falling order; the last number holds for all further ones
    classes        C
    edges          of the class graph, where the variant has a global module
    vector_size    of a word vector; 0: class features are learned
    """

    height: int
    width: int
    regions: tuple[int, ...]
    classes: int
    edges: EdgeSet | None = None
    vector_size: int = 0
    sizes: tuple[tuple[int, int], ...] = ()

    def of(self, images: int, most: int = 0) -> list[int]:
        """The regions of each of `images` images, of which those behind the first have up to `most` with it; 0: any."""
        counts: list[int] = []
        for i in range(images):
            own = self.regions[min(i, len(self.regions) - 1)]
            counts.append(min(own, max(0, most - sum(counts))) if most and counts else own)
        return counts

    @property
    def image_bytes(self) -> int:
        """The bytes of one image as the model takes it."""
        return 3 * self.height * self.width * 4


@dataclass(frozen=True)
class Footprint:
    """The bytes that are there at the peak of a step, by category, and the operator that runs then."""

    bytes: dict[str, int]
    operator: str

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.bytes.values())

    @property
    def used(self) -> int:
        """All of them but what a GPU's allocator leaves unused."""
        return self.total - self.bytes.get(UNUSED, 0)


def planned(
    config: Config, scene: Scene, gpu: bool = False, make: "Callable[[Config, Scene, bool], Step] | None" = None
) -> Footprint:
    """Plan the peak of a step, of those behind the first, in which the optimiser has its state.

    Args:
        config: Settings of the run, of which `model`, `loss` and `train` are read.
        scene: What its images look like.
        gpu: Whether it runs on a GPU, of which none is needed. What its allocator leaves unused then counts, too; what
            operators and libraries take within themselves there is not known, and left out.
        make: What makes the step; None: `Step`, of a single process.

    Returns:
        The peak.
    """
    make = make or Step
    return max((_planned(config, one, gpu, make) for one in _heaviest(config, scene)), key=lambda peak: peak.total)


def _planned(config: Config, scene: Scene, gpu: bool, make: "Callable[[Config, Scene, bool], Step]") -> Footprint:
    """The peak with images that are all as large as the largest."""
    tracker = Tracker(gpu)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step = make(config, scene, gpu)
        step.fill_optimizer()
    tracker.add_present(step)
    for p in step.learned:
        p.register_post_accumulate_grad_hook(tracker.add_gradient)
    with mode, tracker:
        step()
    return tracker.footprint(step.waiting_bytes)


def _heaviest(config: Config, scene: Scene) -> list[Scene]:
    """The scenes that may take most, each with images of one size.

    A budget of pixels is filled best by some size, and so are the groups of images that are made again together; these
    are large where images have few regions.
    """
    if not scene.sizes:
        return [scene]
    train = config.train
    nodes = nodes_of(config.model, scene.classes)

    def images(size: tuple[int, int]) -> int:
        return -(-batch_images(train, *size) // train.grad_accum_steps)

    def group(size: tuple[int, int]) -> int:
        return len(together([size] * images(size), [0] * images(size), nodes)[0])

    def fullest(number: Callable[[tuple[int, int]], int]) -> tuple[int, int]:
        return max(scene.sizes, key=lambda size: (number(size) * size[0] * size[1], size[0] * size[1], size))

    height, width = fullest(images)
    scenes = [dataclasses.replace(scene, height=height, width=width)]
    if train.grad_checkpointing and group(fullest(group)) > 1:
        height, width = size = fullest(group)
        few = CHUNK // group(size)
        regions = [*scene.of(images(size) - group(size)), min(few, scene.regions[0])]
        scenes.append(dataclasses.replace(scene, height=height, width=width, regions=tuple(regions)))
    return scenes


def planned_evaluation(
    config: Config, scene: Scene, images: int, gpu: bool = False, training: bool = False
) -> Footprint:
    """Plan the peak of an evaluation that lets several images through the model together.

    Args:
        config: Settings of the run, of which `model` is read, and the optimiser within training.
        scene: What the images look like.
        images: Their number.
        gpu: See `planned`.
        training: Whether it comes within a run that trains, whose optimiser is there all the while.

    Returns:
        The peak.
    """
    tracker = Tracker(gpu)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step = Step(_with_batch(config if training else with_train(config, ema=0.0), images), scene, gpu)
        if training:
            step.fill_optimizer()
    tracker.add_present(step)
    with mode, tracker, torch.no_grad():
        for logits in step.model.eval()(step.batch).with_final().values():
            logits.float().softmax(1)
    return tracker.footprint(0)


def measured(config: Config, scene: Scene, device: torch.device) -> int:
    """Run steps on this machine, with random numbers, and measure the peak of one, as PyTorch's allocator has it.

    Args:
        config: Settings of the run, of which `model`, `loss` and `train` are read.
        scene: What its images look like.
        device: Where it runs.

    Returns:
        Bytes that are in use: on a CPU PyTorch's profiler sees them, on a GPU the allocator counts them.
    """
    with torch.random.fork_rng():
        scenes = _heaviest(config, scene)
        return max(peak_of(Step(config, one, device.type == "cuda", device), device) for one in scenes)


def peak_of(step: "Step", device: torch.device) -> int:
    """Take a step several times on the device that it was made on; the peak of one, see `measured`.

    A step leaves no gradient for a later one to free, which no profiler would see.
    """
    if device.type == "cuda":
        step()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device)
    peak = counts.count(step, device).peak_allocated_bytes
    present = sum(t.untyped_storage().nbytes() for tensors in step.present().values() for t in tensors)
    return present + peak + step.waiting_bytes


@dataclass(frozen=True)
class Cost:
    """What an image costs in a step of many."""

    bytes: int  # that a further image adds to the peak
    flops: int  # of the whole step, by image: two for each product of a matrix product or a convolution


def cost(config: Config, scene: Scene, gpu: bool = False, images: int = 4) -> Cost:
    """Plan what a further image costs beside `images` that are worked on together.

    Args:
        config: Settings of the run; their batch size and number of parts do not count.
        scene: What its images look like.
        gpu: See `planned`.
        images: Their number. Beside one alone a further image costs more: with it come gradients that have to wait.

    Returns:
        The difference between two plans, and the arithmetic of the larger, by image.
    """
    more, fewer = _with_batch(config, images + 1), _with_batch(config, images)
    scene = dataclasses.replace(scene, sizes=())
    difference = planned(more, scene, gpu).total - planned(fewer, scene, gpu).total
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        step = Step(more, scene, gpu)
    counter = FlopCounterMode(display=False, custom_mapping=flops.FORMULAS)
    with mode, counter, Numberless():
        step()
    return Cost(difference, counter.get_total_flops() // (images + 1))


def with_train(config: Config, **changed: object) -> Config:
    """The settings with others of section train."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **changed))


def _with_batch(config: Config, images: int) -> Config:
    """The settings with a batch of so many images, all at once."""
    return with_train(config, batch_size=images, grad_accum_steps=1, max_batch_pixels=0, max_batch_regions=0)


@contextlib.contextmanager
def plain_path(config: Config) -> Iterator[Config]:
    """The settings without anything that saves memory, and within it the reference operators: what costs compare with.

    What reference operators allocate within themselves is not known, so a plan of the plain path is rather too small.
    """
    before = os.environ.get("IRNET_IMPL")
    os.environ["IRNET_IMPL"] = "reference"
    try:
        yield with_train(config, amp="off", grad_checkpointing=False)
    finally:
        if before is None:
            del os.environ["IRNET_IMPL"]
        else:
            os.environ["IRNET_IMPL"] = before


def model_of(config: Config, scene: Scene) -> IRNet:
    """A model as a run with these settings trains it, but for the numbers in it."""
    vectors = torch.zeros(scene.classes, scene.vector_size) if scene.vector_size else None
    return IRNet(dataclasses.replace(config.model, backbone_weights=""), scene.classes, scene.edges, vectors)


class Step:
    """A model, an optimiser and a batch with nothing in them, and the step that they make when called.

    Of a batch that is worked on in more than two parts, two parts are there: the second is the first to find gradients.
    Each has the images with most regions, as nothing says in which part of a batch they will be.

    Attributes:
        learned: The parameters that are.
        waiting_bytes: What else of the batch is there.
    """

    def __init__(self, config: Config, scene: Scene, gpu: bool, device: torch.device | None = None):
        """Make them on `device`; None: as fake tensors, if the mode for them is on."""
        train = config.train
        images = batch_images(train, scene.height, scene.width)
        self.micro = -(-images // train.grad_accum_steps)
        parts = min(2, -(-images // self.micro))
        self.config = with_train(config, grad_accum_steps=parts)
        # On a GPU there is the part alone that is worked on, on a CPU the rest of the batch as well.
        self.gpu = gpu
        self.waiting_bytes = 0 if gpu else max(0, images - self.micro * parts) * scene.image_bytes
        self.model = model_of(config, scene)
        if device is not None:
            self.model.to(device)
        self.model.train().set_grad_checkpointing(train.grad_checkpointing)
        self.learned = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(self.model, train)
        self.average = Average(self.model, train.ema) if train.ema else None
        self.scaler = make_scaler(device or torch.device("cpu"), train)
        self.batch = noise_batch(scene, scene.of(self.micro, train.max_batch_regions) * parts)

    def __call__(self) -> None:
        """Take the step."""
        train_step(self.model, self.batch, self.optimizer, self.scaler, self.config, number=2)
        if self.average is not None:
            self.average.update(2)

    def fill_optimizer(self) -> None:
        """Give the optimiser, of fake tensors, the state that it has behind the first step."""
        if self.gpu:  # PyTorch's choice there
            for group in self.optimizer.param_groups:
                group["foreach"] = not group["fused"] if group["foreach"] is None else group["foreach"]
        for p in self.learned:
            p.grad = torch.empty_like(p)
        with Numberless():
            self.optimizer.step()
        self.optimizer.zero_grad()

    def present(self) -> dict[str, list[Tensor]]:
        """What is there before the step, by category."""
        state = [t for values in self.optimizer.state.values() for t in values.values() if isinstance(t, Tensor)]
        images = self.batch.images[: self.micro] if self.gpu else self.batch.images
        present = {
            "parameters": [*self.model.parameters(), *self.model.buffers()],
            "optimizer": state,
            "batch": [*images, self.batch.boxes, self.batch.ptr, self.batch.labels],
        }
        return present if self.average is None else present | {"average": list(self.average.weights.values())}


def noise_batch(scene: Scene, regions: list[int]) -> Batch:
    """Images of noise with boxes anywhere in them. The numbers of regions are no fake: the roll-out reads them."""
    with unset_fake_temporarily():
        ptr = torch.tensor([0, *regions]).cumsum(0)
    corner, size = torch.rand(2, sum(regions), 2)
    boxes = torch.cat([corner, corner + size * (1 - corner)], 1) * torch.tensor([scene.width, scene.height] * 2)
    labels = torch.zeros(sum(regions), dtype=torch.int64)
    return Batch([torch.randn(3, scene.height, scene.width) for _ in regions], boxes, ptr, labels, [""] * len(regions))


class Numberless(TorchDispatchMode):
    """Lets a step run on fake tensors: it answers 0 for the numbers that they lack, as for a loss that is logged.

    An operator all of whose tensors are real, such as those of the numbers of regions, runs on them.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if tensors and not any(isinstance(t, FakeTensor) for t in tensors):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        return func(*args, **kwargs)


@dataclass
class _Piece:
    """A storage: its size, its category, and when it came and went, counted in such events."""

    size: int
    category: str
    born: int
    gone: int | None = None


class Tracker(Numberless):
    """Follows every storage from the operator that makes it until nothing holds it."""

    def __init__(self, gpu: bool):
        super().__init__()
        self.segments = Segments() if gpu else None
        self.pieces: dict[int, tuple[_Piece, weakref.ref]] = {}  # that are there, by storage
        self.all: list[_Piece] = []
        self.time = self.present = self.peak = self.peak_time = self.peak_workspace = 0
        self.operator = "nothing"

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        within = workspace(func, args) if self.segments is None else 0
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self.add(tensor, "activations" if torch.is_grad_enabled() else "temporaries")
        if self.present + within > self.peak:
            self.peak, self.peak_time, self.peak_workspace = self.present + within, self.time, within
            self.operator = str(func).removesuffix(".default")
        return outputs

    def add(self, tensor: Tensor, category: str) -> None:
        """Follow the storage of a tensor, unless it is followed already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.pieces:
            return
        self.time += 1
        size = storage.nbytes()
        block = self.segments.take(size) if self.segments and size else None
        piece = _Piece(block.size if block else size, category, self.time)

        def gone(_: object) -> None:
            del self.pieces[key]
            self.time += 1
            piece.gone = self.time
            self.present -= piece.size
            if self.segments and block:
                self.segments.give_back(block)
            if piece.category == "activations" and torch._C._current_graph_task_id() == -1:
                piece.category = "temporaries"  # the backward pass did not need it

        self.pieces[key] = piece, weakref.ref(storage, gone)
        self.all.append(piece)
        self.present += piece.size

    def add_present(self, step: Step) -> None:
        """Follow what is there before a step."""
        for category, tensors in step.present().items():
            for tensor in tensors:
                self.add(tensor, category)

    def add_gradient(self, parameter: Tensor) -> None:
        """Call the gradient of a parameter by its name."""
        if parameter.grad is not None:
            self.pieces[parameter.grad.untyped_storage()._cdata][0].category = "gradients"

    def footprint(self, waiting: int) -> Footprint:
        """The peak, to which `waiting` bytes of the batch are added."""
        sizes = dict.fromkeys(CATEGORIES, 0)
        for piece in self.all:
            if piece.born <= self.peak_time and (piece.gone is None or piece.gone > self.peak_time):
                sizes[piece.category] = sizes.get(piece.category, 0) + piece.size
        sizes["temporaries"] += self.peak_workspace
        sizes["batch"] += waiting
        if self.segments:
            sizes[UNUSED] = self.segments.needed - sum(sizes.values())
        return Footprint(sizes, self.operator)
