# Every target sets up what it needs: a virtual environment in .venv with rgplug installed from this folder.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint format docs bench clean
help:           ## this list
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/:.*##/ --/'

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,test,docs]'
	touch $(READY)

demo: $(READY)  ## train on 200 robots with RG-GAN attached, at most 8 minutes on two CPU cores; results in runs/demo
	$(BIN)/rgplug demo --out runs/demo

# two processes with one thread each: more threads than cores make small tensors ten times slower
test: $(READY)  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST)

lint: $(READY)  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy adapters/*.py

format: $(READY) ## ruff's format and safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## the documentation site, into site/
	$(BIN)/mkdocs build --strict

bench: $(READY) ## every figure of docs/performance.md, measured anew on this machine
	$(BIN)/python -m benchmarks

clean:          ## remove what the other targets made
	rm -rf $(VENV) build dist site *.egg-info runs
