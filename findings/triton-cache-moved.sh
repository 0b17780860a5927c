#!/bin/bash
# triton 3.7.1: a compile cache that is copied or mounted under another path is taken for empty, without a word.
#
# One would expect a folder of content-addressed files (its names are hashes) to be valid wherever it lies, as ccache's is:
# filled in a container image, mounted in a job. But each entry's __grp__*.json lists absolute paths, and an entry whose
# files "are not there" is compiled again. TRITON_CACHE_DIR must be the same absolute path where a cache is filled and used.
#
# Seen (Python 3.11, x86-64 Linux, no GPU: triton.compile for sm_90):
#   same folder:  0 of 5 compiled files written again
#   copied:       5 of 5 compiled files written again
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q --disable-pip-version-check triton==3.7.1 setuptools==84.2.1
cat >kernel.py <<'P'
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def double(x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, 2 * tl.load(x + i, mask=i < n), mask=i < n)


source = ASTSource(double, {"x": "*fp32", "n": "i32", "BLOCK": "constexpr"}, {"BLOCK": 128})
triton.compile(source, target=GPUTarget("cuda", 90, 32))
P
compiled() { find "$1" -type f \( -name '*.ttir' -o -name '*.ttgir' -o -name '*.llir' -o -name '*.ptx' -o -name '*.cubin' \) "${@:2}" | wc -l; }
again() { # FOLDER: how many compiled files a run writes again
    touch -d '1 hour ago' $(find "$1" -type f); touch mark
    TRITON_CACHE_DIR=$1 env/bin/python kernel.py
    compiled "$1" -newer mark
}
TRITON_CACHE_DIR=$work/first env/bin/python kernel.py
cp -r first second; mv first away
total=$(compiled away)
moved=$(again "$work/second")
mv away first
same=$(again "$work/first")
echo "same folder:  $same of $total compiled files written again"
echo "copied:       $moved of $total compiled files written again"
[ "$same/$moved/$total" = 0/5/5 ] || { echo "it has changed"; exit 1; }
