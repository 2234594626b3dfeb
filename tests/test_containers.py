"""What places without a checkout of their own are built from: Binder, the Dockerfile, the dev container."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BINDER = ROOT / "binder"
WELCOME = "notebooks/00_introduction/01_welcome.ipynb"
PYTHON = (BINDER / "runtime.txt").read_text().strip().removeprefix("python-")  # tests/test_project.py: a supported one
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def devcontainer() -> dict[str, Any]:
    """devcontainer.json, which may have comments."""
    text = (ROOT / ".devcontainer/devcontainer.json").read_text()
    return dict(json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)))


def instructions() -> list[str]:
    """The Dockerfile's instructions, each on one line."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines() if line]


def test_binder_has_nothing_that_repo2docker_would_take_for_something_else() -> None:
    names = {path.name for path in BINDER.iterdir()}
    assert names == {"apt.txt", "overrides.json", "postBuild", "requirements.txt", "runtime.txt"}


def test_binder_requirements_name_files_that_exist() -> None:
    lines = [line.partition("#")[0].split() for line in (BINDER / "requirements.txt").read_text().splitlines()]
    assert [line for line in lines if line] == [["-c", "../requirements.txt"], ["-e", "."], ["-e", "./book"]]
    assert (BINDER / "../requirements.txt").exists(), "the path counts from the file that names it"


def test_post_build_can_be_run() -> None:
    script = BINDER / "postBuild"
    assert os.access(script, os.X_OK)
    assert re.match(r"#!/bin/sh\n(#.*\n)*set -eu\n", script.read_text())
    subprocess.run(["sh", "-n", script], check=True)
    for name in re.findall(r"binder/[\w.]+", script.read_text()):
        assert (ROOT / name).exists(), name


def test_overrides_are_settings_that_jupyterlab_has() -> None:
    """JupyterLab ignores what it does not know, and the question about its news would be back."""
    commands = pytest.importorskip("jupyterlab.commands")
    for plugin, values in json.loads((BINDER / "overrides.json").read_text()).items():
        package, _, name = plugin.partition(":")
        schema = json.loads((Path(commands.get_app_dir()) / "schemas" / package / f"{name}.json").read_text())
        for key, value in values.items():
            allowed = [choice["const"] for choice in schema["properties"][key].get("oneOf", [])]
            assert value in allowed if allowed else type(value) is type(schema["properties"][key]["default"]), key


def test_badge_opens_the_welcome_section_of_this_version() -> None:
    links = re.findall(
        r"https://mybinder\.org/v2/gh/\S+?/\S+?/([^?\s]+)\?urlpath=([^)\s]+)", (ROOT / "README.md").read_text()
    )
    assert links == [(f"v{VERSION}", f"lab/tree/{WELCOME}")]
    assert (ROOT / WELCOME).exists()


def test_dockerfile_is_what_binder_is() -> None:
    lines = instructions()
    assert lines[0] == f"FROM python:{PYTHON}-slim-bookworm"
    copied = [
        word for line in lines if line.startswith("COPY") for word in line.split()[1:-1] if not word.startswith("-")
    ]
    assert copied == ["binder/apt.txt", "."]
    text = "\n".join(lines)
    for name in set(re.findall(r"(?<!\w)(?:binder|notebooks)/[\w./]+\w", text)):
        assert (ROOT / name).exists(), name
    assert "binder/requirements.txt" in text, "the lock"
    assert "binder/postBuild" in text
    assert f"/lab/tree/{WELCOME}" in lines[-1]
    assert not re.search(r"token|password", lines[-1]), "JupyterLab makes a token when none is set"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users[-1] == "1000", "nothing runs as root"


def test_docker_leaves_out_nothing_that_the_image_needs() -> None:
    left_out = (ROOT / ".dockerignore").read_text().splitlines()
    for needed in ("binder", "labkit", "notebooks", "requirements.txt", "pyproject.toml", "README.md", "LICENSE"):
        assert needed not in left_out
    for secret in (".git", ".venv"):
        assert secret in left_out


def test_dev_container() -> None:
    told = devcontainer()
    assert re.fullmatch(rf"\S+/python:\d+-{re.escape(PYTHON)}-\w+", str(told["image"]))
    assert told["postCreateCommand"] == "make env"
    assert told["forwardPorts"] == [8888]
    assert "--security-opt=seccomp=unconfined" in told["runArgs"]
