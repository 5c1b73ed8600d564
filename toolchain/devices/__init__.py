"""Device profiles: those that are shipped, and this machine detected."""
