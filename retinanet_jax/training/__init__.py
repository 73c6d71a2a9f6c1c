"""Training: objective, optimizer, initialization, step and loop."""
