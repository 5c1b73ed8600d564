"""Device profiles: the shipped ones, and one for this machine, detected."""
