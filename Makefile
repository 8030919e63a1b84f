# The project's commands; `make help` lists them. Everything is installed into .venv in this folder.

PYTHON ?= python3
PYTEST_ARGS ?=
SHELL := /bin/bash
BIN := .venv/bin
SOURCES := pyproject.toml setup.py constraints.txt
# with setuptools from constraints.txt in .venv no build environment is downloaded: a second install works offline
PIP := $(BIN)/python -m pip install -qq -c constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
export PIP_ROOT_USER_ACTION := ignore
# an activated environment or a PYTHONPATH of the shell must not leak in
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-quick lint format bench-cpu bench-gpu constraints clean

help: ## this list
	@echo "make TARGET    (PYTHON=python3.13 takes another Python for .venv; PYTEST_ARGS='-k kill' goes to pytest)"
	@awk -F ': .*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/installed-demo ## train on the embedded digits on 2 ranks (1 where there is one GPU), print balanced accuracy (the first time: installs 6.5 GB)
	@gpus=$$(nvidia-smi -L 2>/dev/null | grep -c '^GPU'); ranks=$$((gpus == 1 ? 1 : 2)); \
	$(BIN)/python -m hrdc_hpc.launch --cluster local --cfg digits_lt.yaml --name demo-$$(date +%Y%m%d-%H%M%S) --wait \
	  --gpus-per-node $$((gpus < 2 ? gpus : 2)) --ranks-per-node $$ranks

test: .venv/installed-test lint ## lint, types, import layers and all tests; SLURM tests where slurm-wlm and munge are installed
	@echo "== tests"
	@$(BIN)/python -m pytest --durations=15 --durations-min=1 $(PYTEST_ARGS)

test-quick: .venv/installed-test ## the tests that need neither SLURM nor minutes
	@$(BIN)/python -m pytest -m "not slow and not slurm" --durations=5 --durations-min=1 $(PYTEST_ARGS)

lint: .venv/installed-test ## ruff, mypy and the import layers
	@echo "== ruff check" && $(BIN)/ruff check
	@echo "== ruff format" && $(BIN)/ruff format --check
	@echo "== mypy" && $(BIN)/mypy
	@echo "== import layers" && $(BIN)/lint-imports --no-logo

format: .venv/installed-test ## let ruff format the code and mend what it can
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

BENCH_ARGS ?=

bench-cpu: .venv/installed-bench ## our step, run and loader beside timm's, torchvision's, pytorch/examples' and pure DALI: CPU, 9 minutes, writes records/
	@$(BIN)/python -m benchmarks.suite cpu $(BENCH_ARGS)

bench-gpu: ## the same on one NVIDIA GPU; installs nothing: $(PYTHON) must have torch and what the message names
	@PYTHONPATH=. $(PYTHON) -m benchmarks.suite gpu $(BENCH_ARGS)

constraints: .venv/bin/python ## write constraints.txt anew; needs python3.11 and python3.13 on the PATH, some minutes
	@$(BIN)/python .ci/constraints.py

clean: ## remove .venv and what the tools left; runs/ and data/ stay
	rm -rf .venv build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit(1)' 2>/dev/null || { \
	  echo "make: needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "make: name another one, for example: make demo PYTHON=python3.12" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/installed-demo: .venv/bin/python $(SOURCES)
	@echo "installing into .venv (6.5 GB and some minutes the first time: PyTorch with CUDA)"
	@$(PIP) setuptools wheel && $(PIP) --no-build-isolation -e '.[train,demo]'
	@touch $@

.venv/installed-test: .venv/bin/python $(SOURCES)
	@echo "installing into .venv, with what the tests need (6.5 GB and some minutes the first time: PyTorch with CUDA)"
	@$(PIP) setuptools wheel && $(PIP) --no-build-isolation -e '.[train,demo,report,test]'
	@touch .venv/installed-demo $@

.venv/installed-bench: .venv/installed-test
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@
