# Each target makes what it needs: a .venv with the package in it, wheels only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
# Tests mostly wait; a file's tests share a server, so they stay together.
JOBS ?= 2
CODE := bus handlers gateway archiver compose tests

.PHONY: demo test lint format bench chaos clean

demo: $(READY)
	$(BIN)/everbus demo

test: $(READY)
	$(PYTEST) -m "not campaign" -n $(JOBS) --dist loadfile --cov --cov-fail-under=90

lint: $(READY)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

# Today's ratios next to the committed ones, in less than five minutes.
bench: $(READY)
	$(BIN)/python -m tests.bench.regress

# The long campaigns: every fail point 20 times, real conversations where they are.
chaos: $(READY)
	$(PYTEST) -m campaign --timeout 1800

clean:
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --only-binary :all: --upgrade pip hatchling editables
	$(PIP) install --quiet --only-binary :all: --no-build-isolation --editable ".[test]"
	touch $(READY)
