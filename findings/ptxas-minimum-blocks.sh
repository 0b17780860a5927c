#!/bin/bash
# ptxas 12.8 (in triton 3.7.1), sm_90: __launch_bounds__(224, 3) caps a thread at 80 registers, not at 65536 / 672 = 97.
#
# A minimum of resident blocks is a promise about registers, and the usual arithmetic divides a multiprocessor's 65,536 by its
# threads. But a warp lives in one of four partitions of 16,384 registers. Three blocks of 7 warps are 21 warps, 6 on the
# fullest partition: 16384 / (6 x 32) = 85, in units of 8 that is 80, as for three blocks of 8 warps. A block whose warps
# times the minimum is no multiple of four gives registers away and may spill; nothing reports the reason.
#
# Seen (a kernel that keeps 150 values across a barrier):
#   192 threads, 3 blocks: 96 registers, by division 113
#   224 threads, 3 blocks: 80 registers, by division 97
#   256 threads, 3 blocks: 80 registers, by division 85
#   224 threads, 2 blocks: 128 registers, by division 146
#   256 threads, 2 blocks: 128 registers, by division 128
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check triton==3.7.1 setuptools==84.2.1
cat >registers.py <<'P'
import re
import subprocess
from pathlib import Path

import triton

PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
VALUES = 150
LOADS = "\n".join(f"ld.global.f32 %f{i}, [%rd1+{4 * i}];" for i in range(VALUES))
STORES = "\n".join(f"st.global.f32 [%rd1+{4 * (7 * i % VALUES)}], %f{i};" for i in range(VALUES))
PTX = f""".version 8.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 pointer) .maxntid THREADS .minnctapersm BLOCKS
{{
.reg .b64 %rd<2>;
.reg .f32 %f<{VALUES}>;
ld.param.u64 %rd1, [pointer];
{LOADS}
bar.sync 0;
{STORES}
ret;
}}
"""
for threads, blocks in ((192, 3), (224, 3), (256, 3), (224, 2), (256, 2)):
    Path("kernel.ptx").write_text(PTX.replace("THREADS", str(threads)).replace("BLOCKS", str(blocks)))
    command = [PTXAS, "-v", "-arch=sm_90", "-o", "kernel.cubin", "kernel.ptx"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = re.search(r"Used (\d+) registers", said)[1]
    print(f"{threads} threads, {blocks} blocks: {used} registers, by division {65536 // (threads * blocks)}")
P
env/bin/python registers.py | tee seen
diff seen - <<'S' || { echo "it has changed"; exit 1; }
192 threads, 3 blocks: 96 registers, by division 113
224 threads, 3 blocks: 80 registers, by division 97
256 threads, 3 blocks: 80 registers, by division 85
224 threads, 2 blocks: 128 registers, by division 146
256 threads, 2 blocks: 128 registers, by division 128
S
