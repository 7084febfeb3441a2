# Two commands do everything from a fresh clone: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

# Tests run in two processes, so each takes one thread unless told otherwise; numba would set torch's number too.
TEST_THREADS ?= 1
TEST_PROCESSES ?= 2

# What the long campaign runs.
CAMPAIGN := tests/campaign tests/models/test_kills.py tests/test_store_loops.py

# The newest versions of everything need Python 3.12 or newer and have an environment of their own.
PYTHON_NEWEST ?= python3.13
NEWEST ?= .venv-newest

export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test test-newest campaign lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/scgpt-tools demo

test test-newest campaign: export OMP_NUM_THREADS := $(TEST_THREADS)
test test-newest campaign: export NUMBA_NUM_THREADS := $(TEST_THREADS)
test test-newest campaign: export MPLBACKEND := agg
test: lint
	$(BIN)/python -m pytest -q -rs -n $(TEST_PROCESSES) --dist loadfile
	@$(MAKE) --no-print-directory docs

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest -q -rs -n $(TEST_PROCESSES) --dist loadfile

# Bad inputs, kills and full disks, all of them; `make test` has a sample.
campaign: export SCT_CAMPAIGN := long
campaign: export SCT_KILLS := 100
campaign: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal $(CAMPAIGN)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) $(NEWEST) docs/_build docs/api/generated

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Expected Python 3.11 or newer, found " + sys.version)'
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing scgpt-tools; torch is large, so the first time takes some minutes ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "Installing the tools that tests and documentation need ..."
	@$(PIP) install -c constraints.txt -e . --group test --group typecheck --group doc
	@touch $@

$(NEWEST)/.installed: pyproject.toml constraints-newest.txt
	@test -x $(NEWEST)/bin/python || $(PYTHON_NEWEST) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip -qq --no-input install -c constraints-newest.txt -e ".[pert]" --group test
	@touch $@
