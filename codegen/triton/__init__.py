"""Programs for GPUs: the regions of a packed graph as Triton kernels, compiled ahead of time. Start at `emit`."""
