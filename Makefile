# make install into .venv, what running the pipeline needs
# make repro   install, run the pipeline on params.yaml, print the table of results
# make speed   seconds and memory of all checkpoints on this machine: metrics/speed, which git ignores
# make bench   the quick set of benchmarks and whether their claims hold on this machine (ten minutes)
# make compare the paper's methods on equal terms, three seeds (about two hours): benchmarks/results/compare.md
# make test-older  stock checkpoints in transformers 4.57, in a venv of its own
# make test    install, then lint, types and tests (FAST=1 leaves out the tests marked slow)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SELECT := $(if $(FAST),-m "not slow")

# dvc runs stages through the shell: they must find this Python.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: install repro speed bench compare test test-older

install: .venv/.installed

# Methods do not depend on each other. Models that run on one thread are small: two methods have room at a time.
JOBS ?= $(shell grep -qE '^threads: 1( |$$)' params.yaml && echo 2 || echo 1)

repro: install
	dvc repro collect
	dvc stage list --name-only | sed -n 's/.*@//p' | sort -u | xargs -P $(JOBS) -I METHOD sh -c \
	    'dvc --wait-for-lock repro --single-item $$(dvc stage list --name-only | grep "@METHOD$$")'
	dvc repro
	@cat report/table.md

# A process each: peak memory is that of a process.
speed: install
	for checkpoint in artifacts/finetune artifacts/merge/* artifacts/compress/*; do \
	    python -m stages.speed --checkpoint $$checkpoint \
	        --output metrics/speed/$$(echo $$checkpoint | sed 's|artifacts/||; s|/|-|').json || exit; \
	done
	dvc metrics show metrics/speed/*.json

bench: install
	python -m benchmarks.bench

compare: install
	python -m benchmarks.compare

test: .venv/.installed-test
	ruff check .
	ruff format --check .
	mypy
	pytest -n 2 --dist loadfile $(SELECT)

test-older: .venv/.installed-test
	test -x .venv-4.57/bin/python || $(PYTHON) -m venv .venv-4.57
	.venv-4.57/bin/python -m pip install --quiet torch==2.13.0 transformers==4.57.6
	pytest tests/exporting/test_older_transformers.py

# The stamps make a second run install nothing while pyproject.toml and constraints.txt stay as they are.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) -e '.[test]'
	touch $@
