"""A detector for tests of the export that do not run the network."""

import pytest
from export_examples import CATEGORIES

from retinanet_jax.checkpoint import Checkpoint
from retinanet_jax.export.servable import Servable


@pytest.fixture
def servable(toy_config, tmp_path) -> Servable:
    """A detector without weights, which takes no time to build."""
    folder = tmp_path / "run" / "checkpoints" / "12"
    checkpoint = Checkpoint({}, toy_config.copy_and_resolve_references(), CATEGORIES, 12, folder)
    return Servable(checkpoint, toy_config, (64, 96), None)
