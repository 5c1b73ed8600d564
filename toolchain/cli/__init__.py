"""The command line: arguments in, one function of :mod:`toolchain.api` called, its result shown."""
