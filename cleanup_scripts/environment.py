"""Imported before `bert`: where this project is not installed, it says what to do. Never run."""

import importlib.util
import sys

if importlib.util.find_spec("bert") is None:
    sys.exit(
        f"error: No module named 'bert': {sys.executable} does not have this project's packages; "
        "type `source .venv/bin/activate`, or first ./setup.sh, which makes .venv"
    )
