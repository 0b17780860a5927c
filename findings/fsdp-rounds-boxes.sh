#!/bin/bash
# torch 2.13.0: fully_shard with mixed precision rounds every number in a batch, boxes too, also within dataclasses.
#
# MixedPrecisionPolicy(param_dtype=torch.bfloat16) reads as a choice for weights, and what one knows as mixed precision,
# autocast, leaves the inputs of a model alone. But the policy has cast_forward_inputs=True: before the module's forward
# every floating point tensor among its arguments becomes bfloat16, down into dicts, tuples and dataclasses. A detector gets
# its boxes in pixels so, and bfloat16 has 8 bits: from 256 on it holds even numbers alone, from 512 on every fourth. Nothing
# fails; boxes move by up to 2 pixels at 1000. DistributedDataParallel under autocast hands them on as they are. Give
# cast_forward_inputs=False, and let autocast cast where products are made.
#
# Seen (Python 3.11, x86-64 Linux; one process, gloo):
#   autocast:                    [299.5, 501.0, 998.7] torch.float32
#   fully_shard:                 [300.0, 500.0, 1000.0] torch.bfloat16
#   cast_forward_inputs=False:   [299.5, 501.0, 998.7] torch.float32
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat >boxes.py <<'P'
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


@dataclass
class Batch:
    images: torch.Tensor
    boxes: torch.Tensor


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, batch):
        self.seen = batch.boxes
        return self.layer(batch.images)


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
batch = Batch(torch.rand(2, 4), torch.tensor([299.5, 501.0, 998.7]))
policies = {
    "autocast": None,
    "fully_shard": MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    "cast_forward_inputs=False": MixedPrecisionPolicy(param_dtype=torch.bfloat16, cast_forward_inputs=False),
}
for name, policy in policies.items():
    model = Detector()
    if policy is not None:
        fully_shard(model, mp_policy=policy)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch)
    values = [round(value, 2) for value in model.seen.tolist()]
    print(f"{name + ':':<28} {values} {model.seen.dtype}")
dist.destroy_process_group()
P
env/bin/python boxes.py 2>errors | tee said || { cat errors; exit 1; }
[ "$(cat said)" = "autocast:                    [299.5, 501.0, 998.7] torch.float32
fully_shard:                 [300.0, 500.0, 1000.0] torch.bfloat16
cast_forward_inputs=False:   [299.5, 501.0, 998.7] torch.float32" ] || { echo "it has changed"; exit 1; }
