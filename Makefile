# One verb per need. Each makes what it needs first: a virtual environment in .venv, filled once and again only when
# pyproject.toml or constraints.txt change (the stamps remember). Use another interpreter with `make test PYTHON=...`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test check bench docs clean

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check -qq --constraint constraints.txt
JOBS := 2

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed-demo  ## train a small transformer on handwritten digits and look inside it
	$(BIN)/vitral demo

test: $(VENV)/.installed-dev  ## every test but the slow ones, on two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow"

check: $(VENV)/.installed-dev  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## measurements beside the peers, and the slow tests
	$(BIN)/python benchmarks/run.py
	$(BIN)/python -m pytest -m slow

docs: $(VENV)/.installed-dev  ## run every code block of README.md and docs/
	$(BIN)/python -m pytest tests/house/test_documents.py

clean:  ## remove the environment and everything that was generated
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A name on the PATH is not yet an interpreter that runs, so each candidate is asked for its version.
$(BIN)/python:
	@for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "Making $(VENV) with $$("$$candidate" --version) ($$candidate)."; \
	        exec "$$candidate" -m venv $(VENV); \
	    fi; \
	done; \
	echo "Vitral needs Python 3.11 or newer, and none was found on the PATH. Install one, or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# Two fillings of one environment: what the demo needs, and, on top of it, what a developer needs.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Vitral with what the demo needs (once) ..."
	@$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Vitral with what its tests need (once) ..."
	@$(PIP_INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-demo
