#!/bin/bash
# torch 2.13.0: a model under one fully_shard holds its gathered weights twice throughout the forward pass.
#
# One would expect, with N processes, an Nth of the weights and, while the forward pass runs, all weights once. But FSDP2
# keeps the buffer into which it gathered a group, beside the weights that were copied out of it, until the next group has
# been gathered, to overlap the two; where there is no next group, until the end of the root's forward pass. So just where
# activations pile up there is one copy of all weights more than with DistributedDataParallel, which takes back much of what
# was won. Call model.unshard() before the model: weights that are gathered so are copied out and the buffer freed at once.
#
# Seen (Python 3.11, x86-64 Linux, gloo, 2 processes; tensors within the forward pass, in sizes of all weights):
#   model(x): 2.5
#   model.unshard(), model(x): 1.5
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat >forward.py <<'P'
import gc

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1024, 1024, bias=False)

    def forward(self, x):
        tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, nn.Parameter)]
        sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self.there = sum(sizes.values()) / (4 * 1024**2)
        return self.layer(x)


def main(rank, port):
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for early in (False, True):
        model = fully_shard(Model())
        for _ in range(2):
            if early:
                model.unshard()
            model(torch.ones(1, 1024)).sum().backward()
            model.zero_grad()
        if rank == 0:
            print(f"{'model.unshard(), ' * early}model(x): {model.there:.1f}", flush=True)
        del model
        gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.start_processes(main, (store.port,), 2, start_method="spawn")
P
env/bin/python forward.py 2>errors | tee said || { cat errors; exit 1; }
[ "$(cat said)" = "model(x): 2.5
model.unshard(), model(x): 1.5" ] || { echo "it has changed"; exit 1; }
