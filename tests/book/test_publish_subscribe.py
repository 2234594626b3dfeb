"""The section on publish–subscribe on a machine without RabbitMQ."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from notebook_run import Notebook

ROOT = Path(__file__).resolve().parents[2]
# Where a broker may be, without it: labkit.services.rabbitmq looks there, and on PATH.
HIDE = """
for each in /usr/lib/rabbitmq /usr/sbin/rabbitmq-server; do
    [ -d $each ] && mount -t tmpfs none $each
    [ -f $each ] && mount --bind /dev/null $each
done
exec "$@"
"""


@pytest.mark.timeout(300)
def test_the_notebook_passes_without_rabbitmq(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """What needs it shows the recorded run, with the outputs that are stored."""
    prefix = ("unshare", "-Urm", "sh", "-c", HIDE, "sh")
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0:
        pytest.skip("hiding it needs user namespaces")
    notebook = ROOT / "notebooks/01_patterns/07_publish_subscribe.ipynb"
    run: Notebook = Notebook.from_parent(request.session, path=notebook)
    run.prefix = prefix
    run.variables = {"HOME": str(tmp_path), "LABKIT_HOME": str(tmp_path / "labkit")}
    said = "".join(str(cell.test_outputs) for cell in run.run())
    assert "sudo apt-get install rabbitmq-server" in said
