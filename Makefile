# `make` alone says what there is. Everything is made inside this checkout, in .venv.
.PHONY: help env lab test test-all lock clean

help:
	@echo "make lab       JupyterLab on the first notebook, only for this machine (ARGS=... for JupyterLab)"
	@echo "make test      lint, types, tests and every notebook (ARGS=... for pytest)"
	@echo "make test-all  the same, and every notebook on every tier and as every user: for a release, and each night"
	@echo "make env       only the environment, .venv (PYTHON=... chooses the interpreter)"
	@echo "make lock      requirements.txt from both pyproject.toml, by uv (ARGS=--upgrade for newer versions)"
	@echo "make clean     remove .venv and all caches"

env:
	@sh tools/make-env

lab: env
	.venv/bin/jupyter lab --ip=127.0.0.1 $$([ "$$(id -u)" != 0 ] || echo --allow-root) \
	    --ServerApp.root_dir='$(CURDIR)' \
	    --LabApp.default_url=/lab/tree/notebooks/00_introduction/01_welcome.ipynb $(ARGS)

test: env
	@sh tools/system-packages
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pytest -n 4 $(ARGS)

test-all: override ARGS += --full
test-all: test

lock:
	@PATH="$$PATH:.venv/bin" uv pip compile --quiet --universal --extra test --annotation-style line \
	    --custom-compile-command "make lock" --output-file requirements.txt pyproject.toml book/pyproject.toml $(ARGS)

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
	find . -name .git -prune -o '(' -name __pycache__ -o -name .ipynb_checkpoints -o -name .ruff_cache ')' \
	    -prune -exec rm -rf {} +
