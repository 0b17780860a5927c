# `make demo` and `make test` start from a fresh clone. PYTHON names the interpreter: make PYTHON=python3.12 test
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev

# The stamp carries the Python version, so another PYTHON makes another environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
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

.PHONY: help demo test lint regress baseline bench measure speed gpu-check clean
help:
	@echo "make demo    write a small report of the program at work to runs/demo"
	@echo "make test    run the tests"
	@echo "make lint    ruff check and ruff format --check"
	@echo "make regress hold memory, launches, instructions and registers against benchmarks/baseline.json"
	@echo "make baseline  take what is measured here as the baseline, and show the change"
	@echo "make bench   measure everything on the CPU; write benchmarks/results, the report and the README's tables"
	@echo "make speed   time the operators and the model with pytest-benchmark, and keep the history in .benchmarks"
	@echo "make gpu-check  build, tests, sanitizer, gate and benchmarks on a GPU; installs nothing"
	@echo "make clean   remove $(VENV) and all that was built; runs/ stays"
	@echo "All but gpu-check first make $(VENV) with the versions of constraints.txt. PYTHON=python3.12 chooses the interpreter."

demo: $(STAMP)
	$(BIN)/irnet demo --output-dir runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The toys are test-only kernels: they prove on this machine that the gate catches what it is there for.
GATE = $(BIN)/irnet bench gate --cases tests/bench/toy/toy_cases.py

regress: $(STAMP)
	$(GATE)

baseline: $(STAMP)
	$(GATE) --update

RESULTS = benchmarks/results
REPORT = $(BIN)/irnet bench report $(RESULTS)/*.jsonl --html $(RESULTS)/report.html \
  --markdown $(RESULTS)/benchmarks.md --readme README.md

# torchvision and PyTorch Geometric need another PyTorch than the tests' (see constraints-peers.txt).
bench:
	$(MAKE) VENV=.venv-peers CONSTRAINTS=constraints-peers.txt EXTRAS=dev,peers measure

measure: $(STAMP)
	$(BIN)/irnet bench all --device cpu --output $(RESULTS)/cpu.jsonl
	$(BIN)/irnet bench training --filter full --sweep images=1,2,4,8 --device cpu --output $(RESULTS)/cpu.jsonl
	$(BIN)/irnet bench kernels --sweep regions=1,10,50,100,300 --mode step --seconds 0.2 --device cpu \
	  --without torch.compile --output $(RESULTS)/cpu.jsonl
	$(REPORT)

speed: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks/test_speed.py --benchmark-autosave --benchmark-compare \
	  --benchmark-columns=median,iqr,rounds --benchmark-warmup=off

gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f kernels/irnet_kernels/*.so
	find irnet kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, and no build isolation: the extension must be built against the torch that will run it.
$(STAMP): $(CONSTRAINTS) pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(if $(TROUBLE),$(error $(TROUBLE)))
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || \
	  $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c $(CONSTRAINTS) torch pybind11 ninja setuptools
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e ".[$(EXTRAS)]"
	@$(BIN)/python -c 'from irnet_kernels import build_info; print("irnet: native extension:", build_info.native_reason())'
	@mkdir -p build && echo $(abspath $(VENV)) >$(BUILT_FOR)
	@touch $@

# A tree holds one built extension: what another environment has built is built again.
BUILT_FOR := build/built-for
ifneq ($(shell cat $(BUILT_FOR) 2>/dev/null),$(abspath $(VENV)))
$(STAMP): FORCE
endif
FORCE:
