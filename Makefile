# Everything starts from a bare checkout: `make demo` and `make test` need Python 3.11 and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*))
STAMP := $(VENV)/.installed
# Threads of numerical libraries: two test workers share the processor.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: install demo test test-all docs lint clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt \
		-e '.[http,matlab,parquet,test]' $(foreach plugin,$(PLUGINS),-e ./$(plugin))
	touch $@

# The main job: ATI-Net learns three dense tasks on rendered rooms.
demo: install
	$(BIN)/mtl run --plugin atinet

test: install
	$(ONE_THREAD) $(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests
	@set -e; for plugin in $(PLUGINS); do \
		MTL_PLUGINS=$${plugin##*-plugin-} $(ONE_THREAD) $(BIN)/pytest -n 2 -m "not slow" $$plugin/tests; \
	done

test-all: install
	$(ONE_THREAD) $(BIN)/pytest tests
	@set -e; for plugin in $(PLUGINS); do \
		MTL_PLUGINS=$${plugin##*-plugin-} $(ONE_THREAD) $(BIN)/pytest $$plugin/tests; \
	done

# The site, in docs/_build; a warning is an error.
docs: $(STAMP)-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

$(STAMP)-docs: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation \
		-c constraints.txt -e '.[docs]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mtlcore $(foreach plugin,$(PLUGINS),$(plugin)/src)

clean:
	rm -rf $(VENV)
