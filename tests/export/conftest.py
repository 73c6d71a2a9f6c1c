"""A detector to export that costs nothing to build."""

import pytest
from export_examples import CATEGORIES

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.export.servable import Servable


@pytest.fixture
def servable(toy_config, tmp_path) -> Servable:
    """A detector without weights, for tests that do not run the network."""
    folder = tmp_path / "run" / "checkpoints" / "12"
    return Servable(Checkpoint({}, toy_config, CATEGORIES, 12, folder), (64, 96), None)
