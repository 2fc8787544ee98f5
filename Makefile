# Each target does all of its own set-up; a machine needs only Python (3.10 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread for each of the two test processes: on a small machine more only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: help demo dashboard test lint clean

help:
	@echo "make demo       train a deep sigmoid and two deep ReLU networks side by side and read what GradWatch says"
	@echo "make dashboard  open TensorBoard on what the demo wrote"
	@echo "make test       run the tests"
	@echo "make lint       run ruff, mypy and the import contracts"

demo: .venv/.examples
	$(BIN)/python examples/sigmoid_vs_relu.py

dashboard: .venv/.examples
	$(BIN)/tensorboard --logdir runs/sigmoid_vs_relu

test: .venv/.dev
	$(PYTEST) --numprocesses 2 --cov --cov-report term

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist *.egg-info runs lightning_logs

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.examples: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing (once; a few minutes, mostly torch) ..."
	$(PIP) --editable ".[examples]"
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing (once; a few minutes, mostly torch) ..."
	$(PIP) --editable ".[examples,dev]"
	@touch $@
