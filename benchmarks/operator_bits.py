"""Whether a change leaves every operator's bits as they were: stores hashes of results, or compares with stored ones.

    python benchmarks/operator_bits.py store before.json       # at the commit before
    python benchmarks/operator_bits.py compare before.json     # at the commit after, on the same machine

Every case of the kernels suite runs forward and backward: in every implementation of this device and every dtype at the
small shape of the gate; at the shape of the benchmark without the reference and float16, which takes minutes on a CPU.
Bits differ between processors and versions of PyTorch, so the hashes of one machine say nothing about another's. Exits
with 1 where a hash differs or is missing on either side.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

from irnet_bench.case import DTYPES, Case, Setup, cases
from irnet_bench.measure import upstream


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("action", choices=("store", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--filter", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    options = parser.parse_args()
    hashes = {}
    for case in tqdm(cases("kernels", options.filter), unit="case", disable=None):
        for shape in ("gate", options.device):
            if case.shapes[shape]:
                hashes |= hashes_of(case, shape, torch.device(options.device))
    if options.action == "store":
        options.file.write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n")
        print(f"{len(hashes)} hashes in {options.file}")
        return 0
    before = {name: value for name, value in json.loads(options.file.read_text()).items() if options.filter in name}
    differing = sorted(n for n in before.keys() | hashes.keys() if before.get(n) != hashes.get(n))
    print("\n".join([*differing, f"{len(before)} hashes stored, {len(hashes)} computed, {len(differing)} differ"]))
    return 1 if differing or not hashes else 0


def hashes_of(case: Case, shape: str, device: torch.device) -> dict[str, str]:
    """A hash of the result and of every gradient, for each dtype and each of irnet's own implementations."""
    hashes = {}
    for name in DTYPES if shape == "gate" else ("float32", "bfloat16"):
        work = case.build(Setup(case.shapes[shape], DTYPES[name], device))
        for impl, implementation in work.implementations.items():
            if implementation.peer or implementation.call is None or (shape != "gate" and impl == work.reference):
                continue
            leaves = [tensor.detach().requires_grad_() for tensor in work.inputs]
            result = implementation.call(*leaves)
            gradients = torch.autograd.grad(result, leaves, upstream(result))
            for output, tensor in [("result", result), *((f"gradient {i}", g) for i, g in enumerate(gradients))]:
                hashes[f"{case.name}/{shape}/{name}/{impl}/{output}"] = _hash(tensor)
    return hashes


def _hash(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu().contiguous()  # the order of the shape, whatever the strides
    content = hashlib.sha256(f"{values.dtype} {list(values.shape)}".encode())
    content.update(values.view(torch.uint8).numpy().tobytes() if values.numel() else b"")
    return content.hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
