"""Over-optimisation: gold and the learned reward against KL, the laws of Gao et al. 2023 fitted to them, frontiers."""
