# Everything runs in a virtual environment of the checkout's own, made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench clean

demo: $(VENV)/.base
	$(BIN)/titlecast demo

test: $(VENV)/.full
	$(BIN)/python -m pytest

lint: $(VENV)/.full
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.full
	$(BIN)/python -m tests.benchmarks.bench_rerank

clean:
	rm -rf $(VENV) build dist plugin/opensearch/target .pytest_cache .mypy_cache .ruff_cache

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

# What serving and the demo need; neither torch nor transformers.
$(VENV)/.base: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/.full: pyproject.toml $(VENV)/.venv
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	touch $(VENV)/.base $@
