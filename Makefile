# Everything from a bare machine: Python 3.11 or newer and make are enough.
.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= python3
VENV ?= .venv
BENCH_VENV ?= .venv-bench
JOBS ?= 2
PORT ?= 8000
BRANCH ?= main

BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(BENCH_VENV)/.ready
NOTEBOOKS := $(wildcard book/*.ipynb)

# One thread a process: what runs here are small networks, several at a time.
SMOKE := MARL_BUDGET=smoke OMP_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: help
help: ## say what can be made
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' Makefile

.PHONY: book
book: $(READY) ## set up, execute the chapters and build the site (_build/html)
	MARL_BUDGET=book $(BIN)/jupyter-book build . -W -n --keep-going
	@echo "The site is in _build/html; 'make serve' shows it."

.PHONY: test
test: lint unit-test notebook-test ## set up, then run every test and every notebook

.PHONY: lint
lint: $(READY) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: unit-test
unit-test: $(READY) ## run pytest
	$(SMOKE) $(BIN)/python -m pytest -n $(JOBS) --dist loadscope

.PHONY: notebook-test
notebook-test: $(READY) ## execute the notebooks at the smoke budget and compare their outputs
	$(SMOKE) $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=120 \
		-n $(JOBS) --dist loadscope book

.PHONY: site-test
site-test: book ## build the site, then check it in a real browser
	MARL_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/site

.PHONY: serve
serve: $(READY) ## show the built site (PORT=8000)
	@test -f _build/html/index.html || { echo "no site yet: run 'make book' first"; exit 1; }
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

.PHONY: bench
bench: $(BENCH_READY) ## measure the speed beside the peers', in an environment of its own
	$(BENCH_VENV)/bin/python -m benchmarks

.PHONY: clean-notebooks
clean-notebooks: $(READY) ## strip from the notebooks what does not belong in git
	$(BIN)/python book/_tools/setup_cell.py $(NOTEBOOKS)
	$(BIN)/python book/_tools/clean.py $(NOTEBOOKS)

.PHONY: refresh-notebooks
refresh-notebooks: $(READY) ## execute the notebooks and store anew the outputs that are compared
	$(BIN)/python book/_tools/setup_cell.py $(NOTEBOOKS)
	$(SMOKE) $(BIN)/python book/_tools/clean.py --refresh $(NOTEBOOKS)

.PHONY: repo
repo: $(READY) ## write the public address everywhere: make repo URL=https://… [BRANCH=main]
ifneq ($(origin URL),command line)
	@echo "usage: make repo URL=https://… [BRANCH=main]   ('make repo URL=' takes the address out)"; exit 1
else
	$(BIN)/python book/_tools/repo.py "$(URL)" "$(BRANCH)"
endif

.PHONY: constraints
constraints: $(READY) ## pin in constraints.txt what is installed now
	$(BIN)/python book/_tools/pins.py

.PHONY: clean
clean: ## delete what building and testing made (not the environments)
	rm -rf _build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

define new_environment
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is " + sys.version)'
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D) || { echo "No environment could be made; on Debian or Ubuntu: apt-get install python3-venv"; rm -rf $(@D); exit 1; }
endef

# An environment is made anew only when what goes into it has changed.
$(READY): pyproject.toml constraints.txt
	$(new_environment)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[book,test]"
	@touch $@

# The same versions as above, and the peers.
$(BENCH_READY): pyproject.toml constraints.txt
	$(new_environment)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[bench]"
	@touch $@
