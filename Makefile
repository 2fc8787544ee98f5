# Each target does all of its own set-up; a machine needs only Python (3.10 or newer) and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# One thread for each of the two test processes: on a small machine more only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

OLDEST := .venv-oldest/bin

.PHONY: help demo dashboard test test-oldest test-strangers screenshots pages docs dist ward repair lint bench clean

help:
	@echo "make demo       train a deep sigmoid and two deep ReLU networks side by side and read what GradWatch says"
	@echo "make dashboard  open TensorBoard on what the demo wrote"
	@echo "make test       run the tests"
	@echo "make test-oldest  run the tests with the oldest versions that pyproject.toml admits, in a place of their own"
	@echo "make test-strangers  train libraries of others with GradWatch added (once 3 GB, then 5 minutes)"
	@echo "make screenshots  train for a few minutes and take the pictures of docs/pictures/ in chromium"
	@echo "make pages      train small sick networks, run the gallery, and put their logs and pictures into docs/"
	@echo "make docs       build the site of docs/ into site/; fails at a broken link"
	@echo "make dist       build the wheel and the sdist into dist/ and check what an index would show"
	@echo "make ward       train the whole ward with five seeds, and write docs/ward.md (about an hour on two cores; goes on"
	@echo "                where it was stopped; without runs/ward.jsonl it begins anew)"
	@echo "make repair     try the advice on the ward's sick runs, beside the usual advice, and write docs/repair.md (hours on"
	@echo "                two cores; goes on where it was stopped; without runs/repair.jsonl it begins anew)"
	@echo "make bench      time what watching costs, beside the floor and what people use instead, and write docs/performance.md"
	@echo "make lint       run ruff, mypy and the import contracts"
	@echo "make clean      remove what the others have made: environments, runs (the ward's, too), builds and caches"

demo: .venv/.examples
	$(BIN)/python examples/sigmoid_vs_relu.py

dashboard: .venv/.examples
	$(BIN)/tensorboard --logdir runs/sigmoid_vs_relu

test: .venv/.dev
	$(PYTEST) --numprocesses 2 --dist worksteal --cov --cov-report term

# Without what looks at the code itself, through a browser or at libraries of others, and needs the newest for that.
test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest --numprocesses 2 --ignore tests/test_package.py \
		--ignore tests/test_alternatives.py --ignore tests/test_typed.py --ignore tests/test_wheel.py --ignore tests/pages --ignore-glob "*/test_browser_*.py"

test-strangers: .venv-strangers/.installed
	OMP_NUM_THREADS=1 .venv-strangers/bin/python -m pytest tests/strangers --numprocesses 2 --dist loadfile --durations 5

screenshots: .venv/.dev
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m viewer.screenshots

pages: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pages

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

dist: .venv-dist/.installed
	rm -rf dist
	.venv-dist/bin/python -m hatchling build
	.venv-dist/bin/python -m twine check --strict dist/*

ward: .venv/.examples
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ward --seeds 5 --out runs/ward.jsonl --table docs/ward.md

repair: .venv/.examples
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ward.repair --seeds 5 --out runs/repair.jsonl --table docs/repair.md

bench: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overhead --table docs/performance.md

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-oldest .venv-strangers .venv-dist build dist site *.egg-info runs lightning_logs \
		.hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage .coverage.* htmlcov

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

.venv/.docs: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing (once; a few minutes, mostly torch) ..."
	$(PIP) --editable ".[docs]"
	@touch $@

.venv-dist/.installed: constraints.txt
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatchling twine
	@touch $@

.venv-oldest/.installed: tests/oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet --disable-pip-version-check --requirement tests/oldest.txt --editable .
	@touch $@

.venv-strangers/.installed: tests/strangers/requirements.txt pyproject.toml
	@echo "Installing (once; 5 to 15 minutes and 3 GB: the libraries of others) ..."
	$(PYTHON) -m venv .venv-strangers
	.venv-strangers/bin/python -m pip install --quiet --disable-pip-version-check \
		--requirement tests/strangers/requirements.txt --editable .
	@touch $@
