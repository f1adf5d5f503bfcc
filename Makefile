# Two commands do everything: `make demo` and `make test`. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test check integrations bench lock clean

demo: $(VENV)/run.stamp  ## run the main job on real input, with the local model
	$(BIN)/memalign demo $(ARGS)

# Tests with the real local model run alone: its threads wait for each other, and slow down many times beside other work.
test: check integrations  ## lint, type-check and run all tests
	$(BIN)/python -m pytest -n 2 -m "not model" $(ARGS)
	$(BIN)/python -m pytest -m model $(ARGS)

# MLflow needs older versions of what memalign takes the newest of, so its tests have environments of their own: the newest and the oldest.
# What those lack (pytest, the local model) comes from .venv.
integrations: $(VENV)-integrations/stamp $(VENV)-integrations-oldest/stamp $(VENV)-dspy-oldest/stamp  ## test inside MLflow and DSPy
	PYTHONPATH=$(CURDIR)/src $(VENV)-integrations/bin/python -m pytest -W default -p no:cacheprovider tests/test_mlflow_*.py tests/test_dspy.py $(ARGS)
	PYTHONPATH=$(CURDIR)/src $(VENV)-integrations-oldest/bin/python -m pytest -W default -p no:cacheprovider -m "not model" tests/test_mlflow_*.py $(ARGS)
	PYTHONPATH=$(CURDIR)/src $(VENV)-dspy-oldest/bin/python -m pytest -W default -p no:cacheprovider tests/test_dspy.py

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/run.stamp  ## measure speed; with MLflow installed in .venv, against it
	$(BIN)/python -m benchmarks.run $(ARGS)

$(VENV)/run.stamp: requirements/run.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memalign needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --require-hashes -r requirements/run.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/test.stamp: requirements/test.txt $(VENV)/run.stamp
	$(PIP) install --quiet --require-hashes -r requirements/test.txt
	touch $@

$(VENV)-%/stamp: requirements/%.txt $(VENV)/test.stamp
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-compile --require-hashes -r $<
	$(BIN)/python -c "$(SITE)" > $$($(@D)/bin/python -c "$(SITE)")/venv.pth
	touch $@

lock:  ## renew the pinned requirements (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra local --extra parquet --extra plots pyproject.toml requirements/run.in -o requirements/run.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --extra local --extra parquet --extra plots --extra postgres --extra scale pyproject.toml requirements/test.in -c requirements/run.txt -o requirements/test.txt
	for which in integrations integrations-oldest; do \
	  uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	    --extra mlflow pyproject.toml requirements/$$which.in -o requirements/$$which.txt; done
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  -c requirements/test.txt requirements/dspy-oldest.in -o requirements/dspy-oldest.txt

clean:
	rm -rf $(VENV) $(VENV)-integrations $(VENV)-integrations-oldest $(VENV)-dspy-oldest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
