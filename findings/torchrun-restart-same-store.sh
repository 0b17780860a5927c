#!/bin/bash
# torch 2.13.0: processes that torchrun --max-restarts starts again meet the store of those before, with their keys in it.
#
# One would expect a restart to begin with an empty store, as torch/distributed/rendezvous.py says ("We create a new
# TCPStore for every retry so no need to add prefix for each attempt"). But with the c10d rendezvous, which --standalone
# takes, the agent keeps its store. init_process_group then finds the addresses of killed processes under the names that it
# is about to write, and a process that is a little faster than the others connects to them: gloo ends with "connectFullMesh
# failed ... Connection refused", and the restart is lost. It depends on the order of things; the keys do not. Put
# what belongs to one start beneath a prefix of its own. TORCHELASTIC_RESTART_COUNT does not do on several machines, for
# each agent counts by itself (pytorch/pytorch, issue 135712).
#
# Seen (Python 3.11, x86-64 Linux; torchrun --standalone --nproc-per-node 2 --max-restarts 1, rank 1 killed once):
#   start 0: the store holds a key from before: False
#   start 1: the store holds a key from before: True
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0
cat >start.py <<'P'
import os
import signal
import time

import torch.distributed as dist

start = os.environ["TORCHELASTIC_RESTART_COUNT"]
store, rank, count = next(dist.rendezvous("env://"))
if rank == 0:
    left = store.check(["left by the start before"])
    print(f"start {start}: the store holds a key from before: {left}", flush=True)
    store.set("left by the start before", "")
dist.init_process_group("gloo", store=dist.PrefixStore(start, store), rank=rank, world_size=count)
dist.barrier()
if start == "0" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if start == "0":
    time.sleep(60)  # until torchrun ends it
P
env/bin/torchrun --standalone --nproc-per-node 2 --max-restarts 1 start.py 2>errors | tee said || { cat errors; exit 1; }
[ "$(cat said)" = "start 0: the store holds a key from before: False
start 1: the store holds a key from before: True" ] || { echo "it has changed"; exit 1; }
