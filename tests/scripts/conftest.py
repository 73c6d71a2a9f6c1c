"""The package `scripts` is not installed; tests import it from the project's folder."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
