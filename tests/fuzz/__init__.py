"""Mutated inputs: whatever reads them takes them or refuses them with InputError, and nothing else.

- targets.py: structures that are changed and written in every format. `python -m tests.fuzz` runs for as long as it is
  told (`make fuzz ARGS="--seconds 600"`), tests/test_fuzz.py runs a few hundred examples. An example is (target,
  number): the same numbers make the same inputs.
- raw.py: bytes. guided.py has atheris look for inputs that reach something new; they are kept in corpus/, from which
  long.py makes millions more (`make fuzz-long`).
"""
