# Two commands set qhdm up: `make quickstart` and `make test`.
# `make speedrun DATA=EuroSAT_RGB.zip` trains to good images and says how long it took.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: quickstart speedrun test test-slow test-lowest check docs clean

GRID := runs/quickstart-eurosat.png

quickstart: $(VENV)/installed ## install, sample the shipped model, train on the bundled patches
	$(BIN)/qhdm sample eurosat --num 4 --grid $(GRID)
	$(BIN)/qhdm train configs/quickstart.yaml
	@echo "samples of the shipped model: $(GRID)"

DATA ?= eurosat

speedrun: $(VENV)/installed ## train configs/eurosat.yaml to good images, on one core
	$(BIN)/python benchmarks/speedrun.py --data $(DATA)

# One process per core, one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/installed-dev ## the tests, but for the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-dev ## kills, faults, clusters, hardware services, the commands of all pages
	$(PYTEST) -m slow

LOWEST := .venv-lowest
test-lowest: ## the tests with the oldest versions of all packages that setup.py allows
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip --disable-pip-version-check --quiet install -c constraints.txt uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct $(UV_OPTIONS) -e '.[dev]'
	@# What SciPy imports depends on its version.
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow" \
		-k "not training_and_sampling_import"

check: $(VENV)/installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed-docs ## the site in docs/_build/html, with its tutorials executed
	PATH="$(abspath $(BIN)):$$PATH" sphinx-build -W --keep-going --quiet -j auto docs docs/_build/html

$(VENV)/installed: setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qhdm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

clean: ## remove the environment and caches; run directories stay
	rm -rf $(VENV) $(LOWEST) docs/_build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
