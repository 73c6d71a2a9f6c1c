"""From pictures and boxes on disk to batches: sources, the plan, transforms, the pipeline."""
