#!/bin/bash
# torch 2.13.0: torch.distributed.checkpoint.load executes what a checkpoint's file .metadata says.
#
# One would expect a reader of sharded checkpoints to be as careful as torch.load, which since 2.6 takes weights_only=True
# unless told otherwise, and with it executes nothing. torch.distributed.checkpoint's reader does so too for the tensors, but
# it reads .metadata, which holds their names and shapes, by pickle.load. So does dcp_to_torch_save, which is what one would
# call on a checkpoint from elsewhere to look at it. Whoever gives you a sharded checkpoint gives you a program. Take files
# whose readers execute nothing (safetensors), or checkpoints of your own alone.
#
# Seen (Python 3.11, x86-64 Linux; a checkpoint whose .metadata was replaced by a pickle that prints):
#   torch.load: refused
#   torch.distributed.checkpoint.load: executed
#   dcp_to_torch_save: executed
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5
cat >load.py <<'P'
import os
import pickle
import warnings

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

warnings.simplefilter("ignore")


class Program:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def told(name, read):
    try:
        read()
        refused = False
    except BaseException as error:  # CheckpointException is no Exception
        refused = "Weights only load failed" in str(error)
    ran = os.path.isdir("executed")
    if ran:
        os.rmdir("executed")
    print(f"{name}: {'executed' if ran else 'refused' if refused else 'neither'}")


dcp.save({"weight": torch.ones(2)}, checkpoint_id="checkpoint")
state = {"weight": torch.zeros(2)}
dcp.load(state, checkpoint_id="checkpoint")
assert state["weight"].tolist() == [1, 1]
with open("checkpoint/.metadata", "wb") as file:
    pickle.dump(Program(), file)
told("torch.load", lambda: torch.load("checkpoint/.metadata"))
told("torch.distributed.checkpoint.load", lambda: dcp.load(state, checkpoint_id="checkpoint"))
told("dcp_to_torch_save", lambda: dcp_to_torch_save("checkpoint", "whole.pt"))
P
env/bin/python load.py 2>errors | tee said || { cat errors; exit 1; }
[ "$(cat said)" = "torch.load: refused
torch.distributed.checkpoint.load: executed
dcp_to_torch_save: executed" ] || { echo "it has changed"; exit 1; }
