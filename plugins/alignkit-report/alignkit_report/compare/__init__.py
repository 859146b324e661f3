"""`alignkit compare`: several algorithms on one recipe, under one budget, over several seeds."""
