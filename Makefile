# make demo: shows the main job. make test: runs every test but the long soak. Both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin
CONTRACT ?= tests/contract tests/integration/test_migrate.py
# Several at once, each with a virtual host of its own, in a RabbitMQ that the tests start; one after the other in somebody else's.
PROCESSES := $(if $(AMQP_URL),0,5)
PYTEST = pytest -n $(PROCESSES)
TESTS = tests/unit tests/contract tests/integration tests/web tests/faults
LONG = tests/unit/test_durable.py tests/contract/test_cuts.py tests/faults/test_durable.py tests/faults/test_schedules.py
MINUTES ?= 30
SEED ?= 1
# Lint beside the second virtual environment.
MAKEFLAGS += --jobs=2 --output-sync=target --no-print-directory

.PHONY: demo test coverage lint unit contract matrix bench screenshots soak clean

demo: .venv/core
	@$(BIN)/python tools/demo.py

test: .venv/dev .venv-bench/done lint
	$(BIN)/$(PYTEST) $(TESTS)

# What of the code the tests have run, in half as much time again.
coverage: .venv/dev .venv-bench/done
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PYTEST) $(TESTS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report --skip-empty

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml broker
	@tools/audit $(BIN)

unit: .venv/dev
	$(BIN)/pytest tests/unit

contract: .venv/dev
	$(BIN)/$(PYTEST) $(CONTRACT)

# On every Python that ackback is for and that is here; ONLY=--newest: on the newest.
matrix:
	@$(PYTHON) tools/matrix.py $(ONLY)

soak: .venv/dev .venv-bench/done
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) --seed $(SEED)
	ACKBACK_EXAMPLES=10000 ACKBACK_RUNS=500 ACKBACK_KILLS=30 $(BIN)/pytest -rP $(LONG)

# The pictures of the page in docs/images.
screenshots: .venv/dev
	$(BIN)/python tools/screenshots.py

bench: .venv-bench/done
	.venv-bench/bin/python bench/invocations.py

.venv/core: pyproject.toml constraints.txt
	@tools/venv $(PYTHON) .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev: pyproject.toml constraints.txt
	@tools/venv $(PYTHON) .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/core

# What the benchmark compares with, kept apart from the package.
.venv-bench/done: pyproject.toml constraints.txt bench/requirements.txt bench/constraints.txt | .venv/dev
	@tools/venv $(PYTHON) .venv-bench
	@.venv-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c bench/constraints.txt -e '.[dev]' -r bench/requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-* build *.egg-info .coverage .mypy_cache .ruff_cache .pytest_cache
