"""Bases to build algorithms on: losses on rankings, policy gradients, and passes without gradient."""
