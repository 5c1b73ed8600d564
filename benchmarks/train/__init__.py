"""Studies of training techniques on a residual network for digits and on MobileNetV2."""
