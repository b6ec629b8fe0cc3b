"""What a checkout of the project has beside its packages. An installed copy does not have it: both are None there."""

from pathlib import Path

_root = Path(__file__).parents[1]
_here = (_root / "pyproject.toml").is_file()

MEASUREMENTS = _root / "notebooks" / "measurements" if _here else None
"""The folder of measured tables, which may not exist yet."""
README = _root / "README.md" if _here else None
