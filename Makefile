# One word a job: make setup | demo | serve | quick | test | check | bench
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo serve quick test lint check bench clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt models/footage/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m models.footage
	touch $(READY)

demo: setup
	$(BIN)/gaitid demo

serve: setup
	$(BIN)/gaitid serve --host 127.0.0.1 --port 8000 --data-dir data

quick: setup  # what needs no server, child process or training run
	$(BIN)/python -m pytest -n 2 -m "not slow"

test: quick  # and then the others, one at a time: many measure time
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
