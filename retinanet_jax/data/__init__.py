"""The input pipeline without a config: sources, plans, transforms, batches; numpy and tf.data."""
