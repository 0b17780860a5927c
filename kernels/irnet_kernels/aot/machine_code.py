"""Reads compiled kernels' machine code: what their instructions are, and the loop where they spend their time.

No GPU is needed. All counts are of instructions as they stand in the code, each
counted once; a warp executes one at a time. NVIDIA's disassembler lists the code, this module only reads the list.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .compiled import Binary, CudaSource, TritonKernel, cuda_binaries, triton_binaries
from .cubin import Resources
from .tools import ToolUnavailable, toolkit_program, triton_version

GLOBAL_LOADS = {"LD", "LDG", "LDGSTS", "UTMALDG", "UBLKCP"}  # generic, to registers, to shared memory, by copy engine
GLOBAL_STORES = {"ST", "STG", "UTMASTG"}
ATOMICS = {"ATOM", "ATOMG", "RED", "REDG", "UTMAREDG", "UBLKRED"}
SHARED = {"LDS", "LDSM", "STS", "STSM"}
LOCAL = {"LDL", "STL"}
BARRIERS = {"BAR", "SYNCS"}
COPY_ENGINE = {"UTMALDG", "UBLKCP", "UTMASTG", "UTMAREDG", "UBLKRED"}  # one instruction moves a whole tile
WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}  # bits; 32 where none is named


@dataclass(frozen=True)
class Instruction:
    """One machine instruction: `@P0 LDG.E.128 R4, desc[UR4][R2.64]`."""

    address: int
    predicate: str
    mnemonic: str
    operands: str

    @property
    def opcode(self) -> str:
        return self.mnemonic.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies matrices: HMMA, DMMA, HGMMA, UTCHMMA, ..."""
        return self.opcode.endswith("MMA")

    @property
    def access(self) -> str:
        """The opcode of an access to memory and the bits that a thread moves by it, such as "LDG 128"."""
        if self.opcode in COPY_ENGINE:
            return f"{self.opcode} bulk"
        modifiers = self.mnemonic.split(".")[1:]
        if self.opcode in ("LDSM", "STSM"):  # 8 x 8 matrices of 16 bits, a row for each thread; 1, 2 or 4 of them
            return f"{self.opcode} {32 * int(modifiers[-1]) if modifiers[-1].isdigit() else 32}"
        return f"{self.opcode} {next((WIDTHS[m] for m in modifiers if m in WIDTHS), 32)}"


@dataclass(frozen=True)
class Mix:
    """How many instructions of each sort there are, without the NOPs.

    matrix         by mnemonic; HGMMA is one instruction for the four warps of a warpgroup, and what UTCHMMA multiplies
                   stands in a descriptor
    loads, stores  of global memory, by opcode and bits for a thread: "LDG 128"; a copy engine's have no such width
    atomics        on global memory
    shared         accesses to shared memory, alike
    local          LDL and STL: spills, and arrays that are indexed at run time
    special        MUFU: reciprocals, roots, exponentials, ..., by mnemonic
    barriers       BAR and SYNCS (mbarriers), by mnemonic
    """

    instructions: int
    matrix: Mapping[str, int]
    loads: Mapping[str, int]
    stores: Mapping[str, int]
    atomics: Mapping[str, int]
    shared: Mapping[str, int]
    local: Mapping[str, int]
    special: Mapping[str, int]
    barriers: Mapping[str, int]

    @classmethod
    def of(cls, instructions: Iterable[Instruction]) -> "Mix":
        executed = [i for i in instructions if i.opcode != "NOP"]

        def accesses(opcodes: set[str]) -> Counter[str]:
            return Counter(i.access for i in executed if i.opcode in opcodes)

        return cls(
            len(executed),
            Counter(i.mnemonic for i in executed if i.is_matrix),
            accesses(GLOBAL_LOADS),
            accesses(GLOBAL_STORES),
            accesses(ATOMICS),
            accesses(SHARED),
            accesses(LOCAL),
            Counter(i.mnemonic for i in executed if i.opcode == "MUFU"),
            Counter(i.mnemonic for i in executed if i.opcode in BARRIERS),
        )

    @property
    def per_matrix_instruction(self) -> float | None:
        """Instructions for one matrix instruction."""
        count = sum(self.matrix.values())
        return self.instructions / count if count else None

    @property
    def per_wide_load(self) -> float | None:
        """Instructions for one load of 16 bytes from global memory."""
        count = sum(n for access, n in self.loads.items() if access.endswith(" 128"))
        return self.instructions / count if count else None

    def __str__(self) -> str:
        parts = [f"{self.instructions} instructions"]
        for name, each in (
            ("a matrix instruction", self.per_matrix_instruction),
            ("a 16-byte load", self.per_wide_load),
        ):
            if each:
                parts.append(f"{each:.1f} {name}")
        for name in ("matrix", "loads", "stores", "atomics", "shared", "local", "special", "barriers"):
            if counts := getattr(self, name):
                parts.append(f"{name} " + " + ".join(f"{n} {what}" for what, n in sorted(counts.items())))
        return "; ".join(parts)


@dataclass(frozen=True)
class Loop:
    """The instructions that run again: those from which the loop's first one is reached without leaving the loop.

    Both sides of a branch within count. Waiting loops that the compiler put behind the kernel's end count with the
    loop that they return to.
    """

    addresses: frozenset[int]
    mix: Mix

    def __str__(self) -> str:
        return f"loop {min(self.addresses):#06x}: {self.mix}"


@dataclass(frozen=True)
class MachineCode:
    """A kernel's machine code for one target. Its loops are in the order of their first instructions."""

    resources: Resources
    mix: Mix
    loops: Sequence[Loop]

    @property
    def hottest(self) -> Loop | None:
        """The innermost loop with most matrix instructions; where none has any, with most loads of global memory.

        A loop is innermost here if no loop within it has such instructions, too: around the loop over a tile a
        persistent kernel has one over its tiles, which also counts what is done once for a tile.
        """
        for sort in ("matrix", "loads"):
            loops = [loop for loop in self.loops if getattr(loop.mix, sort)]
            inner = [a for a in loops if not any(b.addresses < a.addresses for b in loops)]
            if inner:
                return max(inner, key=lambda loop: (sum(getattr(loop.mix, sort).values()), loop.mix.instructions))
        return None

    def __str__(self) -> str:
        own, fits, hottest = self.resources, self.resources.occupancy, self.hottest
        usage = f"{own.registers} registers, {own.shared_bytes} shared bytes, {own.spill_bytes} spill bytes"
        if fits:
            usage += f", {fits.warps} warps a multiprocessor: {fits.blocks} blocks of {own.block_warps} ({fits.limit})"
        lines = [f"{own.kernel} {own.target}, {own.version}", usage, f"all: {self.mix}"]
        lines += [f"{'hottest ' if loop is hottest else ''}{loop}" for loop in self.loops]
        return "\n    ".join(lines)


def read(kernel: TritonKernel | CudaSource, targets: Iterable[int] | None = None) -> list[MachineCode]:
    """Compile for each target (its own by default) and read the machine code of every kernel.

    Raises ToolUnavailable where a tool is absent.
    """
    binaries = triton_binaries(kernel, targets) if isinstance(kernel, TritonKernel) else cuda_binaries(kernel, targets)
    return [code for binary in binaries for code in read_binary(binary)]


def read_binary(binary: Binary) -> list[MachineCode]:
    """The machine code of the kernels in a compiled file; functions that are not inlined count with none of them."""
    functions = dict(functions_of(disassembled(binary.cubin)))
    return [
        MachineCode(row, Mix.of(functions[name].instructions), functions[name].loops())
        for name, row in binary.rows.items()
        if row.registers is not None
    ]


def disassembled(cubin: bytes) -> str:
    """What NVIDIA's disassembler writes about a compiled file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([nvdisasm(), "-c", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm -c ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def nvdisasm() -> str:
    """Where the disassembler is, the toolkit's or Triton's; raises ToolUnavailable where there is none."""
    path = toolkit_program("nvdisasm")
    if path:
        return path
    try:
        triton_version()
    except ToolUnavailable:
        cure = "pip install triton, or install the CUDA toolkit and set CUDA_HOME"
        raise ToolUnavailable(f"there is no nvdisasm ({cure})") from None
    from triton import knobs

    own: str = knobs.nvidia.nvdisasm.path
    return own


# The list: functions, their instructions, the ways through them


@dataclass(frozen=True)
class Function:
    """A function's instructions in order, and the addresses of its labels."""

    instructions: Sequence[Instruction]
    labels: Mapping[str, int]

    def loops(self) -> list[Loop]:
        """Natural loops: a jump back to an instruction that was passed on every way to the jump closes one."""
        starts, follow = self._blocks()
        blocks = sorted(_reached(starts[:1], follow))
        before = {block: [other for other in blocks if block in follow[other]] for block in blocks}
        ends = dict(zip(starts, [*starts[1:], self.instructions[-1].address + 1], strict=True))
        loops = []
        for header in blocks:
            around = _reached(starts[:1], follow, avoid=header)
            jumps = [block for block in before[header] if block not in around]
            if jumps:
                spans = [range(start, ends[start]) for start in {header} | _reached(jumps, before, avoid=header)]
                own = [i for i in self.instructions if any(i.address in span for span in spans)]
                loops.append(Loop(frozenset(i.address for i in own), Mix.of(own)))
        return loops

    def _blocks(self) -> tuple[list[int], dict[int, set[int]]]:
        """The first addresses of basic blocks, and for each those of the blocks that can follow."""
        targets = [self._targets(i) for i in self.instructions]
        addresses = [i.address for i in self.instructions]
        after = dict(zip(addresses, [*addresses[1:], None], strict=True))
        known = set(addresses)
        ends = [
            after[i.address] for i, (jumps, falls) in zip(self.instructions, targets, strict=True) if jumps or not falls
        ]
        starts = sorted(known & {addresses[0], *ends, *(t for jumps, _ in targets for t in jumps)})
        follow: dict[int, set[int]] = {start: set() for start in starts}
        current = starts[0]
        for instruction, (jumps, falls) in zip(self.instructions, targets, strict=True):
            current = instruction.address if instruction.address in follow else current
            follow[current] |= known.intersection(jumps)
            following = after[instruction.address]
            if falls and following in follow:
                follow[current].add(following)
        return starts, follow

    def _targets(self, instruction: Instruction) -> tuple[list[int], bool]:
        """Where an instruction may jump within the function, and whether the next one can follow it."""
        opcode = instruction.opcode
        if opcode in ("BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU"):
            # `@P0 BRA label` and `BRA.U UP0, label` may go on; `BRA label` never does.
            conditional = instruction.predicate or (opcode == "BRA" and "," in instruction.operands)
            return self._labels(instruction), bool(conditional)
        if opcode in ("EXIT", "RET"):
            return [], bool(instruction.predicate)
        if opcode == "BSYNC":  # threads that went apart meet where the last BSSY of this barrier says
            sets = [i for i in self.instructions if i.opcode == "BSSY" and i.address < instruction.address]
            sets = [i for i in sets if i.operands.split(",")[0] == instruction.operands]
            return (self._labels(sets[-1]) if sets else []), not sets
        return [], True

    def _labels(self, instruction: Instruction) -> list[int]:
        """The addresses of the labels that an instruction names."""
        names = re.findall(r"[.$\w]*[.$]\w[.$\w]*", instruction.operands)
        return [self.labels[name] for name in names if name in self.labels]


def functions_of(listing: str) -> Iterator[tuple[str, Function]]:
    """The functions that stand in a disassembler's list, by name."""
    for part in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        name = re.match(r'"?([^",\s]+)', part)
        assert name, "a section of code has no name"
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        waiting: list[str] = []
        for line in part.splitlines():
            if label := re.match(r"\s*([.$\w]+):\s*$", line):
                waiting.append(label[1])
            elif text := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", line):
                address = int(text[1], 16)
                labels |= dict.fromkeys(waiting, address)
                waiting = []
                instructions.append(Instruction(address, text[2] or "", text[3], text[4]))
        if instructions:
            yield name[1], Function(tuple(instructions), labels)


def _reached(first: Iterable[int], follow: Mapping[int, Iterable[int]], avoid: int | None = None) -> set[int]:
    """The blocks that are reached from the first ones without passing `avoid`, the first ones included."""
    reached, waiting = set(), list(first)
    while waiting:
        block = waiting.pop()
        if block != avoid and block not in reached:
            reached.add(block)
            waiting += follow[block]
    return reached
