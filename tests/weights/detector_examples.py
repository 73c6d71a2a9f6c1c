"""Small detectors of each library, and their import and export."""

from retinanet_jax import weights

SOURCES = {"torchvision_v1": 91, "torchvision_v2": 91, "detectron2": 80}  # and their outputs
SMALL = "toy"  # the fixture `small_architecture` defines it


def to_variables(source, arrays, *, num_outputs=None, architecture=SMALL, norm="frozen_batch"):
    return weights.DETECTOR_SOURCES[source](
        arrays,
        architecture=architecture,
        norm=norm,
        num_outputs=SOURCES[source] if num_outputs is None else num_outputs,
    )


def to_arrays(target, variables, num_outputs, architecture=SMALL):
    return weights.DETECTOR_TARGETS[target](
        variables, architecture=architecture, num_outputs=num_outputs
    )
