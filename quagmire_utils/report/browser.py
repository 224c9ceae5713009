"""Pictures of a page, taken by a headless Chromium: for the README, and for looking at pages in tests."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.report.plots.look import shrink_picture

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
WINDOW = (1280, 1500)  # of the README's picture
PATIENCE = 240  # seconds; a loaded two-core machine takes many


def chromium(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a headless Chromium with these command-line options; return its output once it has ended.

    Raises ParameterError if the machine has no Chromium, and RuntimeError if it fails.
    """
    program = next((path for path in map(shutil.which, (*NAMES, MAC)) if path), None)
    if program is None:
        raise ParameterError("chromium", reason=f"this needs a Chromium or Chrome on the PATH ({', '.join(NAMES)})")
    fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    fixed += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"]
    with tempfile.TemporaryDirectory(prefix="quagmire-chromium-", ignore_cleanup_errors=True) as profile:
        command = [program, *fixed, f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed: {' '.join(done.stderr.strip().splitlines()[-3:])}")
    return done


def take_screenshot(page: Path, target: Path) -> Path:
    """Write a PNG of the page at desktop width with a palette of 256 colours, a third of the size; return its path."""
    light = "--blink-settings=preferredColorScheme=1"
    chromium(page, f"--window-size={WINDOW[0]},{WINDOW[1]}", light, f"--screenshot={target.resolve()}")
    shrink_picture(target)
    return target
