"""The dataset report: what is wrong with a dataset, and which anchors and buckets fit it."""
