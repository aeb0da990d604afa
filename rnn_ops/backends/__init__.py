"""The layer below the operators: finds kernels and runs them on raw arrays. Imports no MXNet."""
