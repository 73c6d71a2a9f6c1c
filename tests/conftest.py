"""What every test shares: eight virtual devices, the compilation cache, the development data."""

import os
import pathlib

# Before jax starts its backend: sharding is tested on CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

# Compiling is what is slow in this suite; the second run finds it done.
CACHE = pathlib.Path(__file__).parent.parent / ".cache" / "jax"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The development data's folder; tests that need it skip where it is not given."""
    folder = os.environ.get("RETINANET_JAX_TEST_DATA")
    if not folder:
        pytest.skip("RETINANET_JAX_TEST_DATA names no folder")
    return pathlib.Path(folder)
