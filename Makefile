# make demo    set up, label the sample photos, draw the masks
# make test    set up, run the tests
# make check   what CI runs: format, lint, types, import contracts, tests
# make wheel   build the wheel, install it in an empty environment, label a photo with it
# make chaos   kill jobs at 300 random moments, here and on Ray, then compare their rows with undisturbed runs'
# make parity  the masks against the reference generator's: all goldens, or live on PHOTOS=DIR
# make docs    docs/cli.md and docs/config.md from the code
# make bench   speed, memory and masks against the reference and against transformers; ARGS='--rows memory'
#              bench-library: the model alone; bench-photos: 20 free photos; bench-tables: the pages' tables;
#              bench-scale: plans of millions; bench-ray: what Ray costs
# make test-gpu    what only a GPU can show, with PYTHON=python3, which has PyTorch for it; bench-gpu: its speed
#              gpu-wheels: gather in .gpu what a machine with a GPU and without a network lacks

PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
BIN := .venv/bin

.PHONY: demo docs test test-all wheel chaos check lint format parity bench bench-library bench-photos bench-scale \
  bench-ray bench-tables gpu-wheels test-gpu bench-gpu constraints clean

demo: .venv/.runs
	$(BIN)/sam-amg run tests/photos --out demo --config configs/mobile-cpu.yaml
	$(BIN)/sam-amg show demo
	@echo
	@echo "Open demo/review/index.html to see the masks; demo/data/*.parquet holds them."

test: .venv/.tests
	$(BIN)/pytest

test-all: .venv/.tests
	$(BIN)/pytest -m "not gpu"

wheel: .venv/.tests
	$(BIN)/pytest -m wheel tests/test_wheel.py

chaos: .venv/.tests
	$(BIN)/python -m tests.chaos --kills 100
	$(BIN)/python -m tests.chaos --ray --kills 200 --images 3000

check: lint test wheel

lint: .venv/.tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m docs.generate --check

format: .venv/.tests
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: .venv/.tests
	$(BIN)/python -m docs.generate

parity: .venv/.tests
ifdef PHOTOS
	$(BIN)/python -m tests.parity --photos "$(PHOTOS)" $(ARGS)
else
	$(BIN)/pytest -m "parity_full or not parity_full" tests/test_parity.py $(ARGS)
endif

bench: .venv/.tests
	$(BIN)/python -m tests.bench $(ARGS)

bench-library: .venv/.tests
	$(BIN)/python -m tests.bench.library $(ARGS)

bench-photos: .venv/.tests
	$(BIN)/python -m tests.bench.photos "$(or $(PHOTOS),.cache/photos)"

bench-scale: .venv/.tests
	$(BIN)/python -m tests.bench.scale $(ARGS)

bench-ray: .venv/.tests
	$(BIN)/python -m tests.bench.on_ray $(ARGS)

bench-tables: .venv/.tests
	$(BIN)/python -m tests.bench.tables

gpu-wheels:
	$(PYTHON) -m tests.gpu.carry $(ARGS)

test-gpu:
	$(PYTHON) -m tests.gpu test $(ARGS)

bench-gpu:
	$(PYTHON) -m tests.gpu bench $(ARGS)

constraints: $(UV)
	$(UV) pip compile -q --no-emit-index-url --universal --python-version 3.11 --upgrade \
	  --group check --group peers pyproject.toml -o tests/constraints.txt

clean:
	rm -rf .venv .uv .gpu demo dist .pytest_cache .ruff_cache

.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install -q uv

.venv/bin/python: | $(UV)
	$(UV) venv -q --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .venv

.venv/.runs: pyproject.toml tests/constraints.txt | .venv/bin/python
	$(UV) pip install -q --python .venv -c tests/constraints.txt -e .
	touch $@

.venv/.tests: pyproject.toml tests/constraints.txt | .venv/bin/python
	$(UV) pip install -q --python .venv -c tests/constraints.txt -e . --group check --group peers
	touch $@ .venv/.runs
