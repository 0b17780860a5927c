"""Images per second and peak memory of training steps, by the images of a batch: `python benchmarks/batches.py`.

Steps of irnet.engine on images of noise, with activations kept and made again (--grad-checkpointing). Batches of all
sizes take turns; the least processor time of each counts, on a GPU the least time. The peak is the allocator's.
Writes the figures to benchmarks/results/batches.json, with the machine's facts as in the harness's records, and prints
the table. `--size 600x1000 --regions 64` measures images of the paper's size, `--size 160x256` small ones.
"""

import argparse
import time
from pathlib import Path

import torch
from tabulate import tabulate

from irnet import files
from irnet.config import Config
from irnet.engine.fit import made_up_edges
from irnet.engine.memory import Scene, Step, noise_batch, peak_of
from irnet_bench import machine

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variant", default="full")
    parser.add_argument("--size", default="160x256", metavar="HxW", help="of the images (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=16, help="of an image (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=4096, help="width of the FC layers (default: %(default)s)")
    parser.add_argument("--amp", default="off", choices=("off", "bf16", "fp16"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3, help="steps of each that take turns (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "batches.json")
    options = parser.parse_args()

    device = torch.device(options.device)
    height, width = map(int, options.size.split("x"))
    scene = Scene(height, width, (options.regions,), 80, made_up_edges(80))
    config = Config()
    config.model.variant, config.model.hidden, config.train.amp = options.variant, options.hidden, options.amp
    step = Step(config, scene, device.type == "cuda", device)
    records = measure(step, scene, device, options.batches, options.rounds)
    print(table(records))
    facts = {key: getattr(options, key) for key in ("variant", "size", "regions", "hidden", "amp")}
    files.write_json(options.output, facts | {"machine": machine.facts(device), "records": records})
    print(options.output)


def measure(step: Step, scene: Scene, device: torch.device, batches: list[int], rounds: int) -> list[dict]:
    """A record for every batch size and way; `step` is taken on other batches than its own."""
    ways = [(checkpointing, images) for checkpointing in (False, True) for images in batches]

    def choose(checkpointing: bool, images: int) -> None:
        step.model.set_grad_checkpointing(checkpointing)
        step.batch = noise_batch(scene, scene.of(images)).to(device)

    peaks, seconds = {}, {way: [] for way in ways}
    for way in ways:
        choose(*way)
        peaks[way] = peak_of(step, device)
    for _ in range(rounds):
        for way in ways:
            choose(*way)
            seconds[way].append(timed(step, device))
    return [
        {"images": images, "grad_checkpointing": again, "seconds": min(seconds[again, images]), "peak_bytes": peak}
        for (again, images), peak in peaks.items()
    ]


def timed(step: Step, device: torch.device) -> float:
    """Processor seconds of a step, on a GPU seconds until it is done."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begin = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begin


def table(records: list[dict]) -> str:
    """A row for every batch size and way."""
    rows = [("images", "activations", "seconds", "images/s", "peak, MiB")]
    for record in records:
        way = "made again" if record["grad_checkpointing"] else "kept"
        rate = f"{record['images'] / record['seconds']:.3f}"
        rows.append((record["images"], way, f"{record['seconds']:.2f}", rate, f"{record['peak_bytes'] / 2**20:,.0f}"))
    return tabulate(rows, headers="firstrow", tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
