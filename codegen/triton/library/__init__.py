"""Device functions that generated kernels call. Importing a module of this package needs triton."""
