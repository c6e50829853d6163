# make demo | test | lint | test-all | bench: each sets up what it needs; no other step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-all bench lint format

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("CPython 3.11 or newer is needed, not " + sys.version.split()[0] + "; make PYTHON=... names another")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt ".[dev]"
	@rm -rf build nightloupe.egg-info
	@touch $@

demo: $(READY)
	$(BIN)/python -m jobs.demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# Everything, also what starts Ray clusters and servers; about three quarters of an hour on two cores.
test-all: $(READY)
	$(BIN)/python -m pytest -m "" --durations=15

# The tables of docs/benchmarks.md, on one thread; about ten minutes. make bench PARTS=coreset
bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt ".[bench]"
	@rm -rf build nightloupe.egg-info
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench $(PARTS)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
