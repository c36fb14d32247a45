# `make` lists the targets. VENV=, PYTHON= and EXTRAS= reach scripts/setup_venv.sh.
.DEFAULT_GOAL := help
SHELL := /bin/bash
export VENV ?= $(CURDIR)/.venv
# msrun starts whatever `python` is first on PATH.
RUN = PATH="$(VENV)/bin:$$PATH"
SCRIPTS := .ci/run $(wildcard launch/*.sh scripts/*.sh)

.PHONY: help setup demo kills exact leave supervise faults damage fuzz faults-peers bench-save bench-load bench-locate recover-real test lint format clean distclean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: ## .venv with MindSpore's CPU build; quick, and offline, once done
	@scripts/setup_venv.sh

demo: setup ## train, kill, resume, compare; BREAK=optimizer|rng|data|step leaves that out of the resume
	$(RUN) python examples/grpo_arithmetic/demo.py $(if $(BREAK),--break "$(BREAK)")

kills: setup ## the default run with five random SIGKILLs, compared with an undisturbed one; about 8 minutes
	$(RUN) python examples/grpo_arithmetic/random_kills.py $(ARGS)

exact: setup ## 500 kills in all settings, each run compared bit for bit with an undisturbed one; 40 minutes
	cd tests && PYTHONPATH=$(CURDIR)/examples $(RUN) python -m exact $(ARGS)

leave: setup ## 200 requests to leave in all settings and phases, 50 under msrun, compared bit for bit; half an hour
	cd tests && PYTHONPATH=$(CURDIR)/examples $(RUN) python -m leave $(ARGS)

supervise: setup ## a supervised run under msrun, disturbed ten times, compared with an undisturbed one; ten minutes
	cd tests && PYTHONPATH=$(CURDIR)/examples $(RUN) python -m supervised --report $(CURDIR)/benchmarks/results/supervise $(ARGS)

faults: setup ## the fault campaign: dying, failing, racing, losing power at every point of a save; forty minutes
	cd tests && $(RUN) python -m faults $(ARGS)

damage: setup ## the damage campaign: bits, pages, cuts, swaps, stale files; all found, no false alarm; two minutes
	cd tests && $(RUN) python -m damage $(ARGS)

# In an environment of its own, of 4 GB: what it compares with is in the extra `bench`.
faults-peers: export VENV = $(CURDIR)/.venv-bench
faults-peers: ## kills the saves of other tools too, and puts the table into docs/durability.md; about 5 minutes
	@EXTRAS=bench scripts/setup_venv.sh
	PYTHONPATH=tests $(RUN) python -m faults.peers --write docs/durability.md $(ARGS)

# In the same environment.
bench-save: export VENV = $(CURDIR)/.venv-bench
bench-save: ## how fast a save is, beside the raw disk and other tools; about half an hour
	@EXTRAS=bench scripts/setup_venv.sh
	$(RUN) python benchmarks/bench_save.py --report benchmarks/results/save $(ARGS)

bench-load: export VENV = $(CURDIR)/.venv-bench
bench-load: ## how fast a verified load is, cold and warm, beside other tools; about half an hour
	@EXTRAS=bench scripts/setup_venv.sh
	$(RUN) python benchmarks/bench_load.py --report benchmarks/results/load $(ARGS)

bench-locate: setup ## how fast the newest checkpoint is found among many, and of many ranks; about ten minutes
	$(RUN) python benchmarks/bench_locate.py --report benchmarks/results/locate $(ARGS)

# In an environment of its own, for torch.
recover-real: export VENV = $(CURDIR)/.venv-hf
recover-real: ## kills Hugging Face's real Trainer, recovers it by the scripts, compares the weights; a minute
	@EXTRAS=hf scripts/setup_venv.sh
	$(RUN) python -m pytest tests/with_transformers $(ARGS)

fuzz: export FUZZ_EXAMPLES ?= 100
fuzz: setup ## bad input near good input, FUZZ_EXAMPLES=100 times what `make test` draws, and other draws each time
	$(RUN) python -m pytest tests/test_fuzz.py $(ARGS)

# What starts msrun is one of the two; `PROCESSES=0` for one after the other.
test: PROCESSES ?= 2
test: setup ## the whole test suite in PROCESSES=2 processes; ARGS= goes to pytest
	$(RUN) python -m pytest -n $(PROCESSES) --dist loadgroup $(ARGS)

lint: setup ## ruff, mypy --strict, shellcheck
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy --strict
	$(RUN) shellcheck $(SCRIPTS)

format: setup ## ruff puts the code in form
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

clean: ## remove what builds and tools left behind; never checkpoints or logs of runs
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv, .venv-bench and .venv-hf
	rm -rf "$(CURDIR)"/.venv{,-bench,-hf}{,.lock}
