"""Compiled programs on NVIDIA GPUs: a launch plan, its cubins and the weights. Start at `program`.

Needs the driver (libcuda) and numpy, neither torch nor Triton nor a compiler.
"""
