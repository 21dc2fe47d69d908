# Every target does all its set-up: a virtual environment in .venv, made once and again only when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
RUN ?= runs/demo

BIN := .venv/bin
# Threads that wait asleep: spinning ones starve the data loader on a machine of few cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test bench lint clean

demo: .venv/installed
	$(BIN)/weaktr-train demo --out $(RUN)
	$(BIN)/weaktr show $(RUN)
	@echo
	@echo "numbers:  $(RUN)/metrics.json"
	@echo "pictures: $(RUN)/pictures"

test: lint
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed-bench
	$(BIN)/python -m pytest -q tests/ops
	$(BIN)/python -m pytest bench --benchmark-json="$$($(BIN)/python bench/report.py --where)"
	$(BIN)/python bench/report.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache

.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	touch $@
