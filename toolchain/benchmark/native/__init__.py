"""The benchmark runner in C for devices without Python, and the Python side that builds and drives it."""
