"""What is measured beside rewards, KL and length: pure functions of texts, scores and log-probabilities.

A figure of one run is a value per prompt, [P], whose mean is the figure and whose spread says how sure it is. So one
kind of interval and of test (`compare.statistics`) holds for all of them, over seeds too.
"""
