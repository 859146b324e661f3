"""What a file of preferences is worth: the command `alignkit preferences report`. Importing it imports no torch."""
