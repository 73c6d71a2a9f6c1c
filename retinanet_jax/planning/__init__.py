"""What the training step or the detection needs on devices that are not here."""
