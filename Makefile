# `make test` and `make demo` work in a fresh clone: they set up .venv first, and again when the requirements change.
PYTHON ?= python3
READY := .venv/.ready
CHECKED := rovrm data_selection eval tests

.PHONY: setup test test-newest demo lint clean

setup: $(READY)

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

# Each test file goes to one of the two processes as a whole, so that what it sets up is set up once.
test: $(READY)
	HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 .venv/bin/python -m pytest -n 2 --dist loadfile

# With the newest transformers of setup.cfg's range; constraints.txt pins the oldest.
test-newest: $(READY)
	.venv/bin/python -m pip install --no-deps --upgrade --target .venv/newest transformers==5.24.0
	PYTHONPATH=.venv/newest HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 .venv/bin/python -m pytest -n 2 --dist loadfile

demo: $(READY)
	.venv/bin/python -m rovrm.train phase=1..3 caption.data='world:caption?n=3072&families=faithful' \
	  caption.select=capped_ot caption.n=1024 selection.targets=512 selection.representatives=random
	.venv/bin/python -m rovrm.bon --n 8

lint: $(READY)
	.venv/bin/ruff check $(CHECKED)
	.venv/bin/pyright rovrm data_selection eval

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +
