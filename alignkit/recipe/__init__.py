"""Private: from a file and flags to a checked recipe."""
