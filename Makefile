# `make demo` and `make test` start from a fresh clone. PYTHON names the interpreter: make PYTHON=python3.12 test
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev

# PyTorch takes the folder above the nvcc in PATH, which may be a mere wrapper.
export CUDA_HOME ?= $(wildcard /usr/local/cuda)

# The stamps carry the Python version, so another PYTHON makes another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
READY := $(VENV)/.ready-$(VERSION)
STAMP := $(VENV)/.installed-$(VERSION)

# One line if this Python cannot serve, else empty.
TROUBLE = $(shell \
  case "$(VERSION)" in \
    (3.11|3.12|3.13) $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
      echo "$(PYTHON) has no venv or ensurepip: apt install python$(VERSION)-venv" ;; \
    ("") echo "$(PYTHON) does not run: install Python 3.11, 3.12 or 3.13 with venv (apt install python3 python3-venv)" \
      "or name one, as in make PYTHON=python3.12" ;; \
    (*) echo "$(PYTHON) is Python $(VERSION), irnet needs 3.11, 3.12 or 3.13: name one, as in make PYTHON=python3.12" ;; \
  esac)

.PHONY: help demo test lint fuzz sanitize cuda-build cuda-extension compat \
  compat-tests gpu-prepare gpu-pack gpu-check regress baseline bench measure report speed docs clean
help:
	@echo "make demo    write a small report of the program at work to runs/demo"
	@echo "make test    run the tests"
	@echo "make lint    ruff check, ruff format --check, mypy, clang-format"
	@echo "make docs    the API reference, from the docstrings, in build/docs"
	@echo "make fuzz    a thousand random cases of the operators, others on every run"
	@echo "make sanitize  the tests of the C++ kernels under the sanitizers of addresses and of undefined behaviour"
	@echo "make cuda-build  compile and link the extension with CUDA for all architectures; needs nvcc, but no GPU"
	@echo "make compat  the operators' tests with the oldest PyTorch promised and with that of a machine with an H100"
	@echo "make regress hold memory, launches, instructions and registers against benchmarks/baseline.json"
	@echo "make baseline  take what is measured here as the baseline, and show the change"
	@echo "make bench   measure everything on the CPU; write benchmarks/results, the report and the README's tables"
	@echo "make report  write the report and the README's tables from the records in benchmarks/results"
	@echo "make speed   time the operators and the model with pytest-benchmark, and keep the history in .benchmarks"
	@echo "make gpu-prepare  build the extension and fill a Triton cache for gpu-check, in build/gpu; needs nvcc, but no GPU"
	@echo "make gpu-check  the first minutes on a GPU: OUT=FOLDER CALL=1, then CALL=2; installs nothing"
	@echo "make clean   remove $(VENV) and all that was built; runs/ stays"
	@echo "All but gpu-check first make $(VENV) with the versions of constraints.txt. PYTHON=python3.12 chooses the interpreter."

demo: $(STAMP)
	$(BIN)/irnet demo --output-dir runs/demo

# WORKERS=1 where memory is short: a worker takes about 2 GB.
test: $(STAMP)
	$(BIN)/python -m pytest -n $(or $(WORKERS),2)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*.*)

docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

# Other cases on every run: the seed is printed. Triton's kernels are interpreted.
fuzz: $(STAMP)
	IRNET_FUZZ=$(or $(IRNET_FUZZ),1000) IRNET_FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m pytest -q $(FUZZER)
	TRITON_INTERPRET=1 IRNET_FUZZ=$(or $(IRNET_FUZZ),1000) IRNET_FUZZ_SEED=$(FUZZ_SEED) \
	  $(BIN)/python -m pytest -q $(FUZZER) -m triton

FUZZER := $(addprefix tests/kernels/test_,roi_fuzz.py graph_fuzz.py)
FUZZ_SEED := $(or $(IRNET_FUZZ_SEED),$(shell date +%s))

# Every instruction set of this processor. A finding ends the process; the log's last line is the scene in which it did.
# libstdc++ is loaded first because the sanitizer looks for what throws exceptions as it starts; leaks are Python's own.
SANITIZED := build/sanitize
sanitize: $(STAMP)
	rm -rf $(SANITIZED)/lib
	CXX=g++ IRNET_SANITIZE=1 IRNET_REQUIRE_EXT=1 $(BIN)/python setup.py -q build \
	  --build-base $(SANITIZED) --build-temp $(SANITIZED)/temp --build-lib $(SANITIZED)/lib
	for level in default $$(grep -ow -e avx2 -e avx512vl /proc/cpuinfo | sort -u | sed s/vl//); do \
	  ATEN_CPU_CAPABILITY=$$level IRNET_FUZZ=$(or $(IRNET_FUZZ),300) OMP_NUM_THREADS=2 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so.6)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(BIN)/python -m pytest -q -m cpp -o pythonpath="$(SANITIZED)/lib ." --capture=sys \
	    --log-file=$(SANITIZED)/scenes.log --log-file-level=INFO \
	    $(FUZZER) $(addprefix tests/kernels/test_,roi.py roi_cpp.py gru.py gru_cpp.py graph.py graph_cpp.py segment.py) \
	  || { tail -n 1 $(SANITIZED)/scenes.log; exit 1; }; \
	done

# With the PyTorch for CUDA that `make bench` has too; the extension in the tree stays as it is.
cuda-build:
	$(MAKE) VENV=.venv-peers CONSTRAINTS=constraints-peers.txt cuda-extension

cuda-extension: $(READY)
	rm -rf build/cuda/lib
	FORCE_CUDA=1 IRNET_REQUIRE_EXT=1 $(BIN)/python setup.py -q build \
	  --build-base build/cuda --build-temp build/cuda/temp --build-lib build/cuda/lib
	PYTHONPATH=build/cuda/lib $(BIN)/python -c "$$CUDA_CHECK"

define CUDA_CHECK
import torch
from irnet_kernels import extension
print(extension.native().__file__, extension.native_reason(), sep="\n")
names = [f"irnet::{name}{gradient}.cuda" for name in ("crop_resize", "paste_mean") for gradient in ("", "_backward")]
absent = [name for name in names if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")]
raise SystemExit(f"not registered: {', '.join(absent)}" if absent else print("registered:", *names))
endef
export CUDA_CHECK

# Python 3.12 is what the machine with the GPU has. Each environment is of its own and takes about 4 GB.
PYTHON312 ?= python3.12
CHECKED := numpy pytest pytest-xdist hypothesis Pillow PyYAML safetensors tqdm matplotlib

compat:
	$(MAKE) VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt PYTHON=$(PYTHON312) compat-tests
	$(MAKE) VENV=.venv-gpu CONSTRAINTS=constraints-gpu.txt PYTHON=$(PYTHON312) compat-tests

# In a copy of the sources, as the extension of the tree stays what it is; without the model and the harness, which the
# operators' tests do not need.
COMPAT = build/compat$(VENV)
compat-tests: $(READY)
	$(PIP) install -c $(CONSTRAINTS) $(CHECKED)
	rm -rf $(COMPAT) && mkdir -p $(COMPAT)
	git ls-files -z | xargs -0 cp --parents -t $(COMPAT)
	cd $(COMPAT) && FORCE_CUDA=0 IRNET_REQUIRE_EXT=1 $(abspath $(BIN))/python setup.py -q build_ext --inplace
	rm -rf $(COMPAT)/irnet $(COMPAT)/benchmarks
	cd $(COMPAT) && PYTHONPATH=$$PWD:$$PWD/kernels $(abspath $(BIN))/python -m pytest -q -n auto tests/kernels

gpu-prepare:
	$(MAKE) VENV=.venv-gpu CONSTRAINTS=constraints-gpu.txt PYTHON=$(PYTHON312) gpu-pack

gpu-pack: $(READY)
	$(PIP) install -c $(CONSTRAINTS) $(CHECKED)
	$(BIN)/python benchmarks/gpu_prepare.py pack

# The toys are test-only kernels: they prove on this machine that the gate catches what it is there for.
GATE = $(BIN)/irnet bench gate --cases tests/irnet_bench/toy/toy_cases.py

regress: $(STAMP)
	$(GATE)

baseline: $(STAMP)
	$(GATE) --update

RESULTS = benchmarks/results
REPORT = $(BIN)/irnet bench report $(RESULTS)/*.jsonl --html $(RESULTS)/report.html \
  --markdown $(RESULTS)/benchmarks.md --readme README.md

# torchvision and PyTorch Geometric need another PyTorch than the tests' (see constraints-peers.txt).
bench:
	FORCE_CUDA=0 $(MAKE) VENV=.venv-peers CONSTRAINTS=constraints-peers.txt EXTRAS=dev,peers measure

measure: $(STAMP)
	$(BIN)/irnet bench all --device cpu --output $(RESULTS)/cpu.jsonl
	$(BIN)/irnet bench training --filter full --sweep images=1,2,4,8 --device cpu --output $(RESULTS)/cpu.jsonl
	$(BIN)/irnet bench kernels --sweep regions=1,10,50,100,300 --mode step --seconds 0.2 --device cpu \
	  --without torch.compile --output $(RESULTS)/cpu.jsonl
	$(REPORT)

report: $(STAMP)
	$(REPORT)

speed: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/test_speed.py --benchmark-autosave --benchmark-compare \
	  --benchmark-columns=median,iqr,rounds --benchmark-warmup=off

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --out $(or $(OUT),runs/gpu-check) --call $(or $(CALL),1)

clean:
	rm -rf $(VENV) .venv-peers .venv-gpu .venv-oldest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	rm -f kernels/irnet_kernels/*.so
	find irnet kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, and no build isolation: the extension must be built against the torch that will run it.
$(READY): $(CONSTRAINTS)
	$(if $(TROUBLE),$(error $(TROUBLE)))
	@rm -f $(VENV)/.ready-* $(VENV)/.installed-*
	@$(BIN)/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || \
	  $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c $(CONSTRAINTS) torch pybind11 ninja setuptools
	@touch $@

$(STAMP): $(READY) pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(if $(TROUBLE),$(error $(TROUBLE)))
	@rm -f $(VENV)/.installed-*
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e ".[$(EXTRAS)]"
	@$(BIN)/python -c 'from irnet_kernels import extension; print("irnet: native extension:", extension.native_reason())'
	@mkdir -p build && echo $(abspath $(VENV)) >$(BUILT_FOR)
	@touch $@

# A tree holds one built extension: what another environment has built is built again.
BUILT_FOR := build/built-for
ifneq ($(shell cat $(BUILT_FOR) 2>/dev/null),$(abspath $(VENV)))
$(STAMP): FORCE
endif
FORCE:
