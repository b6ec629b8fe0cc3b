"""Where a command's last result is kept, and what goes with it: when, for how long, and with what it ran."""

import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

PACKAGES = {"PyTorch": "torch", "Triton": "triton", "Pillow": "pillow"}


def write(path: Path, lines: list[str], summary: str, started: float) -> None:
    """Prints the last line, and writes all: ``lines``, and ``summary`` of a run since ``started`` (time.monotonic)."""
    minutes = (time.monotonic() - started) / 60
    versions = ", ".join(f"{name} {version(package)}" for name, package in PACKAGES.items())
    last = f"\n{summary}; {date.today()}, {minutes:.0f} minutes, Python {platform.python_version()}, {versions}"
    print(last)
    path.write_text("\n".join([*lines, last]) + "\n")
