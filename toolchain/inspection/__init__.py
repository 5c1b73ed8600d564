"""What a model is made of: operators, cost, precision, channel groups, and how it fits a target. Nothing is
rendered.
"""
