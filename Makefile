# Everything a person does here is a target; `make` alone lists them.
ifndef DEVICE
DEVICE := $(shell deploy/setup.sh --device)
endif
BENCH ?= main_job
SETUP_FLAGS ?=
LOCKS ?= control cpu gpu
export EQUIPOISE_STATE_DIR ?= $(CURDIR)/.equipoise

BIN := .venv/bin
# How the locks are made. Setup itself needs uv and setuptools; uv reads one wheel's dependencies for all platforms, so
# what only some wheels of intel-openmp name is added by hand; an old cuda-python names nothing, so it would always fit.
CPU_EXTRAS = 'uv\nsetuptools>=77\nintel-cmplr-lib-ur==2024.2.1 ; platform_machine == "x86_64"\n'
GPU_EXTRAS = 'uv\nsetuptools>=77\ncuda-python>=13\n'
CPU_WHEELS = UV_FIND_LINKS="$$PIP_FIND_LINKS" UV_EXTRA_INDEX_URL="$$PIP_EXTRA_INDEX_URL"
RESOLVE = PATH="$(CURDIR)/$(BIN):$$PATH" uv pip compile pyproject.toml - --extra dev --universal --python-version 3.11 \
	--index-strategy unsafe-best-match --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet
# One torch line for every build of it, and nothing for systems that are not Linux.
TIDY = sed -E -e 's/^(torch==[0-9.]+).*/\1/' -e "/== '(win32|emscripten)'/d"

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test browser lint format bench screenshots wheel audit lock clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 12
	@echo "  DEVICE=cpu|cuda selects what setup installs and what demo runs on (now: $(DEVICE); it stays until another is named)"

setup: ## make .venv from the lock (once; instant when nothing changed)
	@deploy/setup.sh $(DEVICE)

demo: setup ## align a tiny model to three rewards on this machine and write a report
	$(BIN)/equipoise demo --device $(DEVICE)

serve: setup ## API, dashboard, worker and embedded Redis on this machine
	$(BIN)/equipoise up

test: setup ## every test (those that need a GPU only where DEVICE is cuda)
	$(BIN)/python -m tests.lanes $(if $(filter cuda,$(DEVICE)),,-m "not gpu")

browser: setup ## of the tests, the dashboard's alone: a real Chromium, installed where apt-get can
	$(BIN)/python -m pytest tests/browser

lint: setup ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## let ruff rewrite the tree
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure (BENCH=name for one of tests/benchmarks)
	$(BIN)/python -m tests.benchmarks.$(BENCH)

screenshots: setup ## pictures of every page of the dashboard, into deploy/screenshots
	$(BIN)/python -m tests.browser.screenshots

wheel: setup ## dist/equipoise-VERSION-py3-none-any.whl, with nothing of an older tree that lies in build/
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

audit: setup ## known vulnerabilities of all packages in the locks (asks osv.dev; LOCKS=control for one)
	@for lock in $(LOCKS); do echo "requirements/$$lock.txt"; $(BIN)/uv tool run --quiet --python $(BIN)/python \
		pip-audit==2.10.1 --requirement requirements/$$lock.txt --no-deps --disable-pip --progress-spinner off \
		--vulnerability-service osv || exit 1; done

lock: ## resolve both locks again from pyproject.toml (needs uv, which setup installs)
	@printf $(CPU_EXTRAS) | $(CPU_WHEELS) $(RESOLVE) --extra cpu --override requirements/overrides.txt > .lock
	@$(TIDY) .lock | uniq | grep -vE '^(nvidia|cuda)-' > requirements/cpu.txt
	@printf $(GPU_EXTRAS) | $(RESOLVE) --extra gpu > .lock
	@$(TIDY) .lock | uniq > requirements/gpu.txt
	@grep -vE '^(torch|vllm)' requirements/cpu.txt > .constraints
	@uv pip compile requirements/control.in --constraint .constraints --universal --python-version 3.11 \
		--index-strategy unsafe-best-match --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet > .lock
	@$(TIDY) .lock > requirements/control.txt
	@rm .lock .constraints; wc -l requirements/*.txt

clean: ## remove caches and build output; the environment and the jobs' state stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
