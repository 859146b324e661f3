"""Attention of packed groups, log-probabilities and KL without logits: pure functions of tensors."""
