# Two targets do everything on a fresh machine with Python >= 3.11: `make train` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
WORKDIR ?= runs/se
CONFIG ?= configs/digits.py:se
# tpu, gpu or cpu to insist on one; by default training takes the best there is.
PLATFORM ?=
# JAX for the accelerator that this machine shows; flaxattn.train.sharding.accelerator_in asks alike.
GPU := $(wildcard /dev/nvidia[0-9]*)
TPU := $(wildcard /dev/accel[0-9]*)$(if $(wildcard /dev/vfio/[0-9]*),$(shell grep -ls 0x1ae0 /sys/bus/pci/devices/*/vendor))
ACCELERATOR := $(if $(GPU),cuda12,$(if $(TPU),tpu))

.PHONY: train test test-all lint quick docs bench clean

train: .venv/train.stamp
	$(BIN)/python train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(PLATFORM:%=--platform=%)

# The type checker keeps one core busy for a minute, beside the tests' two.
test: .venv/test.stamp
	$(MAKE) --jobs=2 lint quick

quick: .venv/test.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-all: .venv/test.stamp lint
	$(BIN)/python -m pip install --quiet --editable ".[test,docs,tpu-check,cam-check]"
	$(BIN)/python -m pytest -n 2 --dist worksteal
	FLAXATTN_TEST_AS_USERS=1 $(BIN)/python -m pytest -n 2 tests/attention/test_parity.py

lint: .venv/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: .venv/test.stamp
	$(BIN)/python -m benchmarks

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flaxattn needs Python >= 3.11: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/train.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[train$(ACCELERATOR:%=,%)]"
	touch $@

.venv/docs.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[train,hub,docs]"
	touch $@

.venv/test.stamp: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:
	rm -rf .venv .cache runs reports build *.egg-info
