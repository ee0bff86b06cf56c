# Every target makes what it needs from nothing: a .venv with the tested versions, and the project in it.
PYTHON ?= python3
SCALE ?= demo
# Processes that run tests: more than two cores, because many tests wait for other processes.
WORKERS ?= 3
BIN = .venv/bin
NOTEBOOKS = $(sort $(wildcard notebooks/*.ipynb))

.PHONY: demo check test coverage ablations reports docs lab lint clean
.DELETE_ON_ERROR:

# The stamp is newer than what decides the environment, so a second call is quick.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11 to 3.13 is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@echo "installing the tested versions into .venv: PyTorch's packages are about 7 GB, 3-5 minutes on a fast line"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,test,docs,export]'
	mkdir -p .venv/etc/jupyter && cp -R .jupyter/labconfig .venv/etc/jupyter
	touch $@

demo: .venv/installed
	$(BIN)/vmae-lab run notebooks/ablation_decoder_mask.ipynb --scale demo

ablations: .venv/installed
	$(BIN)/vmae-lab run $(NOTEBOOKS) --scale $(SCALE)

# To commit the index: vmae-lab report --for-git, which links to nothing that a clone will not have.
reports: .venv/installed
	$(BIN)/vmae-lab report

# A worker runs a whole file, since its tests share data and stages; tests/conftest.py orders the files. One thread
# each: two threads that wait for each other on the same core take many times as long.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: .venv/installed
	$(PYTEST)

# While working: everything that is quick.
check: lint
	$(PYTEST) -m 'not slow'

coverage: .venv/installed
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

# The root is the project, so that links lead to all of its files. More options: make lab ARGS='--no-browser --port 8890'
lab: .venv/installed
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --FileContentsManager.preferred_dir="$(CURDIR)/notebooks" $(ARGS)

# The documentation site, from nothing each time; a warning or a broken link is an error.
docs: .venv/installed
	rm -rf build/docs
	$(BIN)/python -m sphinx -b html -c docs --fail-on-warning --keep-going --quiet . build/docs
	@echo "open $(CURDIR)/build/docs/index.html"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

clean:
	rm -rf .venv build dist .coverage* *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis reports/smoke
