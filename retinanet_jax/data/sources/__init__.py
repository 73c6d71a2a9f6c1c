"""Datasets in the formats that people have, each as a `base.Source`."""
