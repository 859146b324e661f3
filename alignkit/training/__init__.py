"""Private: the training loop with its feeds, companions and checkpoints."""
