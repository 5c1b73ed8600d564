"""The public functions, one module for each command: arguments are checked first, then the work is done."""
