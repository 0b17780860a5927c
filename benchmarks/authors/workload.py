"""The work that both programs do, and how they are driven: one step a line. No more than Python 3.7 and NumPy knows."""

import json
import math
import os
import resource
import sys
import time

import numpy as np

CLASSES = 1485  # ADE20K's 1,484 and the authors' background
PREDICTIONS = 3  # of the memory: the ConvNet's and two more
LEARNING_RATE, MOMENTUM = 0.0, 0.9  # with weights that never saw an image, any other rate soon ends in NaN


class Workload:
    """An image [3, 600, 800] in RGB, and so many boxes [R, 4] of 30 to 200 pixels a side with their labels [R]."""

    height, width = 600, 800

    def __init__(self, regions):
        random = np.random.RandomState(regions)
        self.image = random.randn(3, self.height, self.width).astype(np.float32)
        corners = random.rand(regions, 2) * [self.width - 200, self.height - 200]
        self.boxes = np.concatenate([corners, corners + 30 + 170 * random.rand(regions, 2)], 1).astype(np.float32)
        self.labels = random.randint(1, CLASSES, regions).astype(np.int64)


def serve(prepare):
    """Take a step for every line of the standard input, and answer with seconds, processor seconds and peak MiB.

    Args:
        prepare: Builds the program and returns the step. What it prints goes to the standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step = prepare()
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        value = step()
        answer = {
            "seconds": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if not math.isfinite(value):
            raise SystemExit(f"the step's result is {value}")
        print(json.dumps(answer), file=answers, flush=True)
