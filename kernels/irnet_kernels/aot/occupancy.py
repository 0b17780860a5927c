"""How many warps a multiprocessor keeps at a time, from what a block takes: NVIDIA's rules for three targets."""

from dataclasses import dataclass

REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor, the same for all three targets
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}
PARTITIONS = 4  # of a multiprocessor; each has a quarter of the registers, and a warp stays in one
REGISTER_UNIT, SHARED_UNIT = 256, 128  # registers of a warp and shared bytes of a block are given in these
RESERVED_BYTES = 1024  # of shared memory, for every block


@dataclass(frozen=True)
class Occupancy:
    """What fits on a multiprocessor.

    blocks  that run at the same time; 0 where not even one fits
    warps   of those blocks
    limit   what keeps further blocks out: "registers", "shared memory", "warps" or "blocks"
    """

    blocks: int
    warps: int
    limit: str


def occupancy(target: int, registers: int, shared_bytes: int, warps: int) -> Occupancy:
    """Occupancy of a multiprocessor of compute capability target / 10 by one kernel.

    registers     of a thread, as ptxas reports them
    shared_bytes  of a block, static and dynamic
    warps         of a block
    """
    of_warp = _rounded_up(max(registers, 1) * 32, REGISTER_UNIT)
    of_block = _rounded_up(shared_bytes + RESERVED_BYTES, SHARED_UNIT)
    fitting = {
        "warps": WARPS // warps,
        "blocks": BLOCKS,
        "registers": REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps,
        "shared memory": SHARED_BYTES[target] // of_block,
    }
    limit = min(fitting, key=fitting.__getitem__)
    return Occupancy(fitting[limit], fitting[limit] * warps, limit)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
