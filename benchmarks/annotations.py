"""How fast and in how much memory annotations are read: irnet's first reading, its opening of what it kept, a process
that loads, and pycocotools' own index, each in a process of its own, on one generated file of COCO's format.

    python benchmarks/annotations.py                      # 1,000,000 boxes in 100,000 images
    python benchmarks/annotations.py --boxes 100000 --images 10000 --folder /tmp/boxes
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**20


def generate(root: Path, boxes: int, images: int) -> Path:
    """An annotation file with a polygon and an area for every box, as COCO's have."""
    path = root / "annotations" / "instances_train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    rows = [
        {"license": 1, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": i, "flickr_url": "http://x/y"}
        for i in range(1, images + 1)
    ]
    groups = [{"supercategory": "thing", "id": i, "name": f"class {i}"} for i in range(1, 81)]
    with open(path, "w") as file:
        file.write(f'{{"images": {json.dumps(rows)}, "categories": {json.dumps(groups)}, "annotations": [')
        for number in range(1, boxes + 1):
            x, y, w, h = (round(rng.uniform(*bounds), 2) for bounds in ((0, 500), (0, 380), (5, 130), (5, 90)))
            points = [round(value, 2) for _ in range(5) for value in (x + w * rng.random(), y + h * rng.random())]
            row = {"segmentation": [points], "area": round(w * h / 2, 3), "iscrowd": 0, "bbox": [x, y, w, h]}
            row |= {"image_id": rng.randint(1, images), "category_id": rng.randint(1, 80), "id": number}
            file.write((", " if number > 1 else "") + json.dumps(row))
        file.write("]}")
    return path


def rss() -> float:
    """MiB that this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def private() -> float:
    """MiB that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def open_with_irnet(root: Path):
    from irnet.data.coco import CocoDataset

    return CocoDataset(root, "train", require_images=False, cache="")


def measure(what: str, root: Path) -> dict[str, float]:
    """Seconds and MiB of one way to read, in this process; what imports take is left out of "added"."""
    if what == "pycocotools":
        from pycocotools.coco import COCO

        read = lambda: COCO(root / "annotations/instances_train.json")  # noqa: E731
    else:
        import irnet.data.coco  # noqa: F401

        read = lambda: open_with_irnet(root)  # noqa: E731
    before, start, worked = rss(), time.perf_counter(), time.process_time()
    data = read()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    facts = {"seconds": seconds, "of a processor": worked, "peak MiB": peak, "added MiB": peak - before}
    if what == "opened":
        facts["worker MiB"] = _worker(data)
    return facts


def _worker(data) -> float:
    """MiB that a forked process takes for itself while it goes through all regions as a loader's would."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        before = private()
        for i in range(len(data)):
            part = slice(*data.table.ptr[i : i + 2].tolist())
            data.table.boxes[part].copy(), data.table.labels[part].copy(), data.file_names[i]
        os.write(send, str(private() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return float(os.read(receive, 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the file is generated, and left; else a temporary folder")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        path = generate(root, options.boxes, options.images)
        print(f"{options.boxes:,} boxes in {options.images:,} images, {path.stat().st_size / MIB:.0f} MiB")
        for kept in (root / ".irnet").glob("*.safetensors"):
            kept.unlink()
        path.read_bytes()  # all find it in the page cache
        (root / "train").mkdir(exist_ok=True)
        for what in ("pycocotools", "first", "opened"):
            command = [sys.executable, __file__, "--measure", what, "--folder", str(root)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            print(f"{what:12}", "  ".join(f"{name} {value:.2f}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
