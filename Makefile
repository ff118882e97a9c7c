# make demo | make test | make lint: each creates .venv with pinned versions when it is missing.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	  done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
TYPES := $(VENV)/types
TEST_JOBS ?= 2
PYTEST_ARGS ?=
DEMO_ARGS ?=

# Small tensors and two test processes: more threads per process only make them wait.
export OMP_NUM_THREADS ?= 2
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-comfy test lint format validate clean

help:
	@echo "make demo      clips of a small trained model, dense and sparse; table and pictures"
	@echo "make demo-comfy   the example workflow on ComfyUI's server, beside diffusers"
	@echo "make test      the test suite (TEST_JOBS=$(TEST_JOBS), PYTEST_ARGS=...)"
	@echo "make lint      ruff, mypy and the registry's validation"
	@echo "make format    rewrite the code in the house format"
	@echo "make venv      only create $(VENV)"
	@echo "make clean     remove caches and demo output, keep $(VENV)"

venv: $(STAMP)

# Two steps: the demo does not wait for the tools of tests and lint.
$(DEMO_STAMP): requirements/demo.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements/demo.txt
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(STAMP): requirements/dev.txt $(DEMO_STAMP)
	$(PIP) -r requirements/dev.txt
	@touch $@

demo: $(DEMO_STAMP)
	$(BIN)/python -m rectified_spaattn.benchmarks.clips $(DEMO_ARGS)

demo-comfy: $(DEMO_STAMP)
	$(BIN)/python -m rectified_spaattn.tests.integration.demo_comfy $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q -rs -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

# mypy takes the package name from the folder name, so it looks through a link of the right name.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(TYPES) && ln -sfn ../.. $(TYPES)/rectified_spaattn
	cd $(TYPES) && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
	  -p rectified_spaattn.rspa_core -p rectified_spaattn.nodes -p rectified_spaattn.benchmarks \
	  -p rectified_spaattn.adapters
	$(BIN)/comfy --skip-prompt --no-enable-telemetry node validate

format: $(STAMP)
	-$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo_output .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
