# One set-up for everything: a virtual environment under exact versions, made again when they change.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# Tests and figures run side by side, each on one thread.
JOBS ?= 2
FIGURES = $(patsubst experiments/%.py,experiments.%,$(sort $(wildcard experiments/fig*.py experiments/beyond_*.py)))

.PHONY: run test test-all fuzz lint format bench figures figures-smoke docs docs-figures report-check dist clean

run: $(READY) ## the main job: orbit drift of SGD and its SDE on the diabetes data
	$(BIN)/sdebias run experiments/diabetes.toml --overwrite

test: $(READY) ## the tests, without the slow ones
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow"

test-all: $(READY) ## all tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

fuzz: $(READY) ## 2,000 mutated configurations and 500 mutated files
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python tests/fuzz/campaign.py

lint: $(READY) ## formatting, lint, types, import layers, citation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/cffconvert --validate -i CITATION.cff

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## the numbers of benchmarks/RESULTS.md, against peers that it installs
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python -m benchmarks

figures: $(READY) ## the figures of the paper and beyond at full size, and experiments/RESULTS.md; minutes
	printf '%s\n' $(FIGURES) | OMP_NUM_THREADS=1 xargs -P $(JOBS) -I NAME $(BIN)/python -m NAME all --scale paper
	$(BIN)/python -m experiments.results

figures-smoke: $(READY) ## the same at a size that takes seconds each, in results/figures/smoke
	printf '%s\n' $(FIGURES) | OMP_NUM_THREADS=1 xargs -P $(JOBS) -I NAME $(BIN)/python -m NAME all --scale smoke

docs: $(READY) ## the documentation as a site, results/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-figures: run ## the figures of the documentation
	$(BIN)/sdebias plot results/diabetes/sgd results/diabetes/sde --out docs/figures/diabetes.png --overwrite
	$(BIN)/python -m experiments.concepts
	$(BIN)/python -m experiments.ito_convergence
	$(BIN)/python -m experiments.rotation_law
	$(BIN)/python -m experiments.landscape_paths
	$(BIN)/python -m experiments.design_penalties
	$(BIN)/python -m experiments.design_recovery
	$(BIN)/python -m experiments.design_regression
	$(BIN)/python -m experiments.design_tasks

report-check: $(READY) ## reports of every sort in headless Chromium: no error, no request, no page wider than its window
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[browser]"
	$(BIN)/python tests/report/reports.py results/reports
	$(BIN)/python tests/report/browser_check.py results/reports/*.html --screenshots results/reports/screenshots

dist: $(READY) ## wheel and source distribution, in dist
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[release]"
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) results
