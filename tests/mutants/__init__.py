"""Wrong versions of the mathematics, one at a time, each of which some test must find: `make mutants`."""
