# `make demo` and `make test` need git and Python 3.11 or newer; they set up the rest in .venv.
PYTHON ?= python3
WORKERS ?= 5
PRESET ?= rapidocr
PREDICTIONS ?= none
SECONDS ?= 3
REPEATS ?= 3
TASKS ?= 200
OUTAGE ?= 30
VENV := .venv/bin
GATE = make test
# With 1 a test that is skipped is one that failed: nothing that it needs may be missing.
REQUIRE_ALL ?=

# Where it is set, each of the thousands of starts in the tests would compile what it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test golden docs bench trials release clean

demo:
	@$(PYTHON) tools/demo.py '$(PRESET)' '$(PREDICTIONS)'

test: .venv/complete
	$(VENV)/ruff format --check .
	$(VENV)/ruff check .
	$(VENV)/mypy
	$(VENV)/zizmor --offline .github/workflows
	$(VENV)/actionlint
	REQUIRE_ALL=$(REQUIRE_ALL) $(VENV)/pytest --numprocesses $(WORKERS) --dist loadgroup

golden: .venv/complete
	$(VENV)/python -m tools.golden

docs: .venv/complete
	$(VENV)/python -m tools.docs_prompts
	$(VENV)/python -m tools.docs_reference

bench: .venv/complete
	@$(VENV)/python -m benchmarks.bench --only '$(ONLY)' --subjects '$(SUBJECTS)' --seconds '$(SECONDS)' --repeats '$(REPEATS)'

trials: .venv/complete
	@$(VENV)/python -m benchmarks.trials --tasks '$(TASKS)' --outage '$(OUTAGE)'

release:
	@$(PYTHON) tools/release.py '$(VERSION)' --gate '$(GATE)' $(if $(CHECK),--dry-run)

.venv/complete: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv --clear .venv
	$(VENV)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(VENV)/uv pip install --quiet --python $(VENV)/python --constraint constraints.txt --group dev --group lint
	touch $@

clean:
	rm -rf .venv .cache .demo
