"""Private: the training loop, what it is fed, what accompanies it, and what it writes down to resume."""
