# Everything runs in a virtual environment of its own, made by whichever target comes first.
PYTHON ?= python3
VENV ?= .venv
OUT ?= reproduction
ARGS ?=
BIN = $(VENV)/bin

.PHONY: help install reproduce bench test mutants lint types clean

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

test: install  ## Run the tests; ARGS='-k name'
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

mutants: install  ## Change the arithmetic in some 340 places and count what the tests notice; an hour of one core
	$(BIN)/python -m pip install --quiet --editable '.[mutation]'
	$(BIN)/python tests/mutation/mutants.py $(ARGS)

lint: install  ## Lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Type check
	$(BIN)/mypy

clean:  ## Remove the virtual environment and caches; results stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
