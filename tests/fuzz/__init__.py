"""Mutated inputs: whatever reads them takes them or refuses them with InputError, and nothing else.

`python -m tests.fuzz` runs for as long as it is told (`make fuzz ARGS="--seconds 600"`), tests/test_fuzz.py runs a few
hundred examples. An example is (target, number): the same numbers make the same inputs.
"""
