#!/bin/bash
# torch 2.13.0: in a custom autograd.Function ctx.needs_input_grad says what required a gradient in the forward pass, not what
# this backward pass is asked for, so that gradients of weights are computed and thrown away.
#
# torch.autograd.grad(loss, [x]) stops at x. PyTorch's own linear layer then skips the product that gives the gradient of its
# weight. The documented pattern for a custom operator, `if ctx.needs_input_grad[1]: grad_weight = ...`, does not skip it:
# saliency maps, gradient penalties and attacks pay for every weight of every custom operator, and a Function that keeps what
# it computed for a later node keeps it for nothing.
#
# Seen (matrix products of the backward pass):
#   F.linear, gradients of x and weight: 2
#   F.linear, gradient of x alone: 1
#   custom Function, gradients of x and weight: 2
#   custom Function, gradient of x alone: 2
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat >ask.py <<'P'
import torch
from torch.nn import functional as F


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_weight = grad.T @ x if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


x, weight = torch.randn(8, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
for name, linear in (("F.linear", F.linear), ("custom Function", Linear.apply)):
    for asked, inputs in (("gradients of x and weight", [x, weight]), ("gradient of x alone", [x])):
        loss = linear(x, weight).sum()
        with torch.profiler.profile() as profile:
            torch.autograd.grad(loss, inputs)
        print(f"{name}, {asked}: {sum(event.name == 'aten::mm' for event in profile.events())}")
P
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check torch==2.13.0 numpy==2.3.5
env/bin/python ask.py 2>/dev/null | tee seen
diff seen - <<'S' || { echo "it has changed"; exit 1; }
F.linear, gradients of x and weight: 2
F.linear, gradient of x alone: 1
custom Function, gradients of x and weight: 2
custom Function, gradient of x alone: 2
S
