"""Evaluation: detections of a dataset, and COCO average precision."""
