"""`alignkit compare`: several algorithms on one recipe, under one budget, over several seeds."""

RESULTS = "comparison.json"
"""In a comparison's folder: what it came to."""
