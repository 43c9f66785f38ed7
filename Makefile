# `make help` lists everything. Set-up happens by itself and only once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run run-fleet serve drain orchestrator test test-gpu soak parity check lint fmt types bench mm weights lock install image image-check clean

PY := .venv/bin/python

# The tests that `make test` runs. TESTS=tests/unit selects fewer.
MARKS := not slow and not gpu
TESTS :=
# The files of tests that run concurrently. Those in tests/serve and tests/cluster take turns,
# because each of their applications uses the whole machine.
WORKERS := 2
BENCH := warp nonmodel memory serve_overhead avatar networks
# The options of each, so that none takes more than some minutes on two cores.
BENCH_nonmodel := --rounds 2
BENCH_memory := --preset ultrafast --store-seconds 15 60 --short-jobs 20
BENCH_serve_overhead := --rounds 2
BENCH_avatar := --rounds 1 --seconds 4
BENCH_networks := --seconds 1 --variant eager channels_last cuda_graphs --out out/networks.json

# `worker` or `cluster-node`; with MODELS=embed the published weights are inside.
IMAGE := worker
MODELS := none
CONFIG := serve_config.yaml

# Passed on in the environment, so that a path or URL is never read as shell words.
export VIDEO AUDIO RESOLUTION ASPECT_RATIO CONFIG PYTHON

help:  ## this list
	@echo "make run [VIDEO=file-or-url] [AUDIO=file-or-url] [RESOLUTION=720p] [ASPECT_RATIO=9:16]"
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  %-12s %s\n", $$1, $$2}'

run:  ## set up, start the application, do one job, print where the result is, stop
	@scripts/setup.sh base
	@$(PY) -m demo

run-fleet:  ## an orchestrator and two workers here, ten jobs, one worker killed; videos in out/fleet
	@scripts/setup.sh base
	@$(PY) -m demo.fleet

serve:  ## set up and keep serving (Ctrl-C drains and stops); CONFIG=serve_config.gpu.yaml for a GPU
	@scripts/setup.sh base
	@exec $(PY) -m lipsync serve "$$CONFIG"

drain:  ## let what `make serve` started take no more jobs, and wait until none runs
	@scripts/setup.sh base
	@$(PY) -m lipsync drain "$$CONFIG"

orchestrator:  ## set up and run the job queue that workers poll, without torch (docs/orchestrator.md)
	@scripts/setup.sh orchestrator
	@exec $(PY) -m orchestrator

test:  ## set up and run the tests, without those marked slow
	@scripts/setup.sh dev
ifeq ($(TESTS),)
	$(PY) -m pytest -m "$(MARKS)" -n $(WORKERS) --dist loadfile --ignore tests/serve --ignore tests/cluster
	$(PY) -m pytest -m "$(MARKS)" tests/serve tests/cluster
else
	$(PY) -m pytest -m "$(MARKS)" $(TESTS)
endif

soak:  ## 200 jobs among kills, faults, duplicates and cancellations; five minutes, and its figures
	@scripts/setup.sh dev
	$(PY) -m pytest -s tests/serve/test_soak.py

test-gpu:  ## the tests that need a CUDA GPU
	@scripts/setup.sh dev
	$(PY) -m pytest -m gpu

parity:  ## the table of every stage against the reference's golden set in ../shared, if it is there
	@scripts/setup.sh dev
	@PYTHON=$(PY) scripts/parity.sh

check: lint types  ## exactly what CI runs: lint, types, import rules, every test
	@$(MAKE) --no-print-directory test MARKS="not gpu"

lint:  ## ruff: rules and layout; import-linter: who may import whom
	@scripts/setup.sh dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports --no-cache --no-logo

fmt:  ## let ruff rewrite what it can
	@scripts/setup.sh dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types:  ## mypy --strict
	@scripts/setup.sh dev
	$(PY) -m mypy

bench:  ## the benchmarks, one after the other (BENCH=networks for one); minutes each
	@scripts/setup.sh dev
	@set -e; $(foreach name,$(BENCH),echo "== $(name)"; $(PY) benchmarks/$(name).py $(BENCH_$(name));)

mm:  ## the mmpose stack for `landmarks: mmpose`, where nothing but `make run` was set up
	@scripts/setup.sh base
	@scripts/install-mm.sh

weights:  ## fetch and verify the published MuseTalk weights into models/ (resumable)
	@scripts/setup.sh base
	@$(PY) -m lipsync weights fetch

lock:  ## rewrite requirements/*.lock from requirements/*.in
	@scripts/setup.sh base
	@$(PY) scripts/lock.py

install:  ## set up only, with what development needs
	@scripts/setup.sh dev

image:  ## build the GPU worker's container image (needs docker)
	docker build -f Dockerfile.gpu --target $(IMAGE) -t lipsync-serve:$(IMAGE) --build-arg MODELS=$(MODELS) \
	  --build-arg BUILD_COMMIT=$$(git rev-parse HEAD) \
	  --build-arg BUILD_TIME=$$(date -u +%Y-%m-%dT%H:%M:%SZ) .

image-check:  ## build the image without a daemon, have it do a job, count its bytes (needs root, buildah)
	@scripts/setup.sh dev
	@PYTHONPATH=scripts $(PY) -m image_check $(KEEP) $(WRITE)

clean:  ## remove .venv, caches and out/ (weights in models/ stay)
	rm -rf .venv .cache out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
