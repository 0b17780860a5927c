"""Segments: what PyTorch's allocator takes from a GPU's driver for blocks that come and go."""

import itertools
import random

from irnet.engine.segments import LARGE_SEGMENT, SMALL_SEGMENT, Segments

MIB = 2**20


def test_small_blocks_share_a_segment():
    segments = Segments()
    blocks = [segments.take(size) for size in (1, 512, 513, MIB)]
    assert [block.size for block in blocks] == [512, 512, 1024, MIB]
    assert segments.reserved == SMALL_SEGMENT
    segments.take(MIB)
    assert segments.reserved == 2 * SMALL_SEGMENT


def test_large_blocks():
    segments = Segments()
    segments.take(MIB + 1)
    segments.take(9 * MIB)
    assert segments.reserved == LARGE_SEGMENT
    segments.take(33 * MIB)
    assert segments.reserved == LARGE_SEGMENT + 34 * MIB
    whole = Segments()
    block = whole.take(33 * MIB + 512)  # what is left of its segment is too little for another large block
    assert block.size == 34 * MIB and whole.reserved == 34 * MIB


def test_free_blocks_are_used_again_the_smallest_first_and_joined():
    segments = Segments()
    a, b, c = (segments.take(size * MIB) for size in (4, 6, 8))
    assert segments.reserved == LARGE_SEGMENT
    segments.give_back(a)
    segments.give_back(c)  # with the last 2 MiB: 10 MiB
    assert segments.take(4 * MIB).address == a.address
    assert segments.take(9 * MIB).address == c.address
    assert segments.reserved == LARGE_SEGMENT
    segments = Segments()
    a, b, c = (segments.take(size * MIB) for size in (4, 6, 8))
    for block in (a, c, b):
        segments.give_back(block)
    assert segments.take(19 * MIB + 512).address == 0 and segments.reserved == LARGE_SEGMENT


def test_no_two_blocks_overlap_and_nothing_is_lost():
    draw, segments, there, wanted, most = random.Random(0), Segments(), [], 0, 0
    for _ in range(3000):
        if there and draw.random() < 0.5:
            segments.give_back(there.pop(draw.randrange(len(there))))
        else:
            size = int(10 ** draw.uniform(1, 7.5))
            there.append(segments.take(size))
            assert there[-1].size >= size
        ends = sorted((block.address, block.address + block.size) for block in there)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))
        wanted = sum(block.size for block in there)
        most = max(most, wanted)
        free = sum(size for entries in segments._free.values() for size, _, _ in entries)
        assert wanted + free == segments.reserved and wanted <= segments.needed <= segments.reserved
    for block in there:
        segments.give_back(block)
    assert most <= segments.reserved < 4 * most
    # All of it is in whole segments again.
    assert all(block.whole for entries in segments._free.values() for _, _, block in entries)
    assert segments.idle == segments.reserved


def test_what_is_idle_is_not_needed():
    segments = Segments()
    segments.give_back(segments.take(30 * MIB))
    segments.take(40 * MIB)
    assert (segments.reserved, segments.idle, segments.needed) == (70 * MIB, 30 * MIB, 40 * MIB)
    segments.take(2 * MIB)
    assert (segments.reserved, segments.idle, segments.needed) == (70 * MIB, 0, 70 * MIB)
