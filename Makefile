# Two commands do all the set-up on a fresh machine: `make serve` and `make test`.
# compressai and numpy 1 have wheels for 3.11 and 3.12 alone
PYTHON ?= $(or $(shell for python in python3 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$python && break; \
	done),python3)
VENV ?= .venv
BIN := $(VENV)/bin
# processes that share the tests out, file by file: each starts servers of its own and waits for them
WORKERS ?= 2
# as model/environment.py has it for `tcm`
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 1000

.PHONY: setup serve test lint format lock containers clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, not {v[0]}.{v[1]}: set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

serve: setup
	$(BIN)/tcm serve

test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# every version and hash that goes into the images; with UPGRADE=--upgrade the newest ones
lock: setup
	$(BIN)/python -m pip install --quiet 'uv>=0.8'
	$(BIN)/python docker/lock.py $(UPGRADE)

# the stack of docker-compose.yml in a real engine
containers: setup
	$(BIN)/python -m pytest tests/containers --containers -rs -s

clean:
	rm -rf $(VENV) build dist *.egg-info
