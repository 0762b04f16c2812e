"""Runs the project's CUDA sources on the CPU: each CUDA thread is a fiber, and mistakes of a kernel are errors."""
