"""Reports to send around: a run, a comparison or a file of preferences as one page, or as text, data and pictures."""
