# Each target makes what it needs: a .venv with the package in it, wheels only.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
# Tests mostly wait; a file's tests share a server, so they stay together.
JOBS ?= 3
SUITE := $(PYTEST) -m "not campaign" -n $(JOBS) --dist loadfile --no-loadscope-reorder
CODE := $(wildcard everbus/*.py) bus handlers gateway archiver compose tests docs/examples

.PHONY: demo docs pictures test cover lint format bench chaos materials audit clean

demo: $(READY)
	$(BIN)/everbus demo

test: $(READY)
	$(SUITE)

# The reference pages, from the code; tests/unit/test_reference.py compares them.
docs: $(READY)
	$(BIN)/python -m everbus.compose.reference docs/reference

# The pictures of docs/console.md; needs a Chromium.
pictures: $(READY)
	$(BIN)/python -m tests.console_pictures docs/console

# The same tests, twice as long, with what they reach; tests/README.md has the figure.
cover: $(READY)
	$(SUITE) --timeout 240 --cov --cov-fail-under=90

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

# The long campaigns: every fail point 20 times, real conversations where they are, and
# 100 episodes of random faults a topology, which take half an hour.
chaos: $(READY)
	$(PYTEST) -m campaign --timeout 1800
	$(BIN)/python -m tests.chaos.campaign --json campaign.json

# constraints.txt, the wheels that fit this machine now, and sbom.json, what .venv has;
# those of an image come from its build, see compose/Dockerfile.
materials: $(READY)
	$(PIP) install --quiet --only-binary :all: --no-build-isolation --dry-run \
		--ignore-installed --report - ".[server,otel]" \
		| $(BIN)/python compose/pinned_wheels.py > constraints.txt
	$(BIN)/python -m everbus.compose.bill_of_materials server otel > sbom.json

# Known vulnerabilities of those wheels; says so where pip-audit has no data. No part of
# `.ci/run`: what is published meanwhile must not fail a change that has nothing to do
# with it.
audit: materials
	$(BIN)/python .ci/audit.py constraints.txt

clean:
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --only-binary :all: --upgrade pip hatchling editables
	$(PIP) install --quiet --only-binary :all: --no-build-isolation --editable ".[test]"
	touch $(READY)
