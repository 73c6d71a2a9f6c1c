"""The benchmark of the detector and of the input pipeline; docs/benchmark.md describes it."""

import os

# Otherwise idle worker threads of torch's OpenMP would spin and keep the cores from XLA. The
# variables are read when torch is loaded, and importing tensorboardX loads it.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
