# make demo | test | lint | test-cluster | test-all | bench: each sets up what it needs; no other step.
# make test PYTHON=python3.13: with an environment of its own, .venv-python3.13
PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-cluster test-all bench lint format

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# What starts Ray clusters and servers, without the campaigns.
test-cluster: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(ray or slow) and not alone and not campaign" \
		--durations=15
	$(BIN)/python -m pytest -m "alone and not campaign" --durations=15

# Everything, also the campaigns; more than an hour on two cores.
test-all: $(READY)
	$(BIN)/python -m pytest -m "" --durations=15

# The tables of docs/benchmarks.md, on one thread; about twenty minutes. make bench PARTS=coreset
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
