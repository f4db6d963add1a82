# Every target that needs .venv makes it first, and again when pyproject.toml or constraints.txt change.
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	"$$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$each" && break; done)
VENV := .venv
STAMP := $(VENV)/.installed
SOURCES := shared synth_service distiller tests examples benchmarks docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test chaos site wheel lowest fuzz fuzz-coverage attack lint types format clean

help:
	@echo "make demo    set up, then distil a network that reads digits without a digit"
	@echo "make test    set up, then run the tests"
	@echo "make chaos   ten minutes of real jobs while everything that can fail does; STORAGE=s3: on an object store that fails"
	@echo "make fuzz    thousands of generated requests against the real API"
	@echo "make attack  250 hostile inputs against a running service; one JSON object of what came of it"
	@echo "make fuzz-coverage   half an hour for each reader of strangers' data, guided by coverage (CPython 3.11 or 3.12)"
	@echo "make site    the documentation, built strictly into site/"
	@echo "make wheel   sdist and wheel, and the demo with the wheel in an empty folder"
	@echo "make lowest  the tests with the oldest versions that are allowed"
	@echo "make lint    ruff: rules and format; import contracts"
	@echo "make types   mypy --strict, tests included"
	@echo "make format  rewrite the sources in the project's format"
	@echo "make clean   remove .venv and everything that was generated"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it with: make PYTHON=/path/to/python"; exit 1; }
	@test -x $(VENV)/bin/python || echo "creating $(VENV) with $(PYTHON) ..."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@echo "installing the requirements; the first time takes some minutes ..."
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "$(VENV) is ready"

demo: $(STAMP)
	@$(VENV)/bin/dfkd demo

test: $(STAMP)
	@$(VENV)/bin/python -m pytest -q --numprocesses 2 --dist worksteal

chaos: $(STAMP)
	@$(VENV)/bin/python -m tests.chaos --json --storage $(or $(STORAGE),disk)

fuzz: $(STAMP)
	@$(VENV)/bin/python -m tests.fuzz

fuzz-coverage: $(STAMP)
	@$(VENV)/bin/python -m tests.fuzz.coverage

attack: $(STAMP)
	@$(VENV)/bin/python -m tests.attack

site: $(STAMP)
	@$(VENV)/bin/python -m mkdocs build --strict --quiet

wheel: $(STAMP)
	@$(VENV)/bin/python -m tests.packaging.wheel

lowest: $(STAMP)
	@$(VENV)/bin/python -m tests.packaging.lowest

lint: $(STAMP)
	@$(VENV)/bin/ruff check $(SOURCES)
	@$(VENV)/bin/ruff format --check $(SOURCES)
	@$(VENV)/bin/lint-imports --no-cache

types: $(STAMP)
	@$(VENV)/bin/mypy

format: $(STAMP)
	@$(VENV)/bin/ruff check --fix --quiet $(SOURCES)
	@$(VENV)/bin/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) dfkd-demo site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
