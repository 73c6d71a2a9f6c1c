"""Fixtures of download hosts, and of state dicts with the shapes and values of state_dicts.py."""

import functools
import hashlib
import threading

import numpy as np
import pytest
import state_dicts
from detector_examples import SMALL, SOURCES
from download_host import Server

from retinanet_jax.models import ARCHITECTURES
from retinanet_jax.weights import download, named


@pytest.fixture
def server(monkeypatch):
    """The stand-in of the download hosts."""
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def places(monkeypatch, tmp_path):
    """An empty current folder, and an empty cache in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def publish(monkeypatch, server):
    """`publish(name, content)`: the digest of a file that the server has under a name."""

    def publish(name="torchvision_v2", content=b"weights"):
        file = named.DETECTORS[name].file
        server.files[file] = content
        digest = hashlib.sha256(content).hexdigest()[:8]
        known = download.Published(server.url(f"good/{file}"), "sha256", digest)
        monkeypatch.setitem(download.KNOWN, file, known)
        return digest

    return publish


@pytest.fixture(scope="session")
def zeros():
    """`zeros(architecture)`: a classifier's state dict that takes no memory."""

    def zeros(architecture):
        shapes = state_dicts.classifier_shapes(architecture)
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    return zeros


@pytest.fixture(scope="session")
def state_dict():
    """`state_dict(architecture, seed=0)`: a classifier's state dict, 0.05 to 0.4 GB."""

    def state_dict(architecture, seed=0):
        shapes = state_dicts.classifier_shapes(architecture)
        return {
            name: state_dicts.small_variance_value(name, shape, seed)
            for name, shape in shapes.items()
        }

    return state_dict


@pytest.fixture(scope="session")
def parity_arrays():
    """`parity_arrays(shapes, seed, cls_bias)`: the parity data's weights, from shapes by name."""

    def parity_arrays(shapes, seed=0, cls_bias=-5.0):
        return {
            name: state_dicts.parity_value(name, shape, seed, cls_bias)
            for name, shape in shapes.items()
        }

    return parity_arrays


@pytest.fixture(scope="module")
def small_architecture():
    """The architecture SMALL has four residual blocks: state dicts of 8 million numbers."""
    with pytest.MonkeyPatch.context() as patch:
        settings = {"stage_sizes": (1, 1, 1, 1), "bottleneck": False}
        patch.setitem(ARCHITECTURES, SMALL, settings)
        yield


@pytest.fixture(scope="module", params=SOURCES)
def source(request):
    return request.param


@pytest.fixture
def zero_arrays():
    """`zero_arrays(source, architecture, num_outputs)`: a detector that takes no memory."""

    def zero_arrays(source, architecture, num_outputs):
        shapes = state_dicts.detector_shapes(source, architecture, num_outputs)
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    return zero_arrays


@pytest.fixture(scope="module")
def arrays_of(small_architecture, parity_arrays):
    """`arrays_of(source, num_outputs)`: a seeded detector on the small architecture."""

    @functools.cache
    def cached(source, num_outputs):
        return parity_arrays(state_dicts.detector_shapes(source, SMALL, num_outputs))

    return lambda source, num_outputs=None: dict(cached(source, num_outputs or SOURCES[source]))


@pytest.fixture
def detector_file(small_architecture, tmp_path):
    """`detector_file(source, num_outputs, ...)`: the path of a small detector's state dict.

    Further arguments are those of `state_dicts.detector_shapes`; without them it is a detector of
    64 channels on the small architecture.
    """

    def detector_file(source, num_outputs, *, architecture=SMALL, channels=64, **network):
        path = tmp_path / "w.npz"
        shapes = state_dicts.detector_shapes(
            source, architecture, num_outputs, channels=channels, **network
        )
        arrays = {
            name: np.full(shape, 1 + index / 1000, np.float32)
            for index, (name, shape) in enumerate(shapes.items())
        }
        np.savez_compressed(path, **arrays)
        return str(path)

    return detector_file
