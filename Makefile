# make demo   the main job on the bundled world, into out/demo/
# make test   linter, type checker, tests
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test lint bench docs clean

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

# One thread a process: tests are small, and threads of several processes would starve one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/synthesis.py
	$(BIN)/python benchmarks/gaussians.py
	$(BIN)/python benchmarks/identities.py
	$(BIN)/python benchmarks/rare_groups.py
	$(BIN)/python benchmarks/unseen_groups.py
	$(BIN)/python benchmarks/divergence.py
	$(BIN)/python benchmarks/stream.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/faults.py

# Runs every Python example in README.md and docs/.
docs: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_docs.py

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("fairface_synth needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv out
