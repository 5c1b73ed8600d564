"""Time and memory of model files, in fresh processes taken in turn, here, over SSH, on a phone; or their answers
under emulation.
"""
