"""From `jupyter lab` to the first plot: how long a learner waits who has just come.

    taskset -c 0 .venv/bin/python tools/cold_start.py

It starts JupyterLab in a home of its own, so that nothing is in any cache of the user's, asks it for a kernel, and runs
the welcome section up to its first picture. Files may be in the kernel's page cache; the browser's part is not in it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from jupyter_client.blocking.client import BlockingKernelClient
from rehearse_class import cpu_s, families

ROOT = Path(__file__).resolve().parent.parent
WELCOME = ROOT / "notebooks/00_introduction/01_welcome.ipynb"
WAIT_S = 120


def first_cells() -> list[str]:
    """The code cells up to the first one that plots."""
    cells = json.loads(WELCOME.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    last = next(number for number, source in enumerate(sources) if "plot_ladder(" in source)
    return sources[: last + 1]


def started(home: Path) -> dict[str, str]:
    """Wait until JupyterLab listens: address and token."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        for file in home.glob("jpserver-*.json"):
            if (text := file.read_text()).endswith("}"):
                return dict(json.loads(text))
        time.sleep(0.01)
    raise TimeoutError(f"JupyterLab did not start within {WAIT_S} s")


def run(client: BlockingKernelClient, source: str) -> tuple[float, bool]:
    """Seconds that a cell takes, and whether it showed a picture."""
    start = time.monotonic()
    pictures = []

    def look(message: dict[str, object]) -> None:
        pictures.append("image/" in json.dumps(message["content"], default=str))

    reply = client.execute_interactive(source, timeout=WAIT_S, output_hook=look)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"{source}\n{reply['content']}")
    return time.monotonic() - start, any(pictures)


def main() -> None:
    """Measure, and print a line for each part and the sum."""
    with tempfile.TemporaryDirectory(prefix="cold-start-") as folder:
        home = Path(folder)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "JUPYTER"))}
        environment |= {"HOME": folder, "JUPYTER_RUNTIME_DIR": folder}
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
        command += ["--ServerApp.port=0", f"--ServerApp.root_dir={ROOT}"]
        begin = time.monotonic()
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            told = started(home)

            def ask(path: str, data: bytes | None = None) -> bytes:
                request = urllib.request.Request(told["url"] + path, data, {"Authorization": f"token {told['token']}"})
                with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
                    return bytes(answer.read())

            while True:
                try:
                    ask("lab")
                except urllib.error.URLError:  # the file is there a moment before the port is
                    time.sleep(0.01)
                else:
                    break
            print(f"{time.monotonic() - begin:6.2f} s  jupyter lab, until it answers")
            at = time.monotonic()
            body = {"name": "python3", "path": str(WELCOME.parent.relative_to(ROOT))}
            kernel = json.loads(ask("api/kernels", json.dumps(body).encode()))["id"]
            client = BlockingKernelClient(connection_file=str(home / f"kernel-{kernel}.json"))
            client.load_connection_file()
            client.start_channels(hb=False)  # on a busy machine a kernel that misses a heartbeat is only slow
            client.wait_for_ready(timeout=WAIT_S)
            print(f"{time.monotonic() - at:6.2f} s  a kernel, until it is ready")
            for source in first_cells():
                took, picture = run(client, source)
                print(f"{took:6.2f} s  {source.strip().splitlines()[-1]}")
                if picture:
                    break
            computed = cpu_s(families([server.pid])[server.pid])
            print(f"{time.monotonic() - begin:6.2f} s  in all, from `jupyter lab` to the first plot")
            print(f"{computed:6.2f} s  of that the processor computed for it; on a busy machine the rest is waiting")
            client.stop_channels()
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
