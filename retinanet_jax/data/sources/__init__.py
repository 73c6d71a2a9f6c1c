"""Datasets in several formats, each of which is a `base.Source`."""
