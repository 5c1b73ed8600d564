"""The foundation of every package: errors, files and caches, progress, array types, and running users' code."""
