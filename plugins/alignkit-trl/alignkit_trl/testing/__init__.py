"""Parity with TRL: both libraries take the same steps on the same weights and tokens."""
