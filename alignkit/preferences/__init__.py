"""What is known about labels: single verdicts, agreement, fitted rankings, near-duplicates. Free of torch."""
