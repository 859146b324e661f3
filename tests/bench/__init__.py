"""Benchmarks against TRL: `make bench` on a CPU, `make bench-gpu` on one CUDA device."""
