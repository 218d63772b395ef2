# make run: train the quickstart sweep.  make test: all tests.  Both do their own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: run test install install-dev check bench format clean

run: install
	$(BIN)/crucible run experiments/quickstart.toml

# Three processes on two cores: real parts are waited for half of the time.
test: install-dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[local]'
	touch $(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	$(PIP) -e '.[local,sdk,otel,dev]'
	touch $(INSTALLED_DEV)

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: install-dev
	$(BIN)/python -m benchmarks

format: install-dev
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist
