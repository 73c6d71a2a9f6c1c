"""Training: the objective, the optimizer, the initial state, the step and the loop around it."""
