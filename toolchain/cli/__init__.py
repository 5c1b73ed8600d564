"""The command line. Each command calls one function of :mod:`toolchain.api` and shows its result."""
