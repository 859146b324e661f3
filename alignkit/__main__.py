"""`python -m alignkit`, which `accelerate launch -m alignkit` uses."""

from alignkit.cli import main

main()
