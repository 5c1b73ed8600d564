"""Find the pairs of weights that saturate."""

import numpy as np

ACTIVATIONS = np.array([0, 255])


def packed(values, axis):
    """K by output channel, in the order of the packed kernel, spelt out element by element.

    A convolution's patch is gathered with channels last: all input channels of the first kernel position come first.
    """
    if values.ndim == 2:
        return values.T if axis == 0 else values
    columns = []
    for channel in values:
        positions = np.ndindex(*channel.shape[1:])
        columns.append([channel[(c, *where)] for where in positions for c in range(channel.shape[0])])
    return np.array(columns).T


def saturating_pairs(values, axis):
    """VPMADDUBSW on every pair of weights and the activations that drive it farthest: (exact, saturated) sums.

    Intel's manual, volume 2C: unsigned bytes of the first operand times signed bytes of the second, adjacent products
    added with signed saturation to 16 bits. Products are monotone in the activation, so 0 and 255 are the extremes.
    """
    columns = packed(values, axis).astype(np.int64)
    if len(columns) % 2:
        columns = np.vstack([columns, np.zeros_like(columns[:1])])  # the packing pads with zeros
    even, odd = columns[0::2], columns[1::2]
    sums = np.array([even * x + odd * y for x in ACTIVATIONS for y in ACTIVATIONS])
    return sums, np.clip(sums, -(2**15), 2**15 - 1)
