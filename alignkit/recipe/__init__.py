"""Private: turns a file and flags into a checked recipe."""
