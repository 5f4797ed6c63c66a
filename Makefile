# Two commands: `make repro` runs the pipeline on the embedded data, `make test` runs the tests.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup repro test lint bench ui prefect

setup: $(BIN)/.installed

$(BIN)/.installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet 'uv==0.13.9'
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

repro: setup
	dvc repro
	python -m stages.report --summary

test: setup
	python -m pytest

lint: setup
	ruff check .
	ruff format --check .
	mypy

bench: setup
	python -m benchmarks

ui: setup
	python -m stages.tracking ui

prefect: setup
	prefect server start --host 127.0.0.1
