"""The doctor: `python -m retinanet_jax.inspect` looks at a data set before it is trained on."""
