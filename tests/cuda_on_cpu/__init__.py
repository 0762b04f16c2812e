"""Runs the project's CUDA sources on the CPU: each CUDA thread a fiber, mistakes are errors."""
