# make demo | make test | make lint: each creates .venv with pinned versions when it is missing.
# make comfyui: the ComfyUI versions that tests/integration drives.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	  done)
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of these packages' never are.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
TYPES := $(VENV)/types
# The lowest and the newest release of Triton, with which tests/kernels/test_compile.py compiles, too.
TRITON_RELEASES := 3.3.1 3.9.0
TRITON_STAMPS := $(TRITON_RELEASES:%=$(VENV)/triton-%/.installed)
# One more than the two cores of a small machine: some tests wait for a browser or another process.
TEST_JOBS ?= 3
PYTEST_ARGS ?=
DEMO_ARGS ?=

# Where ComfyUI comes from (URL or local repository, tag or full commit) and where it goes. The
# environment variables COMFYUI_DIR and COMFYUI_DIR_OLD name the folders to the tests as well.
COMFYUI_VERSIONS ?= current oldest
COMFYUI_SOURCE ?= https://github.com/comfyanonymous/ComfyUI
COMFYUI_SOURCE_OLD ?= $(COMFYUI_SOURCE)
COMFYUI_REF ?= v0.33.0
COMFYUI_REF_OLD ?= v0.8.0
COMFYUI_DIR ?= $(HOME)/comfy/ComfyUI
COMFYUI_DIR_OLD ?= $(HOME)/comfy/ComfyUI-0.8.0
# Further versions, as "v0.14.0 v0.22.0"; the tests take those whose folders COMFYUI_DIRS_MORE names.
COMFYUI_REFS_MORE ?=
# Index of torch builds without CUDA; empty: those of pip's own indexes.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Small tensors and several test processes: more threads per process only make them wait.
export OMP_NUM_THREADS ?= 2
# Where the shell forbids bytecode, each of the many programs that tests start compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo demo-comfy test test-all comfyui lint format validate clean

help:
	@echo "make demo      clips of a small trained model, dense and sparse; table and pictures"
	@echo "make demo-comfy   the example workflow on ComfyUI's server, beside diffusers"
	@echo "make test      the test suite (TEST_JOBS=$(TEST_JOBS), PYTEST_ARGS=...)"
	@echo "make test-all  the same, with every tile compiled for every architecture,"
	@echo "               also with Triton $(TRITON_RELEASES), which it installs beside"
	@echo "make comfyui   check out and install the ComfyUI versions of tests/integration"
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

# Beside the installed release, which stays as it is. Elsewhere than on Linux nothing is installed.
$(VENV)/triton-%/.installed: | $(STAMP)
	rm -rf $(@D)
	$(PIP) --no-deps --target $(@D) \
	  "triton==$*; platform_system == 'Linux' and platform_machine == 'x86_64'"
	@mkdir -p $(@D) && touch $@

demo: $(DEMO_STAMP)
	$(BIN)/python -m rectified_spaattn.benchmarks.clips $(DEMO_ARGS)

demo-comfy: $(DEMO_STAMP)
	$(BIN)/python -m rectified_spaattn.tests.integration.demo_comfy $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -q -rs -n $(TEST_JOBS) --dist worksteal $(PYTEST_ARGS)

test-all: $(TRITON_STAMPS)
	$(MAKE) test PYTEST_ARGS="--all-tiles $(PYTEST_ARGS)"

comfyui:
	$(PYTHON) tools/setup_comfyui.py --versions $(COMFYUI_VERSIONS) --torch-index "$(TORCH_INDEX)" \
	  --current-folder "$(COMFYUI_DIR)" --oldest-folder "$(COMFYUI_DIR_OLD)" \
	  --current-source "$(COMFYUI_SOURCE)" --oldest-source "$(COMFYUI_SOURCE_OLD)" \
	  --current-ref "$(COMFYUI_REF)" --oldest-ref "$(COMFYUI_REF_OLD)" \
	  $(foreach ref,$(COMFYUI_REFS_MORE),--more "$(HOME)/comfy/ComfyUI-$(ref:v%=%)" "$(ref)")

# mypy takes the package name from the folder name, so it looks through a link of the right name.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(TYPES) && ln -sfn ../.. $(TYPES)/rectified_spaattn
	cd $(TYPES) && ../bin/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
	  -p rectified_spaattn.rspa_core -p rectified_spaattn.nodes -p rectified_spaattn.benchmarks \
	  -p rectified_spaattn.adapters -p rectified_spaattn.kernels -p rectified_spaattn.tools
	$(BIN)/comfy --skip-prompt --no-enable-telemetry node validate

format: $(STAMP)
	-$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo_output .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
