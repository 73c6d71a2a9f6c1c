"""Evaluation: detections of a dataset or of image files, and COCO average precision."""
