"""Records that tests of tables, charts and pages make up."""

import dataclasses
import itertools
import zlib
from pathlib import Path

from irnet_bench import tables
from irnet_bench.records import Record, append

CPU = {
    "device": "cpu",
    "processor": "AMD EPYC 7B13",
    "threads": 2,
    "versions": {"irnet": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
    "commit": "4b3690b1c2d3e4f5",
    "dirty": False,
}

GPU = {
    "device": "NVIDIA H200",
    "processor": "Intel Xeon Platinum 8592",
    "capability": "9.0",
    "threads": 16,
    "versions": {"irnet": "0.1.0", "torch": "2.11.0+cu130", "triton": "3.6.0", "cuda": "13.0"},
    "commit": "4b3690b1c2d3e4f5",
    "dirty": False,
}

SHAPE = {"images": 2, "regions": 64, "channels": 512}

MODES = ("forward", "backward", "step")


def record(case="crop_resize", implementation="cpp", mode="step", seconds=1e-3, **fields) -> Record:
    """A good record that took `seconds`; fields replace what is made up here."""
    ok = fields.get("status", "ok") == "ok"
    measured = {
        "samples": [seconds],
        "percentiles": {"20": 0.95 * seconds, "50": seconds, "80": 1.05 * seconds},
        "clock": "wall",
        "items": 128,
        "unit": "regions",
        "peak_allocated_bytes": 3 << 20,
        "saved_bytes": 1 << 20,
        "fewest_bytes": 1e7,
        "fewest_flops": 3e7,
        "copy_rate": 2e10,
        "matmul_rate": 1e11,
        "limit": "copy",
        "limit_fraction": 1e7 / 2e10 / seconds,
        "error": 3e-7,
        "budget": 4e-6,
        "scale": 4.2,
    }
    made = {
        "run": "r1",
        "time": "2025-11-20T10:00:00+00:00",
        "suite": "kernels",
        "case": case,
        "implementation": implementation,
        "peer": implementation in PEERS,
        "mode": mode,
        "dtype": "float32",
        "shape": SHAPE,
        "seed": 0,
        "swept": False,
        "plan": "p1",
        "status": "ok",
        "machine": CPU,
    }
    return Record(**(made | (measured if ok else {}) | fields))


PEERS = ("torchvision roi_align", "grid_sample", "torch.compile", "PyG RGCNConv", "plain PyTorch")

SLOW = {"cuda": 1.6, "triton": 1.9, "cpp": 1.5, "auto": 1.5, "reference": 9, "grid_sample": 12, "plain PyTorch": 30}

INTENSITIES = {
    "crop_resize": 1.6, "paste_mean": 1.9, "crop_resize_clamp": 1.7, "paste_mean_nested": 2.4, "conv_gru": 220.0,
    "propagate": 48.0, "propagate_regions": 60.0, "region_adjacency": 4.0,
}  # fmt: skip


def plausible(machine: dict = CPU) -> list[Record]:
    """What a device's file may hold: operators with peers, sweeps, the model, and all that can go wrong."""
    gpu = machine is GPU
    copy, matmul = (3.9e12, {"float32": 5e13, "bfloat16": 7.2e14}) if gpu else (2.2e10, {"float32": 1.1e11})
    names = ["cuda", "triton", "reference", *PEERS] if gpu else ["cpp", "reference", *PEERS]
    found = []

    def add(case, name, mode, dtype, shape, bytes_, flops, **fields):
        limit = max(bytes_ / copy, flops / matmul[dtype])
        slow = SLOW.get(name, 2.0) * (0.7 + 0.01 * (zlib.crc32(f"{case}{name}{mode}".encode()) % 100))
        seconds = limit * slow + (6e-6 if gpu else 2e-5)
        peak = int(bytes_ * slow / 4)
        rates = {"copy_rate": copy, "matmul_rate": matmul[dtype], "fewest_bytes": bytes_, "fewest_flops": flops}
        rates |= {"limit": "copy" if bytes_ / copy == limit else "matmul", "limit_fraction": limit / seconds}
        if fields.get("status", "ok") != "ok":
            rates = {}
        else:
            rates |= {"peak_allocated_bytes": peak, "saved_bytes": peak // 3}
        kept = {"shape": shape, "dtype": dtype, "machine": machine}
        found.append(record(case, name, mode, seconds, **(kept | rates | fields)))

    for (case, intensity), dtype in itertools.product(INTENSITIES.items(), matmul):
        for name in names:
            for mode in MODES:
                trouble = {}
                if name == "PyG RGCNConv":
                    reason = "torch_geometric is not installed; pip install irnet[peers]"
                    trouble = {"status": "skipped", "reason": reason}
                if name == "torchvision roi_align" and dtype == "bfloat16":
                    trouble = {
                        "status": "error",
                        "reason": "RuntimeError: \"roi_align\" not implemented for 'BFloat16'",
                    }
                if name == "plain PyTorch" and case == "paste_mean" and mode != "forward":
                    trouble = {"status": "oom", "reason": "tried to allocate 40.00 GiB"}
                work = {"forward": 1, "backward": 2, "step": 3}[mode]
                size = work * 2e7 * (0.5 if dtype == "bfloat16" else 1)
                add(case, name, mode, dtype, SHAPE, size, size * intensity, **trouble)
    for case, regions in itertools.product(("crop_resize", "paste_mean", "propagate_regions"), (1, 10, 50, 100, 300)):
        for name in names[:4]:
            shape = SHAPE | {"regions": regions}
            size = 9.4e5 * regions
            add(case, name, "step", "float32", shape, size, size * INTENSITIES[case], swept=True)
    for variant, images in itertools.product(("full", "local"), (1, 2, 4, 8)):
        for name in ("auto", "reference", "torch.compile"):
            work, fields = images * (4e8 if gpu else 2e7), {"suite": "training", "items": images, "unit": "images"}
            if name == "reference" and images == 8:
                fields |= {"status": "oom", "reason": "tried to allocate 12.00 GiB"}
            else:
                memory = {"auto": 0.31, "reference": 0.68, "torch.compile": 0.4}[name] * images + 0.2
                fields["peak_allocated_bytes"] = int(memory * 2**30)
            add(
                f"train_{variant}",
                name,
                "step",
                "float32",
                {"images": images, "regions": 20},
                work,
                80 * work,
                swept=images > 1,
                **fields,
            )
    return found


def device(*records: Record) -> tables.Device:
    (found,) = tables.devices(list(records))
    return found


def readme_and_results(folder: Path, text: str = f"# t\n\n{tables.BEGIN}\n{tables.END}\n\nend") -> tuple[Path, Path]:
    readme, results = folder / "README.md", folder / "results" / "cpu.jsonl"
    readme.write_bytes(text.encode())
    append(results, plausible())
    return readme, results


EMPTY = {field.name: None for field in dataclasses.fields(Record) if field.default is None}
