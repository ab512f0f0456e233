# Start with `make demo`. The command line can set VENV, PYTHON and PIP_ARGS. To install torch without CUDA, say
# PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu". `make hub-tiny` needs HUB_ID; with
# HUB_ARGS=--no_hub_private_repo everybody can see the repository.
VENV ?= .venv
PAGE_VENV ?= build/page
PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3.12) $(shell command -v python3.13) python3)
PIP_ARGS ?=
HUB_ID ?=
HUB_ARGS ?=
PAGE_ARGS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
INSTALL_PAGE := $(PAGE_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c $(PAGE_VENV)/constraints.txt
# On two CPU cores, two processes of one thread are faster than one process of two threads, and the presets' batches are
# for two processes. GPU=1 trains in one process on a GPU instead. CPU processes must see no GPU, or torch (as 2.11 did)
# asks for one GPU per process.
GPU =
ON_CPU = CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
ON_TWO = $(ON_CPU) ACCELERATE_USE_CPU=true $(BIN)/accelerate launch --multi_gpu --num_processes 2
LAUNCH = $(if $(filter 1,$(GPU)),$(BIN)/accelerate launch --num_processes 1,$(ON_TWO))
SHARE = $(if $(filter 1,$(GPU)),--gradient_accumulation_steps 2)
# One thread per process, since several processes of several threads wait for each other.
PYTEST = $(ON_CPU) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
COMMUNITY ?= build/community
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-gpu quality style tiny few-steps tiny-code hub-tiny hub-id densepose community benchmark realtime \
	benchmark-gpu reproduce page page-test push-page clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: $(VENV)/.installed  ## animate the sample photo with the small model (no GPU, no download of weights)
	$(BIN)/python animate.py --model model_card/tiny --image model_card/sample/photo.png --poses model_card/sample/poses \
		--output demo/sample.mp4 --gif --scale 2 --fps 12 --overwrite

# pip replaces a torchvision that does not fit, and keeps torch.
densepose: $(VENV)/.installed  ## install what a TorchScript DensePose needs: the torchvision that fits torch
	$(INSTALL) --force-reinstall --no-deps torchvision
	@$(BIN)/python -c "import torchvision" 2>/dev/null || { echo "torchvision does not fit the installed torch. Take it from the \
	same index as torch, for example: make densepose PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'" >&2; exit 1; }

# The page's environment runs the tests of the page that need Gradio.
PAGE_TESTS = tests/space/test_page.py tests/space/test_browser.py
test: $(VENV)/.installed-test  ## run all tests, those of the page in its own environment
	$(PYTEST) $(addprefix --ignore=,$(PAGE_TESTS))
	$(MAKE) page-test

test-fast: $(VENV)/.installed-test  ## run the tests that take seconds
	$(PYTEST) -m "not slow"

test-gpu: $(VENV)/.installed-test  ## run the tests that need CUDA (for 8 and 4 bit: pip install bitsandbytes)
	$(BIN)/python -m pytest -rs tests/test_cuda.py

quality: $(VENV)/.installed-quality  ## check lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/.installed-quality  ## repair lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Every step resumes from its newest checkpoint. After an interruption, type `make tiny` again.
tiny: $(VENV)/.installed-test  ## train the small model from nothing, export and measure it (hours on a CPU; or GPU=1)
	$(LAUNCH) training/train_encoders.py --preset tiny_vae $(SHARE)
	$(LAUNCH) training/train_encoders.py --preset tiny_doubled_vae $(SHARE)
	$(LAUNCH) training/train_encoders.py --preset tiny_image_encoder $(SHARE)
	$(BIN)/python training/train_encoders.py --preset tiny_pipeline
	$(LAUNCH) training/train.py --preset tiny $(SHARE)
	$(BIN)/python training/export_tiny.py --pipeline runs/tiny/stage1 --vae runs/tiny/doubled_vae --runs runs/tiny
	$(MAKE) tiny-code
	$(BIN)/python training/evaluation.py --model model_card/tiny --device cpu --output model_card/tiny/evaluation --resume
	$(MAKE) few-steps

TINY_BLOCKS = from modular_dreampose import DreamPoseBlocks; blocks = DreamPoseBlocks(); \
	blocks.save_pretrained('model_card/tiny', repo_id='you/dreampose-tiny'); \
	from diffusers.modular_pipelines.mellon_node_utils import MellonPipelineConfig; \
	MellonPipelineConfig.from_custom_block(blocks, node_label='DreamPose').save('model_card/tiny')
tiny-code: $(VENV)/.installed  ## write the code of pipeline and blocks, and the blocks' files, into the small model's folder
	cp pipeline_dreampose.py model_card/tiny/adapter/dreampose_adapter.py
	$(BIN)/python -c "$(TINY_BLOCKS)"

# Without HUB_ID, nothing is installed.
hub-tiny: $(if $(HUB_ID),$(VENV)/.installed,hub-id)  ## push the small model to the Hub, to HUB_ID=you/dreampose-tiny (private)
	$(BIN)/python training/push_model.py --folder model_card/tiny --hub_model_id "$(HUB_ID)" $(HUB_ARGS)

hub-id:
	@echo "make $(MAKECMDGOALS) needs HUB_ID=you/dreampose-tiny" >&2; exit 1

page: $(PAGE_VENV)/.installed  ## serve the page that moves a person in a browser, with the small model
	$(PAGE_VENV)/bin/python model_card/space/app.py $(PAGE_ARGS)

page-test: $(PAGE_VENV)/.installed-test  ## test the page, in Chromium if there is one (minutes)
	$(ON_CPU) $(PAGE_VENV)/bin/python -m pytest -rs $(PAGE_TESTS)

# A Space has the project's files in the same places, but its card and requirements at its root.
push-page: $(if $(HUB_ID),$(VENV)/.installed,hub-id)  ## push the page with the small model to the Space HUB_ID=you/dreampose (private)
	rm -rf build/space && mkdir -p build/space/model_card
	cp -r pipeline_dreampose.py training build/space
	cp -r model_card/space model_card/tiny model_card/sample build/space/model_card
	mv build/space/model_card/space/README.md build/space/model_card/space/requirements.txt build/space
	$(BIN)/hf upload "$(HUB_ID)" build/space . --repo-type space --private --exclude "**/__pycache__/**" $(HUB_ARGS)

benchmark: $(VENV)/.installed-test  ## measure a frame and a training step at half size (hours on a CPU)
	$(BIN)/python -m benchmarks.speed.sampling --size half --device cpu --output benchmarks/speed/sampling_half_cpu.json
	$(BIN)/python -m benchmarks.speed.training_step --size half --device cpu --output benchmarks/speed/training_step_half_cpu.json

realtime: $(VENV)/.installed-test  ## measure the small model's frames per second (minutes on two idle CPU cores)
	$(BIN)/python -m benchmarks.speed.realtime --output benchmarks/speed/realtime.json
	$(BIN)/python docs/tables.py

STEP_ON_GPU = $(BIN)/python -m benchmarks.speed.training_step --size full --device cuda --mixed_precision bf16 --batch_size 8 \
	--num_workers 1 --steps 8 --repeats 3
benchmark-gpu: $(VENV)/.installed-test  ## measure training steps and frames at full size on a GPU (minutes; needs bitsandbytes)
	$(STEP_ON_GPU) --output benchmarks/speed/training_step_full_cuda.json
	$(STEP_ON_GPU) --gradient_checkpointing --output benchmarks/speed/training_step_full_cuda_checkpointing.json
	$(BIN)/python -m benchmarks.speed.training_memory --output benchmarks/speed/training_memory_full_cuda.json
	$(BIN)/python -m benchmarks.speed.sampling --size full --device cuda --dtype bfloat16 --num_frames 8 --batch_sizes 1 8 32 \
		--output benchmarks/speed/sampling_full_cuda.json

# Clips for distillation: the first 600 of the small model's training data, and its validation clips.
runs/few_steps/data/train.parquet: training/data/procedural_fashion.py | $(VENV)/.installed-test
	mkdir -p $(@D)
	$(BIN)/python -c 'from training.data.procedural_fashion import load_procedural_fashion as load; load(split="validation").to_parquet("$(@D)/validation.parquet"); load(num_train=600).to_parquet("$@.part")'
	mv $@.part $@

few-steps: $(VENV)/.installed-test runs/few_steps/data/train.parquet  ## distil the small model to one step (an hour on a CPU), export and measure it
	$(ON_CPU) $(BIN)/python training/distill.py --preset tiny
	$(BIN)/python training/export_tiny.py --few_steps runs/few_steps/student
	$(ON_CPU) $(BIN)/python training/distill.py --preset tiny --train_mode full --learning_rate 3e-4 --output_dir runs/few_steps/full
	$(BIN)/python -m benchmarks.claims.few_steps --lora model_card/tiny/fast --full runs/few_steps/full --resume \
		--output benchmarks/claims/few_steps.json
	$(BIN)/python -m benchmarks.claims.half_size --lora model_card/tiny/fast --output benchmarks/claims/half_size.json
	$(BIN)/python docs/tables.py

# Other subjects for stage 2: the first 200 clips of the small model's training data.
runs/prior/train.parquet: training/data/procedural_fashion.py | $(VENV)/.installed-test
	mkdir -p runs/prior
	$(BIN)/python -c 'from training.data.procedural_fashion import load_procedural_fashion as load; load(num_train=200).to_parquet("$@.part")'
	mv $@.part $@

# All benchmarks resume after a stop. Stage 2 is measured on subjects that were not used to choose its settings.
reproduce: SUBJECTS = --first_subject 20
reproduce: CURVE = --split validation --num_subjects 4 --num_photos 1 --curve_steps 100
reproduce: FOUR = --reference_frames first --train_batch_size 4 --gradient_accumulation_steps 1
reproduce: STAGE_TWO = --preset tiny --prior_dataset runs/prior
reproduce: ALL_TEST_FRAMES = --split test --num_clips 40 --frames_per_clip 15 --num_consecutive 15
reproduce: CLAIM = --resume --output benchmarks/claims
reproduce: $(VENV)/.installed-test runs/prior/train.parquet  ## test the paper's claims at the small model's size (hours on a CPU)
	$(BIN)/python -m benchmarks.subjects.gains $(SUBJECTS) --num_subjects 20 --output benchmarks/subjects/gains.json -- $(STAGE_TWO)
	$(BIN)/python -m benchmarks.subjects.gains $(SUBJECTS) --num_subjects 20 --num_photos 1 --output benchmarks/subjects/gains_control.json \
		-- $(STAGE_TWO) --prior_prob 0.9999 --num_textured_clips 0 --decoder_max_train_steps 0
	$(BIN)/python -m benchmarks.subjects.gains $(SUBJECTS) --num_subjects 20 --num_photos 4 --num_clips 8 \
		--output benchmarks/subjects/gains_true_clips.json -- $(STAGE_TWO) --decoder_max_train_steps 0
	$(BIN)/python -m benchmarks.subjects.gains $(SUBJECTS) --num_subjects 20 --num_photos 4 --num_clips 8 \
		--output benchmarks/subjects/gains_true_clips_longer.json -- $(STAGE_TWO) --decoder_max_train_steps 0 --rank 64 --max_train_steps 100
	$(BIN)/python -m benchmarks.subjects.sweep --num_subjects 4 --output benchmarks/subjects/sweep.json -- $(STAGE_TWO)
	$(BIN)/python -m benchmarks.subjects.sweep --num_subjects 4 --num_photos 4 --variations benchmarks/subjects/sweep_four_photos.yaml \
		--output benchmarks/subjects/sweep_four_photos.json -- $(STAGE_TWO)
	$(BIN)/python -m benchmarks.subjects.gains $(CURVE) --output benchmarks/subjects/curve.json -- --prior_dataset runs/prior $(FOUR) \
		--max_train_steps 500 --decoder_max_train_steps 300
	$(BIN)/python -m benchmarks.subjects.gains $(CURVE) --output benchmarks/subjects/curve_paper.json -- --preset paper $(FOUR) \
		--decoder_max_train_steps 300
	$(BIN)/python -m benchmarks.subjects.bound $(SUBJECTS) --num_subjects 20 --output benchmarks/subjects/bound.json
	$(BIN)/python -m benchmarks.claims.ablation --output benchmarks/claims/ablation.json
	$(BIN)/python -m benchmarks.claims.guidance $(CLAIM)/guidance.json
	$(BIN)/python -m benchmarks.claims.guidance_interval $(CLAIM)/guidance_interval.json
	$(BIN)/python -m benchmarks.claims.guidance_interval $(ALL_TEST_FRAMES) --intervals 0,0.75 $(CLAIM)/guidance_interval_test.json
	$(BIN)/python -m benchmarks.claims.schedulers $(CLAIM)/schedulers.json
	$(BIN)/python -m benchmarks.claims.schedulers $(ALL_TEST_FRAMES) --schedulers "DPM-Solver++ trailing" --steps 3 4 5 6 \
		--reference DPM-Solver++ --reference_steps 15 $(CLAIM)/schedulers_test.json
	$(BIN)/python -m benchmarks.claims.alignment $(CLAIM)/alignment.json
	$(BIN)/python docs/tables.py

community:  ## write the file and README section for diffusers' examples/community
	mkdir -p $(COMMUNITY)
	$(PYTHON) -c "from pathlib import Path; from training.hub.community import write_community_file as write; \
		write(Path('pipeline_dreampose.py'), Path('$(COMMUNITY)'))"
	cp model_card/community.md $(COMMUNITY)/README.md

clean:  ## remove what the other targets made, including the environment
	rm -rf $(VENV) build demo results .pytest_cache .ruff_cache dreampose_diffusers.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, found " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# Stamp files: a second run installs nothing until the requirements change.
$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) -e ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-quality: $(REQUIREMENTS) | $(BIN)/python
	$(INSTALL) $$(grep '^ruff==' constraints.txt)
	@touch $@

# Gradio needs an older Pillow, so the page has an environment of its own, which takes all else from the first one.
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path('purelib'))
$(PAGE_VENV)/.installed: $(REQUIREMENTS) | $(VENV)/.installed
	$(BIN)/python -m venv $(PAGE_VENV)
	echo "import site; site.addsitedir('$$($(BIN)/python -c "$(SITE_PACKAGES)")')" \
		> "$$($(PAGE_VENV)/bin/python -c "$(SITE_PACKAGES)")/project.pth"
	grep -v '^pillow==' constraints.txt > $(PAGE_VENV)/constraints.txt
	$(INSTALL_PAGE) -e ".[page]"
	@touch $@

$(PAGE_VENV)/.installed-test: $(PAGE_VENV)/.installed | $(VENV)/.installed-test
	$(INSTALL_PAGE) playwright pytest
	@touch $@
