"""The order of an epoch: decided by (seed, epoch) alone, resumable, the same with and without worker processes."""

import os
from collections import Counter
from pathlib import Path

import pytest
import torch

from irnet.config import Config, DataConfig, TrainConfig
from irnet.data.coco import CocoDataset
from irnet.data.loader import batches, batches_within
from irnet.data.sample import Sample
from irnet.errors import InputError

TINY = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "coco_tiny"
needs_tiny = pytest.mark.skipif(not TINY.is_dir(), reason=f"sample data absent: {TINY}")
SIZES = [(20, 30), (30, 20), (24, 24)]


class Shapes(torch.utils.data.Dataset):
    """Image i is i everywhere, of one of three sizes, with i % 3 regions whose left side is 1."""

    classes = ("left_arm", "right_arm", "lamp")

    def __init__(self, count, bad=None):
        self.count, self.bad, self.decoded = count, bad, []

    def __len__(self):
        return self.count

    def size(self, i):
        return SIZES[(i * i + i // 5) % 3]

    def image_sizes(self):
        return torch.tensor([self.size(i) for i in range(self.count)])

    def image_labels(self):
        return [torch.arange(i % 3) for i in range(self.count)]

    def __getitem__(self, i):
        if i == self.bad:
            raise InputError(f"{i}.png", "is broken", "mend it")
        self.decoded.append(i)
        image = torch.full((3, *self.size(i)), i, dtype=torch.uint8)
        image[:, :, 0] = 255  # tells a mirrored image
        boxes = torch.tensor([[1.0, 2.0, 5.0, 9.0]]).repeat(i % 3, 1)
        return Sample(image, boxes, torch.arange(i % 3), f"{i}.png", {"kind": [f"k{i}"] * (i % 3)})


def run(dataset, batch_size=4, short=0, long=0, flip=True, train=True, epoch=0, start_batch=0, **changes):
    data = DataConfig(short_side=short, long_side=long, flip=flip)
    config = Config(data=data, train=TrainConfig(batch_size=batch_size, **{"seed": 1, "workers": 0, **changes}))
    return list(batches(dataset, config, train=train, epoch=epoch, start_batch=start_batch))


def names(epoch_batches):
    return [batch.names for batch in epoch_batches]


def assert_same(one, two):
    assert names(one) == names(two)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True))
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.ptr, b.ptr)
        assert a.attributes == b.attributes


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("count", [1, 4, 21, 22])
def test_every_image_once_and_only_the_last_batch_smaller(count, train):
    epoch_batches = run(Shapes(count), train=train)
    assert Counter(name for batch in epoch_batches for name in batch.names) == Counter(f"{i}.png" for i in range(count))
    sizes = [len(batch.names) for batch in epoch_batches]
    assert sizes == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


def test_order_follows_from_seed_and_epoch_alone():
    torch.manual_seed(5)
    first = run(Shapes(40))
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    assert_same(run(Shapes(40)), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    others = [run(Shapes(40), seed=2), run(Shapes(40), epoch=1), run(Shapes(40), seed=0, epoch=1)]
    for i, one in enumerate([first, *others]):
        for two in others[i:]:
            assert names(one) != names(two)


def test_evaluation_keeps_the_order_and_mirrors_nothing():
    epoch_batches = run(Shapes(10), train=False)
    assert names(epoch_batches) == [
        ["0.png", "1.png", "2.png", "3.png"],
        ["4.png", "5.png", "6.png", "7.png"],
        ["8.png", "9.png"],
    ]
    assert epoch_batches[0].ptr.tolist() == [0, 0, 1, 3, 3]
    assert epoch_batches[0].attributes == {"kind": ["k1", "k2", "k2"]}
    assert (epoch_batches[0].boxes[:, 0] == 1).all()
    assert run(Shapes(0), train=False) == []


def test_half_the_images_are_mirrored_with_boxes_and_labels():
    mirrored = {}
    for batch in run(Shapes(200)):
        for i, (name, image) in enumerate(zip(batch.names, batch.images, strict=True)):
            part = slice(batch.ptr[i], batch.ptr[i + 1])
            mirrored[name] = bool(image[0, 0, -1] > image[0, 0, 0])
            width = image.shape[2]
            assert (batch.boxes[part, 0] == (width - 5 if mirrored[name] else 1)).all()
            swapped = [1, 0] if mirrored[name] else [0, 1]
            assert batch.labels[part].tolist() == swapped[: int(name.split(".")[0]) % 3]
    assert 70 < sum(mirrored.values()) < 130
    flips = {}
    for batch in run(Shapes(200), epoch=1):
        flips |= {n: bool(im[0, 0, -1] > im[0, 0, 0]) for n, im in zip(batch.names, batch.images, strict=True)}
    assert flips != mirrored
    assert not any(bool(im[0, 0, -1] > im[0, 0, 0]) for batch in run(Shapes(200), flip=False) for im in batch.images)
    for batch in run(Shapes(200), batch_size=7):  # an image's mirroring does not hang on its place in the order
        for name, image in zip(batch.names, batch.images, strict=True):
            assert bool(image[0, 0, -1] > image[0, 0, 0]) == mirrored[name]


@pytest.mark.parametrize("train", [True, False])
def test_workers_change_nothing(train):
    torch.manual_seed(3)
    alone = run(Shapes(23), train=train, short=17, long=40)
    assert_same(run(Shapes(23), train=train, short=17, long=40, workers=2), alone)


def test_resume_sees_the_same_batches_and_decodes_no_others():
    whole = run(Shapes(30))
    dataset = Shapes(30)
    assert_same(run(dataset, start_batch=5), whole[5:])
    assert sorted(f"{i}.png" for i in dataset.decoded) == sorted(name for batch in whole[5:] for name in batch.names)
    assert run(Shapes(30), start_batch=8) == []


BUDGETS = {
    "pixels": {"max_batch_pixels": 2000},  # three images
    "regions": {"max_batch_regions": 3},
    "both": {"max_batch_pixels": 2400, "max_batch_regions": 5},
    "below-one-image": {"max_batch_pixels": 500, "max_batch_regions": 1},
}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_a_batch_keeps_within_its_budgets(batch_size, budget):
    """Unless it is one image alone. Every image comes once, and no batch is full before it has to be."""
    epoch_batches, small = run(Shapes(61), batch_size, **budget), 0
    assert Counter(name for batch in epoch_batches for name in batch.names) == Counter(f"{i}.png" for i in range(61))
    pixels = [sum(image[0].numel() for image in batch.images) for batch in epoch_batches]
    limits = budget.get("max_batch_pixels", 10**9), budget.get("max_batch_regions", 10**9)
    for batch, own in zip(epoch_batches, pixels, strict=True):
        assert len(batch.images) <= batch_size
        assert len(batch.images) == 1 or (own <= limits[0] and len(batch.labels) <= limits[1])
        small += len(batch.images) < batch_size and own + 600 <= limits[0] and len(batch.labels) + 2 <= limits[1]
    assert small <= 1  # the last of those that are left over
    assert_same(run(Shapes(61), batch_size, workers=2, **budget), epoch_batches)
    assert names(run(Shapes(61), batch_size, epoch=1, **budget)) != names(epoch_batches)


def test_budgets_are_of_training_and_of_images_as_the_model_takes_them():
    assert_same(run(Shapes(20), train=False, **BUDGETS["both"]), run(Shapes(20), train=False))
    sizes = [len(batch.images) for batch in run(Shapes(60), short=10, max_batch_pixels=600)]  # of 10 x 15 or 10 x 10
    assert set(sizes) == {4}
    sizes = [len(batch.images) for batch in run(Shapes(60), max_batch_pixels=600)]
    assert set(sizes) == {1}


@pytest.mark.parametrize("budget", [{}, *BUDGETS.values()], ids=["none", *BUDGETS])
def test_a_run_goes_on_behind_the_batches_that_lie_within_what_it_has_seen(budget):
    dataset, whole = Shapes(31), run(Shapes(31), **budget)
    config = Config(data=DataConfig(short_side=0), train=TrainConfig(batch_size=4, seed=1, **budget))
    batch_of = [k for k, batch in enumerate(whole) for _ in batch.names]  # of every image, in the epoch's order
    for seen in range(32):
        done, images = batches_within(dataset, config, 0, seen)
        assert done == (batch_of[seen] if seen < 31 else len(whole))
        assert images == sum(len(batch.names) for batch in whole[:done])
    assert_same(run(Shapes(31), start_batch=3, **budget), whole[3:])


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_every_batch_of_a_budget(processes, budget):
    whole = run(Shapes(31), **budget)
    config = Config(data=DataConfig(short_side=0), train=TrainConfig(batch_size=4, seed=1, workers=0, **budget))
    shares = [list(batches(Shapes(31), config, train=True, share=(k, processes))) for k in range(processes)]
    for batch, *own in zip(whole, *shares, strict=True):
        assert sorted(name for part in own for name in part.names) == sorted(batch.names)
        assert all(part.whole == len(batch.names) for part in own)


def test_the_limit_is_of_evaluations():
    whole = run(Shapes(30), train=False)
    assert_same(run(Shapes(30), train=False, limit_batches=3), whole[:3])
    assert_same(run(Shapes(30), train=False, limit_batches=100), whole)
    assert_same(run(Shapes(30), train=False, limit_batches=4, start_batch=2), whole[2:4])
    assert_same(run(Shapes(30), limit_batches=3), run(Shapes(30)))


def test_training_groups_by_size():
    alike = [len({image.shape for image in batch.images}) == 1 for batch in run(Shapes(60))]
    assert sum(not one for one in alike) <= len(SIZES)  # at most the batches made of what is left over
    mixed = [len({image.shape for image in batch.images}) == 1 for batch in run(Shapes(60), train=False)]
    assert sum(mixed) < len(mixed) / 2


def test_rare_sizes_do_not_gather_at_the_end():
    class Rare(Shapes):
        def size(self, i):
            return SIZES[i % 30 == 0]  # 4 of 120 images: their one batch is full only when the last of them has come

    early = 0
    for epoch in range(20):
        epoch_batches = run(Rare(120), epoch=epoch)
        early += any(batch.images[0].shape[1:] == SIZES[1] for batch in epoch_batches[:10])
    assert 2 <= early <= 13  # of 20, at 1 in 3 each; in the order the batches fill it is 1 in 80


@pytest.mark.parametrize("workers", [0, 2])
def test_input_error_reaches_the_caller_as_itself(workers):
    config = Config(data=DataConfig(short_side=0), train=TrainConfig(batch_size=2, workers=workers))
    stream = batches(Shapes(12, bad=6), config, train=False)
    assert [next(stream).names for _ in range(3)] == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png", "5.png"]]
    with pytest.raises(InputError) as caught:
        next(stream)
    assert str(caught.value) == "6.png: is broken; mend it"
    assert (caught.value.where, caught.value.trouble, caught.value.cure) == ("6.png", "is broken", "mend it")


def test_a_batch_costs_few_file_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    epoch_batches = run(Shapes(120), batch_size=40, workers=1)
    held = len(os.listdir("/proc/self/fd")) - before
    assert len(epoch_batches) == 3
    assert held < 60  # 120 images; one descriptor each would be beyond it


def test_refuses_senseless_numbers():
    with pytest.raises(InputError, match="--batch-size: 0 images are no batch; give 1 or more"):
        run(Shapes(3), batch_size=0)
    with pytest.raises(InputError, match="--workers: -1 is not a number of processes; give 0 or more"):
        run(Shapes(3), workers=-1)


@needs_tiny
def test_tiny_epoch():
    dataset = CocoDataset(TINY, "train2017")
    epoch_batches = run(dataset, batch_size=8, short=120, long=200, workers=1)
    assert [len(batch.names) for batch in epoch_batches] == [8, 8, 8, 8]
    assert sum(len(batch.labels) for batch in epoch_batches) == 288 - sum(dataset.skipped.values())
    for batch in epoch_batches:
        for i, image in enumerate(batch.images):
            boxes = batch.boxes[batch.ptr[i] : batch.ptr[i + 1]]
            assert max(image.shape[1:]) <= 200
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()
