"""Evaluation: detections of a dataset and their COCO metrics."""
