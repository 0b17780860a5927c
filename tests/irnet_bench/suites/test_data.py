"""The data suite: one tensor from all, nothing left behind."""

import gc
import tempfile

import torch

from irnet.data.sample import Batch
from irnet_bench.suites import data
from tests.irnet_bench.suites.networks import build, each_data


@each_data
def test_data_implementations_give_one_tensor_and_a_sweep_changes_it(name):
    work = build(name)
    wanted = work.implementations[work.reference].call()
    for implementation in work.implementations.values():
        assert torch.equal(implementation.call(), wanted)
    assert work.modes == ("forward",) and not work.inputs and wanted.numel() > 4
    larger = build(name, images=6)
    assert larger.items > work.items or name == "class_graph"
    found = larger.implementations[larger.reference].call()
    assert found.shape != wanted.shape or not torch.equal(found, wanted)


def test_temporary_folders_vanish(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    work = build("load_batches")
    assert len(list(tmp_path.iterdir())) == 1
    work.implementations["workers=0"].call()
    del work
    gc.collect()
    assert not list(tmp_path.iterdir())
    build("scene_generation").implementations["irnet"].call()
    assert not list(tmp_path.iterdir())


def test_checksum_sees_every_bit_and_the_order():
    def batch(pixels: list[float]) -> Batch:
        image = torch.tensor(pixels).reshape(1, 1, 2)
        return Batch([image], torch.zeros(1, 4), torch.tensor([0, 1]), torch.tensor([5]), ["a.png"])

    found = [data.checksum([batch(pixels)]) for pixels in ([1.0, 2.0], [2.0, 1.0], [1.0, 2.0000002], [1.0, 2.0])]
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_class_graph_counts_images():
    work = build("class_graph", images=50)
    assert (work.items, work.unit) == (50, "images")
    src, dst, weight = work.implementations["irnet"].call()
    assert ((src != dst) & (weight > 0) & (weight <= 1)).all() and len(src) > 50
