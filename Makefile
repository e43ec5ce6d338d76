# make demo: set up, diagnose the small model that comes with the package, show where error hurts.
# make test: set up, check, run the tests.   make test-all: the slow ones too.
# make docs: the documentation site, build/docs/index.html.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes share the cores in the tests; more threads than cores would slow both down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

.PHONY: demo test test-all lint docs setup clean

demo: $(READY)
	$(BIN)/noisescope demo

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST) -m "slow or not slow"

lint: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

setup: $(READY)

$(READY): requirements.lock requirements-engines.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, this is $$($(PYTHON) -V); name another: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --upgrade --target $(VENV)/engines -r requirements-engines.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
