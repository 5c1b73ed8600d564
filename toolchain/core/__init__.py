"""Basics that every package uses: errors, files and caches, progress, array types, and running users' code."""
