"""Studies of training: a residual network for digits, and what every technique makes of it."""
