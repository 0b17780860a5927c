"""Records: what becomes of samples in a batch, and of a batch on its way."""

import torch

from irnet.data.sample import collate
from irnet.data.transforms import prepare
from tests.data.tools import make_sample


def test_collate_keeps_order_and_counts_images_without_regions():
    samples = [
        prepare(make_sample(8, 9, [], name="none")),
        prepare(make_sample(10, 11, [(0, 0, 5, 5), (1, 1, 2, 2)], name="two")),
        prepare(make_sample(12, 13, [], name="none2")),
        prepare(make_sample(14, 15, [(2, 2, 3, 3)], name="one")),
    ]
    for sample, values in zip(samples, ([], ["a", "b"], [], ["c"]), strict=True):
        sample.attributes = {"kind": values, "order": [str(i) for i in range(len(values))]}
    batch = collate(samples)
    assert batch.ptr.tolist() == [0, 0, 2, 2, 3]
    assert batch.ptr.dtype == batch.labels.dtype == torch.int64
    assert batch.boxes[:, 0].tolist() == [0.0, 1.0, 2.0]
    assert batch.labels.tolist() == [0, 1, 0]
    assert batch.names == ["none", "two", "none2", "one"]
    assert batch.attributes == {"kind": ["a", "b", "c"], "order": ["0", "1", "0"]}
    assert [tuple(image.shape) for image in batch.images] == [(3, 8, 9), (3, 10, 11), (3, 12, 13), (3, 14, 15)]
    moved = batch.to("cpu")
    assert torch.equal(moved.ptr, batch.ptr) and moved.attributes == batch.attributes
    parts = batch.split(2)
    assert [part.attributes["kind"] for part in parts] == [["a", "b"], ["c"]]
    assert [part.names for part in parts] == [["none", "two"], ["none2", "one"]]
    assert [part.ptr.tolist() for part in parts] == [[0, 0, 2], [0, 0, 1]]
    empty = collate(samples[:1])
    assert empty.boxes.shape == (0, 4)
    assert empty.ptr.tolist() == [0, 0]
