"""The book in a real JupyterLab, in a real browser, as a learner uses it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARTEFACTS = ROOT / "test-artefacts"
RUN_MS = 90_000
TERMINAL = """from labkit import Lab
lab = Lab(rtt_ms=4, name="terminal")
lab.server.terminal()"""


@pytest.fixture(scope="module")
def jupyterlab(
    chromium: Any, jupyterlab_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A JupyterLab on a copy of the notebooks, where there is a browser to open it; its address with the token."""
    home = tmp_path_factory.mktemp("jupyterlab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    cell = {"cell_type": "code", "source": TERMINAL, "metadata": {}, "outputs": [], "execution_count": None, "id": "a"}
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": [cell]}
    (home / "notebooks/terminal.ipynb").write_text(json.dumps(notebook))
    settings = home / "settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    # Else JupyterLab takes cells that are out of sight out of the page.
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    with jupyterlab_in(home) as about:
        yield f"{about['url']}lab/tree/NOTEBOOK?token={about['token']}&reset"


def open_and_run(chromium: Any, jupyterlab: str, notebook: str) -> Any:
    """Open a notebook, run all of its cells, and wait until the last one has run."""
    page = chromium.new_page(viewport={"width": 1280, "height": 1400})
    page.goto(jupyterlab.replace("NOTEBOOK", f"notebooks/{notebook}"), timeout=RUN_MS)
    wait_for_kernel(page, notebook)
    page.evaluate("window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    run_all(page)
    return page


def wait_for_kernel(page: Any, notebook: str) -> None:
    """Wait until a notebook is open and its kernel has nothing to do."""
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell", timeout=RUN_MS)
    # "Run all" before the kernel is there runs nothing and says nothing; before ipywidgets has asked the kernel for
    # its widgets, none of them is shown. Answers come in order: ours says that theirs has come.
    page.wait_for_function(
        """async name => {
            const panel = window.jupyterapp.shell.currentWidget;
            if (!panel?.context?.path?.endsWith(name)) return false;
            await panel.sessionContext.ready;
            const kernel = panel.sessionContext.session?.kernel;
            await kernel?.info;
            await kernel?.requestCommInfo({target_name: 'jupyter.widget'});
            return kernel?.status === 'idle';
        }""",
        arg=notebook,
        timeout=RUN_MS,
    )


def run_all(page: Any) -> None:
    """Run all cells, and wait until the last one has run."""
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
            const failed = document.querySelector('[data-mime-type$="jupyter.error"]');
            return failed || prompts.length > 0 && prompts.every(prompt => /\\[\\d+\\]/.test(prompt.textContent));
        }""",
        timeout=RUN_MS,
    )
    complaints = page.locator('[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type$="jupyter.error"]')
    assert complaints.all_inner_texts() == []


def cell(page: Any, text: str) -> Any:
    """The code cell in whose source this stands."""
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=text))


def rewrite_and_run(page: Any, text: str, source: str, expected: str) -> None:
    """Type another source into a cell as a learner does, run it, and wait for what it must say."""
    here = cell(page, text)
    here.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")
    here.locator(".jp-OutputArea", has_text=expected).wait_for(timeout=RUN_MS)


def keep_screenshot(page: Any, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTEFACTS / f"{name}.png"))


def alts(page: Any) -> list[str]:
    """The alternative texts of all pictures, which say what each shows."""
    return [text for text in page.locator(".jp-OutputArea img").evaluate_all("all => all.map(i => i.alt)") if text]


def test_the_learners_loop(chromium: Any, jupyterlab: str) -> None:
    """Predict, run, answer wrongly and rightly, take a hint, move the slider, come back another day."""
    welcome = "00_introduction/01_welcome.ipynb"
    page = open_and_run(chromium, jupyterlab, welcome)
    assert "tier: " in cell(page, "labkit.doctor()").locator(".jp-OutputArea").inner_text()
    assert any("SYN-ACK" in alt for alt in alts(page))
    cell(page, "plot_ladder(capture.ladder(acks=True), title=title)").first.scroll_into_view_if_needed()
    keep_screenshot(page, "welcome")

    panel = cell(page, "ask(connect_ms, who)")
    panel.locator("input[type=text]").fill("40")
    panel.locator("input[type=text]").press("Enter")
    panel.locator(".jp-OutputArea", has_text="kept: 40 ms").wait_for(timeout=RUN_MS)
    panel.get_by_role("button", name="the kernel").click()
    panel.locator(".jp-OutputArea", has_text="kept: 'the kernel'").wait_for(timeout=RUN_MS)
    panel.scroll_into_view_if_needed()
    keep_screenshot(page, "prediction")
    compared = "print(connect_ms.compare(measured_ms))\nprint(who.compare('the kernel'))"
    rewrite_and_run(page, "connect_ms.compare", compared, "You predicted 'the kernel', and were right.")
    assert "You predicted 40 ms" in cell(page, "connect_ms.compare").inner_text()

    exercise = 'flags = "{}"\n\nsection.FLAGS.check(flags)'
    rewrite_and_run(page, "section.FLAGS.check", exercise.format("S"), "also acknowledges the client's SYN")
    hints = cell(page, "section.FLAGS").last.locator("details", has_text="Hint 1")
    hints.locator("summary").click()
    assert hints.get_by_text("second packet of the capture").is_visible()
    hints.scroll_into_view_if_needed()
    keep_screenshot(page, "exercise")
    rewrite_and_run(page, "section.FLAGS.check", exercise.format("SA"), "✓ right")

    slider = cell(page, "interact(explore")
    slider.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    slider.locator('img[alt^="connect over 45 ms"]').wait_for(timeout=RUN_MS)

    page.reload()
    wait_for_kernel(page, welcome)
    # Without its promise, which waits for the dialog.
    page.evaluate("() => { window.jupyterapp.commands.execute('kernelmenu:restart'); }")
    page.get_by_role("button", name="Confirm Kernel Restart").click()
    wait_for_kernel(page, welcome)
    run_all(page)
    row = cell(page, "overview()").locator("tr", has=page.get_by_role("link", name="Welcome"))
    assert "✓" in row.inner_text()
    assert "Go on here: Request–response" in cell(page, "overview()").inner_text()
    assert cell(page, "ask(connect_ms, who)").locator("input[type=text]").input_value() == "40"
    cell(page, "overview()").scroll_into_view_if_needed()
    keep_screenshot(page, "overview")
    page.close()


def test_the_race(chromium: Any, jupyterlab: str) -> None:
    page = open_and_run(chromium, jupyterlab, "03_https/08_the_race.ipynb")
    assert any("quic-0rtt 1." in alt for alt in alts(page))
    page.locator('img[alt*="waits"]').first.scroll_into_view_if_needed()
    keep_screenshot(page, "race-plot")

    page.locator(".widget-dropdown select").select_option("quic")
    page.wait_for_selector('img[alt^="quic: "]', timeout=RUN_MS)
    page.locator(".widget-dropdown").scroll_into_view_if_needed()
    keep_screenshot(page, "race-ladder")

    assert any(alt.startswith("At 40 ms") for alt in alts(page))
    page.locator(".widget-slider .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector('img[alt^="At 45 ms"]', timeout=RUN_MS)
    page.locator(".widget-slider").scroll_into_view_if_needed()
    keep_screenshot(page, "race-slider")
    page.close()


def test_the_queues_live(chromium: Any, jupyterlab: str) -> None:
    """The view follows the server while it runs, and ends with all that happened; a slider moves the queues."""
    page = open_and_run(chromium, jupyterlab, "04_execution/02_accept_queues.ipynb")
    live = cell(page, "waved = wave(")
    # While the cell runs again the view is drawn again and again: collect what each picture says.
    live.evaluate(
        """cell => {
            window.seen = new Set();
            const look = () => cell.querySelectorAll('.widget-html img').forEach(i => window.seen.add(i.alt));
            new MutationObserver(look).observe(cell, {subtree: true, childList: true, attributes: true});
        }"""
    )
    live.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    page.wait_for_function("window.seen.size >= 3", timeout=RUN_MS)
    live.locator('.widget-html img[alt*="in 1."], .widget-html img[alt*="in 2."]').first.wait_for(timeout=RUN_MS)
    peaks = [re.findall(r"Accept queue (\d+)", alt) for alt in page.evaluate("[...window.seen]")]
    assert len({peak for found in peaks for peak in found}) >= 2
    live.scroll_into_view_if_needed()
    keep_screenshot(page, "queues-live")

    panel = cell(page, "interact(\n    explore")
    panel.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    panel.locator('img[alt^="24 clients, listen(9): 10 queued"]').wait_for(timeout=RUN_MS)
    panel.scroll_into_view_if_needed()
    keep_screenshot(page, "queues-slider")
    page.close()


def test_two_tabs_of_the_chat_talk_to_each_other(chromium: Any, jupyterlab: str) -> None:
    """The link that the notebook shows, opened twice; what one says over the lab's wire, both hear."""
    page = open_and_run(chromium, jupyterlab, "01_patterns/03_push.ipynb")
    link = cell(page, "Page(chat_server)").locator(".jp-OutputArea").get_by_role("link").first
    tabs = []
    for _ in range(2):
        with page.context.expect_page(timeout=RUN_MS) as opened:
            link.click()
        opened.value.locator('ol[data-open="yes"]').wait_for(state="attached", timeout=RUN_MS)
        tabs.append(opened.value)
    for tab, words in zip(tabs, ("goal for home", "and one for away"), strict=True):
        tab.get_by_placeholder("say something").fill(words)
        tab.keyboard.press("Enter")
        for each in tabs:
            each.get_by_text(words).wait_for(timeout=RUN_MS)
    assert all(tab.locator("li").all_inner_texts() == ["goal for home", "and one for away"] for tab in tabs)
    keep_screenshot(tabs[0], "chat")
    page.context.close()


def test_a_link_opens_a_terminal_on_a_host(chromium: Any, jupyterlab: str, until: Callable[..., None]) -> None:
    """What is typed there runs on the lab's server; with the lab the terminal ends."""
    page = open_and_run(chromium, jupyterlab, "terminal.ipynb")
    page.get_by_role("link", name="Open a terminal on server.lab").click()
    page.wait_for_selector(".jp-Terminal .xterm-screen", timeout=RUN_MS)
    page.locator(".jp-Terminal textarea").focus()
    page.keyboard.type("(ip -4 -o address show eth0; echo on $LABKIT_HOST) > found; mv found said.txt\n")
    found = "window.jupyterapp.serviceManager.contents.get('notebooks/said.txt').then(f => f.content, () => '')"
    until(lambda: page.evaluate(found), RUN_MS / 1000)
    said = page.evaluate(found)
    assert "192.0.2.2" in said and said.endswith("on server\n")
    keep_screenshot(page, "terminal")
    page.evaluate("window.jupyterapp.commands.execute('filebrowser:open-path', {path: 'notebooks/terminal.ipynb'})")
    rewrite_and_run(page, "Lab(rtt_ms=4", "lab.close()  # Lab(rtt_ms=4\nprint(lab.closed)", "True")
    running = "fetch('/api/terminals').then(answer => answer.json())"
    until(lambda: page.evaluate(running) == [], RUN_MS / 1000)
    page.close()
