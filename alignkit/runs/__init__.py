"""Private: the plan of a run, its stages, its directory, its evaluation and its reports."""
