# `make demo` and `make test` start from a fresh clone. PYTHON names the interpreter: make PYTHON=python3.12 test
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell test -x $(BIN)/python && echo $(BIN)/python || echo python3)
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input

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

.PHONY: help demo test lint clean
help:
	@echo "make demo    write a small report of the program at work to runs/demo"
	@echo "make test    run the tests"
	@echo "make lint    ruff check and ruff format --check"
	@echo "make clean   remove $(VENV) and all that was built; runs/ stays"
	@echo "Each first makes $(VENV) with the versions of constraints.txt. PYTHON=python3.12 chooses the interpreter."

demo: $(STAMP)
	$(BIN)/irnet demo --output-dir runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f kernels/irnet_kernels/*.so
	find irnet kernels tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first, and no build isolation: the extension must be built against the torch that will run it.
$(STAMP): constraints.txt pyproject.toml setup.py $(wildcard csrc/* csrc/*/*)
	$(if $(TROUBLE),$(error $(TROUBLE)))
	@rm -f $(VENV)/.installed-*
	@$(BIN)/python -c 'import pip, sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || \
	  $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt torch pybind11 ninja setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e ".[dev]"
	@$(BIN)/python -c 'from irnet_kernels import build_info; print("irnet: native extension:", build_info.native_reason())'
	@touch $@
