# Every target does all its set-up: a virtual environment in .venv that holds this package with its
# compiled extension, made once and again only when what it is made of changes.

PYTHON ?= python3
RUN ?= runs/demo
CASES ?= 20000
JOBS ?= 2

BIN := .venv/bin
CSRC := $(shell find csrc -type f)
CPP := $(shell find csrc $(wildcard tests/native) -name '*.[ch]pp' -o -name '*.cu*')
PINNED := -c constraints.txt --build-constraint constraints.txt
# Files in turn by their names: by their numbers of tests, the longest few would come last, alone.
BY_FILE := --dist loadfile --no-loadscope-reorder
# Threads that wait asleep: spinning ones starve the data loader on a machine of few cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test pytest test-all test-oldest bench fuzz lint clean

demo: .venv/installed
	$(BIN)/weaktr-train demo --out $(RUN)
	$(BIN)/weaktr show $(RUN)
	@echo
	@echo "numbers:  $(RUN)/metrics.json"
	@echo "pictures: $(RUN)/pictures"

# Where no compiler is found, everything but the tests makes do without the extension.
test: export WEAKTR_BUILD ?= require
test: export WEAKTR_TEST_REQUIRE ?= cpu,triton
test test-all: export OMP_NUM_THREADS ?= 1
test: .venv/installed
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

pytest: .venv/installed
	$(BIN)/python -m pytest -n $(JOBS) $(BY_FILE)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# Also the tests marked `rare`.
test-all: export WEAKTR_BUILD ?= require
test-all: export WEAKTR_TEST_REQUIRE ?= cpu,triton
test-all: lint .venv/installed-ray
	$(BIN)/python -m pytest -n $(JOBS) $(BY_FILE) -m ""

# With the oldest torch and Triton that are supported; takes its own environment, and is not part of CI.
test-oldest: export WEAKTR_TEST_REQUIRE ?= cpu,triton
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest -n $(JOBS) $(BY_FILE)

bench: .venv/installed-bench
	$(BIN)/python -m pytest -q tests/ops
	$(BIN)/python -m pytest bench --benchmark-json="$$($(BIN)/python bench/report.py --where)"
	$(BIN)/python bench/report.py

# Random calls of the C++ code under sanitizers, and damaged files for every reader.
fuzz: .venv/installed
	$(BIN)/python -m tests.native.fuzz.run --cases $(CASES)
	$(BIN)/python -m tests.fuzz.run --cases $(CASES)

clean:
	rm -rf .venv .venv-oldest build *.egg-info weaktr/_native*.so .pytest_cache .ruff_cache .mypy_cache

# $(call aloud,WORDS,COMMAND): run a command that is silent for minutes, with a line a minute.
aloud = @echo "$(1)"; (while sleep 60 >/dev/null 2>&1; do echo "  still at it, $$(date +%H:%M)"; done) & \
	clock=$$!; trap "kill $$clock" EXIT; $(2)

# setuptools warns of every editable installation that its folder comes first in imports.
.venv/installed: export PYTHONWARNINGS := ignore:Editable installation
.venv/installed: pyproject.toml setup.py constraints.txt CMakeLists.txt $(CSRC)
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade pip
	$(call aloud,Installing weaktr and what it needs into .venv (some minutes):,$(BIN)/python -m pip install --quiet --no-compile $(PINNED) -e '.[test]')
	@touch $@

.venv-oldest/installed: export PYTHONWARNINGS := ignore:Editable installation
.venv-oldest/installed: constraints-oldest.txt pyproject.toml setup.py CMakeLists.txt $(CSRC)
	@$(PYTHON) -m venv .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	$(call aloud,Installing weaktr with its oldest torch into .venv-oldest (some minutes):,.venv-oldest/bin/python -m pip install --quiet -c constraints-oldest.txt -e '.[test]')
	@touch $@

.venv/installed-ray: .venv/installed
	$(call aloud,Installing Ray:,$(BIN)/python -m pip install --quiet --no-compile $(PINNED) -e '.[ray]')
	@touch $@

.venv/installed-bench: .venv/installed
	$(call aloud,Installing what the benchmarks need:,$(BIN)/python -m pip install --quiet --no-compile $(PINNED) -e '.[bench]')
	@touch $@
