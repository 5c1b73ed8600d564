"""The benchmark runner in C for devices without Python, and the Python code that compiles and controls it."""
