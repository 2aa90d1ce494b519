# `make demo` and `make test` set everything up themselves, on a fresh machine too: a virtual environment in
# .venv, the package in it. The demo needs no compiler: ONNX Runtime scores it. For the tests llama-cpp-python compiles
# for some minutes once; pip keeps the wheel.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-versions docs figures clean

demo: .venv/demo.done
	$(BIN)/edgeguard score examples/messages.jsonl --table
	@echo
	@echo 'Scored by edgeguard-135m, a small guard for English: models/edgeguard-135m/README.md says how far to trust it.'
	@echo 'The same as data: $(BIN)/edgeguard score examples/messages.jsonl'

test: .venv/test.done .venv/browser.done
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadscope

# What `make demo` takes on a fresh machine, by part: a copy of this commit, no pip cache, no cache folder. Not in `figures`.
.PHONY: demo-figures forms-figures
demo-figures:
	mkdir -p bench/results
	$(PYTHON) bench/demo.py > bench/results/demo.txt

# An hour on a quiet machine. DATA: as of guard-figures. First the hashes, then the calibrations, then the comparison.
forms-figures: .venv/test.done
	$(BIN)/python models/recipe/forms.py > /dev/null
	$(BIN)/python models/recipe/calibrate.py $(DATA)/val.jsonl $(DATA)/val2.jsonl --scores .venv/scores
	$(BIN)/python bench/forms.py $(DATA)/val.jsonl --scores .venv/scores --speed 0 > bench/results/forms.md
	$(BIN)/python docs/generate.py

# How far a calibration holds for sources left out. DATA: as of guard-figures, whose scores are taken where they are there.
.PHONY: carry-figures
carry-figures: .venv/test.done
	$(BIN)/python bench/carry_over.py $(DATA) --scores .venv/scores --others $(DATA)/eval_public/*.jsonl > bench/results/carry_over.md
	$(BIN)/python docs/generate.py

# The tests on every other Python that the classifiers name and this machine has.
test-versions: .venv/test.done
	$(BIN)/python tests/versions.py

docs: .venv/test.done
	$(BIN)/python docs/generate.py --examples

# An hour on a quiet machine with 2 cores. TEXTS: a JSONL file of more texts for the bounds and the parity.
VARIANTS := .venv/variants
figures: .venv/test.done
	mkdir -p bench/results
	$(BIN)/python bench/throughput.py > bench/results/throughput.txt
	$(BIN)/python bench/runtimes.py --variants $(VARIANTS) > bench/results/runtimes.txt
	$(BIN)/python bench/sizes.py --variants $(VARIANTS) > bench/results/sizes.txt
	$(BIN)/python bench/neighbours.py --variants $(VARIANTS) > bench/results/neighbours.txt
	$(BIN)/python bench/parity.py examples/messages.jsonl $(TEXTS) --variants $(VARIANTS) > bench/results/parity.txt
	$(BIN)/python bench/workers.py > bench/results/workers.txt
	$(BIN)/python bench/memory.py > bench/results/memory.txt
	$(BIN)/python bench/questions.py --texts 5 --policies 13 4 > bench/results/questions.txt
	$(BIN)/python bench/bounds.py examples/messages.jsonl $(TEXTS) > bench/results/bounds.txt
	$(BIN)/python bench/kv_cache.py > bench/results/kv_cache.txt
	$(BIN)/python bench/scale.py --records 32 --rounds 2 > bench/results/scale.txt
	$(BIN)/python bench/intervals.py > bench/results/intervals.md
	$(BIN)/python bench/published_error.py > bench/results/published_error.txt
	$(BIN)/python bench/published_error.py examples/messages.jsonl --random-guards 0 > bench/results/published_error_model.txt
	$(BIN)/python bench/fuzz_gguf.py --passing 3000 > bench/results/fuzz_gguf.txt
	$(BIN)/python bench/fuzz_gguf.py --unchecked >> bench/results/fuzz_gguf.txt
	$(BIN)/python docs/generate.py

# The default against the edgeguard before it, and processes at once: 7 minutes on a quiet machine.
.PHONY: default-figures
default-figures: .venv/test.done
	mkdir -p bench/results
	$(BIN)/python bench/defaults.py > bench/results/defaults.txt
	$(BIN)/python bench/starvation.py > bench/results/starvation.txt
	$(BIN)/python bench/startup.py --before 712bd52 > bench/results/startup.txt
	$(BIN)/python docs/generate.py

# An hour on a quiet machine: damaged files of every kind, and killed runs.
.PHONY: hostile-figures
hostile-figures: .venv/test.done
	mkdir -p bench/results
	$(BIN)/python bench/fuzz.py > bench/results/fuzz.txt
	$(BIN)/python bench/crash.py > bench/results/crash.txt
	$(BIN)/python docs/generate.py

# 10 minutes on a quiet machine, and once half an hour for SERVER. CHAT: as of shape-figures.
.PHONY: peer-figures
SERVER := .venv/llama-server/bin/llama-server
PEERS := $(BIN)/python bench/peers.py --server $(SERVER) --typed-gguf .venv/typed-gguf/bin/python
peer-figures: .venv/test.done $(SERVER) .venv/typed-gguf.done
	mkdir -p bench/results
	$(PEERS) > bench/results/peers.txt
	$(PEERS) --model $(CHAT) --profile instruct --records 6 --rounds 4 > bench/results/peers_chat.txt
	$(BIN)/python docs/generate.py

.venv/llama-server/bin/llama-server: bench/build_llama_server.sh .venv/bin/python
	PYTHON=$(BIN)/python bench/build_llama_server.sh .venv/llama-server

.venv/typed-gguf.done:
	$(PYTHON) -m venv .venv/typed-gguf
	.venv/typed-gguf/bin/python -m pip install --quiet typed-gguf==0.3.0
	@touch $@

# CHAT: the official GGUF of Qwen2.5-Coder-0.5B-Instruct, Q4_K_M.
.PHONY: shape-figures
shape-figures: .venv/test.done
	$(BIN)/python bench/shapes.py --model $(CHAT) --records 5 > bench/results/shapes.txt
	$(BIN)/python docs/generate.py

# Half an hour on a quiet machine and a guard. DATA: the data pack, a folder with val.jsonl, val2.jsonl and eval_public/.
# GUARD: whose card it is; BESIDE: guards to stand beside it, such as edgeguard-135m@1. Scores made on another machine,
# with the same options, are found in .venv/scores; OPTIONS are of bench/guard.py, such as --option device=cuda.
.PHONY: guard-figures window-figures
GUARD ?= edgeguard-135m
guard-figures: .venv/test.done
	$(BIN)/python bench/guard.py $(DATA) $(GUARD:%=--guard %) $(BESIDE:%=--guard %) --scores .venv/scores --out bench/results $(OPTIONS)
	$(BIN)/python docs/generate.py

# Long texts: twenty minutes a guard on a quiet machine.
window-figures: .venv/test.done
	$(BIN)/python bench/window.py $(DATA)/val.jsonl --model $(GUARD) $(BESIDE) --tokens 250 1000 --speed-tokens 500 > bench/results/window.txt
	$(BIN)/python docs/generate.py

# Of bench quant: simulated studies, the study in the docs, and what it saves. Three hours of a quiet machine. DATA: as of guard-figures.
.PHONY: study-figures
TYPES := q8_0,q5_1,q5_0,q4_1,q4_0,iq4_nl,onnx-fp32,onnx-int8,onnx-int4
study-figures: .venv/test.done
	$(BIN)/python bench/coverage.py --studies 10000 > bench/results/coverage.md
	$(BIN)/python bench/study.py $(DATA) --out .venv/study --val 700 --per-file 100 --floor 100 > bench/results/quantization_study.md
	$(BIN)/python bench/study_cost.py .venv/study/val.jsonl --variants $(TYPES) --limit 0.02 --loss 0.01 --floor 100 --first 300 \
		> bench/results/study_cost.md
	$(BIN)/python bench/study_cost.py .venv/study/val.jsonl --variants $(TYPES) --limit 0.02 --loss 0.01 --floor 100 --first 300 \
		--workers 2 > bench/results/study_cost_two.md
	$(BIN)/python docs/generate.py

# 10 minutes on a quiet machine; `--parts attack --requests 10000` takes a quarter of an hour more.
.PHONY: serve-figures
serve-figures: .venv/test.done
	mkdir -p bench/results
	$(BIN)/python bench/serve.py > bench/results/serve.txt
	$(BIN)/python docs/generate.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/onnx.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[onnx]'
	@touch $@

.venv/demo.done: .venv/onnx.done
	$(BIN)/edgeguard models pull
	@touch $@

# A pip of 25.1 or later knows dependency groups.
.venv/test.done: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[llama,onnx,convert,optimum,smollm2,parquet,ray,serve,hub]' --group test --group lint --group bench
	$(MAKE) --no-print-directory .venv/vocabularies.done
	@touch $@

# Pages are tested in a real browser: Debian's and Ubuntu's packages where there is none, by root or sudo.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
.venv/browser.done: .venv/bin/python
	{ command -v chromium && command -v chromedriver; } > /dev/null || { $(SUDO) apt-get update -q && \
		$(SUDO) apt-get install -y -q --no-install-recommends chromium chromium-driver; } > .venv/browser.log 2>&1 || \
		{ tail -5 .venv/browser.log; echo 'the tests of pages need chromium and chromedriver; install them' >&2; exit 1; }
	@touch $@

# Real vocabularies for the tests, out of llama.cpp's source; the version is the one whose list they know.
.venv/vocabularies.done: tests/vocabularies.py
	$(BIN)/python -m pip download --quiet --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d .venv/source
	$(BIN)/python tests/vocabularies.py .venv/source/llama_cpp_python-0.3.36.tar.gz .venv/vocabularies
	rm -r .venv/source
	@touch $@

clean:
	rm -rf .venv
