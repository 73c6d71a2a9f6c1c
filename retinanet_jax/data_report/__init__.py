"""The dataset report: the problems of a dataset, and the anchors and buckets that fit it."""
