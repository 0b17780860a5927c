"""How PyTorch's allocator cuts a GPU's memory: blocks within segments, by its default settings. Holds no memory.

After c10/cuda/CUDACachingAllocator.cpp of PyTorch 2.13, for one stream and without expandable segments.
"""

import bisect
from dataclasses import dataclass

BLOCK = 512  # bytes, in multiples of which memory is handed out
SMALL = 2**20  # up to here blocks come from segments of their own kind
SMALL_SEGMENT, LARGE_SEGMENT = 2 * 2**20, 20 * 2**20
LARGE = 10 * 2**20  # from here on a block has a segment of its size, in multiples of SMALL_SEGMENT


def rounded(size: int, unit: int = BLOCK) -> int:
    """Round a size up to a multiple of `unit`, to one `unit` at least."""
    return -(-max(size, 1) // unit) * unit


@dataclass(eq=False)
class Block:
    """A piece of a segment, between its neighbours."""

    size: int
    address: int
    small: bool
    free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None

    @property
    def whole(self) -> bool:
        """Whether it is all of its segment."""
        return self.before is None and self.after is None


class Segments:
    """The segments that an allocator has taken from the driver, and the free blocks in them.

    Attributes:
        reserved: Bytes of all segments. They are kept while there is memory.
        idle: Bytes of those in which nothing is. They are given back before memory ends.
        needed: The most that were not idle, so far: a run needs so much.
    """

    def __init__(self) -> None:
        self.reserved = self.idle = self.needed = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}  # of small blocks and of large

    def take(self, size: int) -> Block:
        """Hand out the smallest free block that is large enough, of a new segment if there is none."""
        size = rounded(size)
        small = size <= SMALL
        free = self._free[small]
        at = bisect.bisect_left(free, size, key=lambda entry: entry[0])
        if at < len(free):
            block = free.pop(at)[2]
            block.free = False
            self.idle -= block.size if block.whole else 0
        else:
            segment = SMALL_SEGMENT if small else LARGE_SEGMENT if size < LARGE else rounded(size, SMALL_SEGMENT)
            block = Block(segment, self.reserved, small)
            self.reserved += segment
        rest = block.size - size
        if rest >= BLOCK if small else rest > SMALL:
            other = Block(rest, block.address + size, small, before=block, after=block.after)
            if other.after:
                other.after.before = other
            block.size, block.after = size, other
            self._add(other)
        self.needed = max(self.needed, self.reserved - self.idle)
        return block

    def give_back(self, block: Block) -> None:
        """Take a block back, and join it with the free ones beside it."""
        for one in (block.before, block.after):
            if one is not None and one.free:
                free = self._free[one.small]
                free.pop(bisect.bisect_left(free, (one.size, one.address), key=lambda entry: entry[:2]))
                first, second = (one, block) if one is block.before else (block, one)
                joined = Block(first.size + second.size, first.address, block.small, False, first.before, second.after)
                if joined.before:
                    joined.before.after = joined
                if joined.after:
                    joined.after.before = joined
                block = joined
        self._add(block)

    def _add(self, block: Block) -> None:
        block.free = True
        self.idle += block.size if block.whole else 0
        bisect.insort(self._free[block.small], (block.size, block.address, block), key=lambda entry: entry[:2])
