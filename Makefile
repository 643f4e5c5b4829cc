# Every target does its own set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint format benchmarks gpu-benchmarks clean

demo: $(STAMP)  ## the main job on the built-in data: pretrain, transfer, attack, one table
	$(BIN)/python -m benchmarks.gain --runs-dir demo-runs

benchmarks: $(STAMP)  ## how fast training is on this machine, one table
	$(BIN)/python -m benchmarks.training_speed

gpu-benchmarks: $(STAMP)  ## on a GPU, about an hour: training on natural images, its speed, what gives it
	$(BIN)/python -m benchmarks.step_profile --compile
	$(BIN)/cartl sweep benchmarks/natural.toml
	$(BIN)/cartl report natural --format markdown
	$(BIN)/python -m benchmarks.training_speed --curves
	$(BIN)/python -m benchmarks.training_switches

test: $(STAMP) lint  ## every check and test
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf .venv demo-runs .mypy_cache .ruff_cache .pytest_cache
