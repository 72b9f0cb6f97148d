# Everything runs from a fresh clone: needs only Python 3.11+ and a C++ compiler, and sets up .venv by itself.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= runs
TRAIN_ARGS ?=
OPENMMLAB_ARGS ?=
TEST_ARGS ?=
# processes that run the tests; each takes one thread and up to 3 GB
TEST_WORKERS ?= 2
BENCHMARK_ARGS ?= --device cpu --batch-size 1 8 --img-size 224 --bench inference train

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OPENMMLAB := $(VENV)/.openmmlab
DETECTOR := runs/openmmlab/mask_rcnn_vmamba_nano_fpn_digit_scenes/epoch_8.pth

.DEFAULT_GOAL := help
.PHONY: help install openmmlab train train-detection train-segmentation test test-gpu test-openmmlab lint docs timm-suite benchmark clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(STAMP)  ## make .venv and install the package with its train, export, dev and docs extras

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[train,export,dev,docs]'
	@touch $@

openmmlab: $(OPENMMLAB)  ## install mmengine, mmcv (compiled: a quarter of an hour), mmdet and mmseg into .venv

$(OPENMMLAB): tools/install_openmmlab.sh $(STAMP)
	tools/install_openmmlab.sh $(VENV)
	@touch $@

train: $(STAMP)  ## train vmamba_nano on the bundled digits (TRAIN_ARGS="..." for anything else)
	$(BIN)/python tools/train.py $(TRAIN_ARGS)

data/digit_scenes: | $(OPENMMLAB)
	$(BIN)/python tools/make_digit_scenes.py --output $@

train-detection: $(OPENMMLAB) data/digit_scenes  ## train a small Mask R-CNN on the digit scenes (OPENMMLAB_ARGS="...")
	$(BIN)/python tools/train_openmmlab.py configs/mmdet/mask_rcnn_vmamba_nano_fpn_digit_scenes.py $(OPENMMLAB_ARGS)

$(DETECTOR): | data/digit_scenes
	$(BIN)/python tools/train_openmmlab.py configs/mmdet/mask_rcnn_vmamba_nano_fpn_digit_scenes.py

train-segmentation: $(OPENMMLAB) $(DETECTOR)  ## train a small UperNet on the digit scenes, from the detector's backbone
	$(BIN)/python tools/train_openmmlab.py configs/mmseg/upernet_vmamba_nano_digit_scenes.py $(OPENMMLAB_ARGS)

test: $(STAMP)  ## run the tests, then timm's own test suite on our models
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --ignore tests/openmmlab $(TEST_ARGS)
	$(BIN)/python tests/run_timm_suite.py

test-openmmlab: $(OPENMMLAB)  ## run the tests of backbones, configs and tools in mmdet and mmseg
	$(BIN)/python -m pytest tests/openmmlab $(TEST_ARGS)

test-gpu: $(STAMP)  ## run only the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(TEST_ARGS)

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(STAMP)  ## build the documentation into build/site, without the network; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

timm-suite: $(STAMP)  ## run timm's own test suite on our models
	$(BIN)/python tests/run_timm_suite.py

benchmark: $(STAMP)  ## compare vmamba_tiny_s1l8 with swin_tiny on this CPU (BENCHMARK_ARGS="...")
	$(BIN)/python tools/benchmark.py swin_tiny_patch4_window7_224 vmamba_tiny_s1l8 $(BENCHMARK_ARGS)

clean:  ## remove build products and caches; .venv and runs stay
	rm -rf build dist *.egg-info kernels/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print | xargs rm -rf
