#!/bin/bash
# torch 2.11.0: torch.compile(fullgraph=True) refuses torch.amp.is_autocast_available, though it traces its neighbours.
#
# An operator that casts as autocast says must ask whether its device type knows autocast at all: is_autocast_enabled("meta")
# raises. The documented question is torch.amp.is_autocast_available(device_type). Dynamo folds is_autocast_enabled and
# get_autocast_dtype into constants and guards on them, but of this one, a function of a string alone, it says
# "Attempted to call function marked as skipped". torch 2.13.0 traces it.
#
# Seen:
#   torch 2.11.0 is_autocast_enabled: traced
#   torch 2.11.0 is_autocast_available: Unsupported
#   torch 2.13.0 is_autocast_enabled: traced
#   torch 2.13.0 is_autocast_available: traced
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
cat >ask.py <<'P'
import warnings

import torch

warnings.simplefilter("ignore")
version = torch.__version__.partition("+")[0]
for ask in (torch.is_autocast_enabled, torch.amp.is_autocast_available):

    def double(x, ask=ask):
        return 2 * x if ask(x.device.type) else x + x

    try:
        torch.compile(double, fullgraph=True, backend="eager")(torch.ones(3))
        found = "traced"
    except torch._dynamo.exc.Unsupported:
        found = "Unsupported"
    print(f"torch {version} {ask.__name__.lstrip('_')}: {found}")
P
for version in 2.11.0 2.13.0; do
    "${PYTHON:-python3}" -m venv env-$version
    env-$version/bin/pip install -q --disable-pip-version-check torch==$version numpy==2.3.5 setuptools==81.0.0
    env-$version/bin/python ask.py 2>/dev/null
done | tee seen
diff seen - <<'S' || { echo "it has changed"; exit 1; }
torch 2.11.0 is_autocast_enabled: traced
torch 2.11.0 is_autocast_available: Unsupported
torch 2.13.0 is_autocast_enabled: traced
torch 2.13.0 is_autocast_available: traced
S
