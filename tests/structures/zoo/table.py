"""The table of structures: small models, each of another structure, and what is expected of every one.

The rows are in the files of this folder, by kind. A row is a function that builds the model under a decorator that says
what is fed to it and what is expected:

    @row(image(3, 32), parts={"y": [(1, 0, 4), (1, 4, 9)]}, int8_at_least=3)
    def boxes_and_scores(n, x):
        f = n.conv(n.conv(x, 16, s=2), 32, s=2)
        return n.Concat(n.conv(f, 4, 1, act=None, gain=80.0), n.conv(f, 5, 1, act="Sigmoid"), axis=1)

To add one:

1. Choose the file of its kind, a name that says what is particular about it, and inputs from `samples.py`. Sizes are
   small: a row takes about a second.
2. Write the body with the methods of `net.py`. Return a value, or a dictionary of values by the names of the outputs.
3. Say what is expected; `row.py` has the list. Declare in `parts` the pieces that a producer joined, and in `channels`
   the channel axis where it is not 1. A file that must be refused has the words of the sentence in `refused`.
4. Run `pytest tests/structures -k NAME`. A row belongs to the slow tier unless it says `fast=True`.
"""

from __future__ import annotations

from zoo import classifiers, detectors, files, front_ends, operators, pictures, recurrent, tables, transformers
from zoo.row import ROWS

__all__ = ["KINDS", "PENDING", "ROWS"]

KINDS = (detectors, front_ends, classifiers, pictures, transformers, recurrent, tables, files, operators)
"""The files of rows; importing one enters its rows."""

PENDING: dict[str, set[str]] = {
    "inspect": {"sequence_in_the_middle"},
    "optimize": {"sequence_in_the_middle"},
    "quantize": {
        "boxes_gathered_behind_top_k",
        "one_channel_a_thousand_times_larger",
        "sequence_in_the_middle",
    },
}
"""By step, the rows whose result is not right yet."""
