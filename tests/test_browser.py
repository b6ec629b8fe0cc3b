"""A notebook in JupyterLab, in a browser: opened, run, its slider moved; where Playwright and Chromium are there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
ROOT = Path(__file__).parent.parent
NAME = "00_start_here"
MINUTE = 60_000  # ms
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are drawn, not those in view alone
    "apputils-extension/notification": {"fetchNews": "false"},  # it would ask
}


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab of its own, over a copy of the notebooks."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    for name, setting in SETTINGS.items():
        file = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(setting))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token="]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **{f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("CONFIG", "RUNTIME")},
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
    }
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", *command], cwd=tmp_path / "notebooks", env=environment, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api/status").close()
                break
            except urllib.error.URLError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        yield address
    finally:
        server.kill()
        server.wait()
        log.close()


def test_run_all_and_move_the_slider(lab, tmp_path):
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.goto(f"{lab}/lab/tree/{NAME}.ipynb?reset", timeout=2 * MINUTE)
        page.locator(".jp-NotebookPanel").wait_for(timeout=2 * MINUTE)
        page.get_by_text("| Idle").wait_for(timeout=MINUTE)  # of the kernel, in the status bar
        page.get_by_role("menuitem", name="Run", exact=True).click(timeout=MINUTE)
        page.get_by_role("menuitem", name="Restart Kernel and Run All Cells").click(timeout=MINUTE)
        page.locator(".jp-Dialog .jp-mod-accept").click(timeout=MINUTE)
        handle = page.locator(".widget-slider .noUi-handle").first
        handle.wait_for(timeout=2 * MINUTE)
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(prompt => prompt.innerText)"
        page.wait_for_function(f"{prompts}.every(text => /[0-9]/.test(text))", timeout=2 * MINUTE)
        handle.scroll_into_view_if_needed()
        image, readout = page.locator(".widget-image").first, page.locator(".widget-readout").first
        before, number = image.get_attribute("src"), int(readout.inner_text())
        handle.focus()
        handle.press("ArrowRight")
        page.wait_for_function("src => document.querySelector('.widget-image').src !== src", arg=before, timeout=MINUTE)
        assert int(readout.inner_text()) == number + 1
        page.screenshot(path=tmp_path / "slider.png")
        page.keyboard.press("Control+s")
        page.locator(".jp-Document .jp-mod-dirty, .jp-mod-current.jp-mod-dirty").wait_for(state="detached")
        browser.close()
    saved = tmp_path / "notebooks" / f"{NAME}.ipynb"
    for _ in range(60):
        cells = [cell for cell in json.loads(saved.read_text())["cells"] if cell["cell_type"] == "code"]
        if all(cell["execution_count"] for cell in cells):
            break
        time.sleep(0.5)
    errors = [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert not errors and all(cell["execution_count"] for cell in cells)
