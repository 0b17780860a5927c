"""irnet beside the authors' own TensorFlow program, taking turns: seconds of a step, of the processor, and peak memory.

Their program is not part of irnet. Fetch it, and make it an environment of the age that it needs:

    git clone https://github.com/endernewton/iter-reason
    python3.7 -m venv authors
    authors/bin/pip install tensorflow==1.15.5 "numpy<1.19" "protobuf<3.21" easydict pillow
    python benchmarks/authors/compare.py --python authors/bin/python --source iter-reason

Both do the work of workload.py (local module, ResNet-50, one image of 600 x 800, 1,485 classes, three predictions,
float32) from random weights, each in a process of its own, one step at a time in turn. The peak is that of the whole
process (ru_maxrss), libraries included. A training step is theirs without summaries; a test step is one image.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from tabulate import tabulate

from irnet.cli import THREADS_SLEEP
from irnet.errors import InputError
from irnet_bench import machine

HERE = Path(__file__).resolve().parent
Answer = dict[str, float]


def main() -> None:
    title, text = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(description=title, epilog=text, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", required=True, help="a Python 3.7 that has tensorflow 1.15")
    parser.add_argument("--source", required=True, type=Path, help="folder of the authors' program")
    parser.add_argument("--mode", nargs="+", choices=["train", "test"], default=["train", "test"])
    parser.add_argument("--regions", nargs="+", type=int, default=[16, 64, 128])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="steps of each that count, after one that does not")
    parser.add_argument("--output", type=Path, help="append a JSON line for each row to this file")
    args = parser.parse_args()
    rows = []
    for threads in args.threads:
        for mode in args.mode:
            for regions in args.regions:
                options = ["--mode", mode, "--regions", str(regions), "--threads", str(threads)]
                commands = {
                    "authors": [args.python, str(HERE / "theirs.py"), "--source", str(args.source.resolve()), *options],
                    "irnet": [sys.executable, str(HERE / "ours.py"), *options],
                }
                samples = take_turns(commands, args.rounds, threads)
                row = {"mode": mode, "regions": regions, "threads": threads, **summary(samples)}
                rows.append(row)
                print(tabulate([row], headers="keys", floatfmt=".3g"), flush=True)
                if args.output:
                    facts = machine.facts(torch.device("cpu")) | {"threads": threads}
                    with args.output.open("a") as file:
                        print(json.dumps({**row, "samples": samples, **facts}), file=file)
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3g"))


def take_turns(commands: dict[str, list[str]], rounds: int, threads: int) -> dict[str, list[Answer]]:
    """Start each program's command, then let them step in turn; returns what each answered, the first step left out.

    Raises:
        InputError: A program ended before it had answered.
    """
    # Without PYTHONPATH: another Python must not find this one's packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), **THREADS_SLEEP}  # as the command `irnet` runs
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    processes = {name: subprocess.Popen(command, env=environment, **pipes) for name, command in commands.items()}
    samples: dict[str, list[Answer]] = {name: [] for name in commands}
    try:
        for _ in range(1 + rounds):
            for name, process in processes.items():
                samples[name].append(ask(name, process))
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    return {name: answers[1:] for name, answers in samples.items()}


def ask(name: str, process: subprocess.Popen) -> Answer:
    """Let a program take one step."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write("step\n")
        answer = process.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        raise InputError(name, f"ended with {process.wait()} before it had answered", "its last words stand above")
    return json.loads(answer)


def summary(samples: dict[str, list[Answer]]) -> dict[str, float]:
    """Medians of processor seconds, of seconds, and the highest peak, theirs and ours, and ours as part of theirs."""
    row: dict[str, float] = {}
    for unit, title in (("processor", "CPU s"), ("seconds", "s"), ("peak_mib", "MiB")):
        of = max if unit == "peak_mib" else statistics.median
        theirs, ours = (of([answer[unit] for answer in samples[name]]) for name in ("authors", "irnet"))
        row |= {f"authors {title}": theirs, f"irnet {title}": ours}
        row[f"{title} ratio"] = ours / theirs if unit == "peak_mib" else theirs / ours
    return row


if __name__ == "__main__":
    main()
