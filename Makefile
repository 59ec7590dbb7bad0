# `make demo` and `make test` set a fresh Debian machine up by themselves (as root) and then do what their name says.
# Everything they install is in .ci/setup; a second `make setup` does nothing.

PYTHON ?= /usr/bin/python3
VENV := .venv/bin
PYTEST := $(VENV)/pytest -q

.PHONY: setup demo test test-unit test-all lint format bench clean

setup:
	@PYTHON=$(PYTHON) .ci/setup

demo: setup
	@$(VENV)/python -m tests.lab.demo

# Unit, golden and contract tests side by side first: they fail in seconds. Then what boots guests.
test: setup
	$(PYTEST) -n 2 tests/lint tests/unit tests/golden tests/contract
	$(PYTEST) -n 2 --dist loadgroup tests/integration tests/e2e tests/budget -m "not slow"

test-unit:
	$(PYTEST) -n 2 tests/unit tests/golden

test-all: setup
	$(PYTEST) tests

lint:
	$(PYTEST) -n 2 tests/lint

format:
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

bench: setup
	@$(VENV)/python -m tests.lab.bench

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
