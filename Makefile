# Everything runs in a virtual environment of its own, made by whichever target comes first.
PYTHON ?= python3
VENV ?= .venv
OUT ?= reproduction
ARGS ?=
BIN = $(VENV)/bin
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

.PHONY: help install reproduce bench quick test promises mutants lint types dist clean

help:  ## Show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/installed  ## Virtual environment with the pinned requirements and the package

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vgjax needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

reproduce: install  ## Redo the documents' and papers' figures; ARGS='--full --manual-dir DIR', OUT=folder
	$(BIN)/python -m experiments --out $(OUT) $(ARGS)

bench: install  ## Measure what the instrument costs; ARGS='--repeats 5'
	$(BIN)/python -m experiments.benchmark $(ARGS)

quick: install  ## Run the heart of every module's tests, in less than two minutes; ARGS='-k name'
	$(PYTEST) tests -m 'not slow' --ignore tests/promises --ignore tests/experiments $(ARGS)

test: install  ## Run all tests and the docstrings' examples; ARGS='-k name'
	$(PYTEST) $(ARGS)

promises: install  ## Run the tests of what is promised: kills, machines, disk, damage, bad input, the browser
	$(PYTEST) tests/promises $(ARGS)

mutants: install  ## Change the arithmetic in some 340 places and count what the tests notice; an hour of one core
	$(BIN)/python -m pip install --quiet --editable '.[mutation]'
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

lint: install  ## Lint, format check, and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: install  ## Type check
	$(BIN)/mypy

dist: install  ## Build wheel and sdist into dist/ and check them
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:  ## Remove the virtual environment and caches; results stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
