# Each target does its own set-up: a virtual environment in .venv, nothing outside this tree.
#   make demo     the main job: prefill and decode split over two Ray actors
#   make test     the tests
#   make bench    what a push costs on this machine
#   make lint     format, types, imports, spelling
#   make stress   the long tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(wildcard native_ext/*.c native_ext/*.h native_ext/*.pyx)
SANITIZED := -g -O1 -fno-omit-frame-pointer

.PHONY: demo test bench lint stress test-native-c test-aarch64 clean

demo: $(VENV)/.core
	$(BIN)/kvfabric demo

bench: $(VENV)/.core
	$(BIN)/kvfabric bench

test: $(VENV)/.test
	$(BIN)/python -m pytest tests --ignore=tests/stress

stress: $(VENV)/.test
	$(BIN)/python -m pytest tests/stress

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/cython-lint native_ext/*.pyx
	$(BIN)/lint-imports
	$(BIN)/codespell

$(VENV)/bin/python:
	@echo "== creating $(VENV)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml setup.py $(NATIVE)
	@echo "== installing ray-kvfabric and building its native part (about a minute)"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "== installing what the tests need (torch and transformers among them: a few minutes)"
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
