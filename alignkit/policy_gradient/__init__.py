"""The base of policy-gradient Optimizers, and their common options, for any plugin. Importing it imports no torch."""
