# make demo    make the environment, fetch a pretrained model and photographs, export, print the table
# make test    everything: lint, types, unit tests, real models, emulated processors, other libraries' models, an sshd and
#              a browser where they can be set up; ends with the skipped tests, by reason
# make check   the fast part: lint, types, unit tests
# make docs    build the documentation site into site/; a broken link fails
#
# PyTorch's default wheel for Linux carries CUDA. For the small CPU build, give the index of its CPU wheels (it is
# on pytorch.org's installation page):            make demo TORCH_INDEX=https://...

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
SELF := .[torch,images]
DEMO_TARGETS := --target host --target raspberry-pi-5 --target android-arm64-dotprod

.PHONY: demo test check docs environment benchmarks libraries peers emulator sshd cross browser slow schemas clean

# $(call timed,NAME,COMMAND) runs the command and prints how long it took.
timed = @begin=$$(date +%s); $(2); code=$$?; echo "== $(1): $$(($$(date +%s) - begin)) s"; exit $$code

environment: $(READY)

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" -c constraints.txt
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet torch -c constraints.txt --index-url $(TORCH_INDEX))
	$(call timed,environment,$(BIN)/python -m pip install --quiet -c constraints.txt --group dev -e "$(SELF)")
	@touch $@

$(VENV)/.benchmarks: $(READY)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group benchmarks
	@touch $@

$(VENV)/.libraries: $(READY)
	$(call timed,libraries,$(BIN)/python -m pip install --quiet -c constraints.txt --group libraries)
	@touch $@

benchmarks: $(VENV)/.benchmarks
	$(call timed,benchmark data,PYTHON=$(BIN)/python bash benchmarks/fetch.sh all)

libraries: $(VENV)/.libraries

peers: $(READY)
	$(call timed,other pruners,$(BIN)/python -m benchmarks.peers install onnxsim torch_pruning || echo "other pruners cannot be installed here: their tests are skipped")

$(VENV)/.docs: $(READY)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group docs
	@touch $@

docs: $(VENV)/.docs
	$(call timed,documentation,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet)

demo: $(READY)
	@PYTHON=$(BIN)/python bash benchmarks/fetch.sh demo
	@$(BIN)/toolchain export benchmarks.models.mobilenet_v2:module --input "input:batch,3,224,224" $(DEMO_TARGETS) \
		--calibration "$$($(BIN)/python -m benchmarks.models.images)" --preprocess imagenet-squash \
		--evaluate benchmarks.models.mobilenet_v2:evaluate --explain --output exported

# Tests run on every core already.
check test slow: export OMP_NUM_THREADS = 1

check: $(READY)
	$(call timed,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call timed,types,$(BIN)/mypy)
	$(call timed,fast tests,$(BIN)/python -m pytest -n 2 -m "not slow")

emulator: $(READY)
	$(call timed,emulator,PYTHON=$(BIN)/python bash scripts/emulator-setup.sh || echo "no emulator here: the tests that need one are skipped")

sshd:
	$(call timed,sshd,bash scripts/install-sshd.sh || echo "no sshd here: the tests that need one are skipped")

cross:
	$(call timed,cross,bash scripts/install-cross.sh || echo "no compiler for arm64 here: the tests that need one are skipped")

browser:
	$(call timed,browser,bash scripts/install-chromium.sh || echo "no browser here: the tests that need one are skipped")

test: check docs slow

slow: benchmarks libraries peers emulator sshd cross browser
	$(call timed,slow tests,$(BIN)/python -m pytest -n 2 -m slow)

schemas: $(READY)
	@$(BIN)/python -m toolchain.formats.schemas docs/schemas

clean:
	rm -rf $(VENV) site exported .mypy_cache .ruff_cache .pytest_cache .hypothesis
