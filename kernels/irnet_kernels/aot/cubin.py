"""What ptxas reports of compiled kernels and what their ELF files say: registers, memory, spills, instructions."""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .occupancy import Occupancy, occupancy

FRAME = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
NOP = 0x918  # the opcode, the lowest 12 bits of an instruction
SIZED, THREADS = 4, (0x05, 0x10)  # a format and two attributes of .nv.info: at most, or exactly so many threads
NO_CONTENT = 8  # the type of an ELF section that only takes memory


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes of one GPU architecture.

    registers     of a thread
    shared_bytes  of a block: static, and for Triton also dynamic, which a CUDA kernel is given only at its launch
    spill_bytes   that a thread stores and loads because its registers do not suffice, each instruction counted once
    stack_bytes   of a thread's stack frame; spills live there, too
    instructions  of the machine code, whether executed or not
    version       of what compiled it: "triton 3.7.1", "nvcc 13.0"
    block_warps   of a block: the most that the kernel may be launched with, None where nothing bounds them
    A device function that is not inlined has a row without registers and instructions: they count with its callers'.
    """

    kernel: str
    source: str  # triton or nvcc
    target: str
    registers: int | None
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int
    instructions: int | None
    version: str
    block_warps: int | None = None

    @property
    def occupancy(self) -> Occupancy | None:
        """The occupancy of a multiprocessor without the dynamic shared memory that a launch gives a CUDA kernel."""
        if self.registers is None or self.block_warps is None:
            return None
        return occupancy(int(self.target[3:]), self.registers, self.shared_bytes, self.block_warps)

    @property
    def sm_warps(self) -> int | None:
        """Warps that a multiprocessor keeps at a time."""
        return self.occupancy.warps if self.occupancy else None

    def figures(self) -> dict[str, int]:
        """The numbers that the gate holds, by name."""
        names = ("registers", "shared_bytes", "spill_bytes", "stack_bytes", "instructions")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def resources_of(log: str, cubin: bytes, source: str, target: str, version: str) -> list[Resources]:
    """The resources of all functions in the order of their names, from what `ptxas -v` says and the machine code."""
    instructions, warps = count_instructions(cubin), _block_warps(cubin)
    rows = []
    # "Compiling entry function 'k' for 'sm_80'", or nothing; "Function properties for k"; a line with stack and spills;
    # for an entry "Used 16 registers, used 1 barriers, 512 bytes smem".
    parts = re.split(r"Function properties for (\S+)", log)
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        frame = re.search(FRAME, text)
        assert frame, f"ptxas reported no stack frame of {name}"
        stack, stored, loaded = map(int, frame.groups())
        used = re.search(r"Used (\d+) registers(.*)", text)
        shared = re.search(r"(\d+) bytes smem", used[2]) if used else None
        rows.append(
            Resources(
                kernel=name,
                source=source,
                target=target,
                registers=int(used[1]) if used else None,
                shared_bytes=int(shared[1]) if shared else 0,
                spill_bytes=stored + loaded,
                stack_bytes=stack,
                instructions=instructions.get(name),
                version=version,
                block_warps=warps.get(name),
            )
        )
    if not rows:
        raise RuntimeError(f"ptxas reported no kernel:\n{log}")
    return sorted(rows, key=lambda row: row.kernel)


def count_instructions(cubin: bytes) -> dict[str, int]:
    """Machine instructions of every function in an ELF file for a GPU, without the NOPs that pad it."""
    counts = {}
    for title, content in _sections(cubin):
        if title.startswith(".text."):
            words = struct.unpack("<" + "QQ" * (len(content) // 16), content)  # 128 bits each, from sm_70 on
            counts[title.removeprefix(".text.")] = sum(word & 0xFFF != NOP for word in words[::2])
    return counts


def _block_warps(cubin: bytes) -> dict[str, int]:
    """The warps of a block of every kernel that was compiled for a number of threads, at most or exactly."""
    warps = {}
    for title, content in _sections(cubin):
        if not title.startswith(".nv.info."):
            continue
        at = 0
        while at < len(content):  # a format, an attribute, and 16 bits: a value, or the size of what follows
            form, attribute, size = struct.unpack_from("<BBH", content, at)
            at += 4
            if form == SIZED and attribute in THREADS:
                threads = math.prod(struct.unpack_from("<III", content, at))
                warps[title.removeprefix(".nv.info.")] = -(-threads // 32)
            at += size if form == SIZED else 0
    return warps


def _sections(cubin: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of every section of an ELF file."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    headers = [struct.unpack_from("<II16xQQ", cubin, table + i * size) for i in range(count)]
    for name, section_type, start, length in headers:
        begin = headers[names][2] + name
        content = b"" if section_type == NO_CONTENT else cubin[start : start + length]
        yield cubin[begin : cubin.index(b"\0", begin)].decode(), content
