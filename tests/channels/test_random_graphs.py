"""Random cuts of random small graphs of the table's operators give the same bits as the masked graph."""

import numpy as np
import pytest
import small_models
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from toolchain.channels.cut import separate
from toolchain.channels.groups import groups
from toolchain.channels.layout import layout
from toolchain.channels.proof import verify_cuts

UNARY = ["Relu", "Sigmoid", "Tanh", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Softplus", "Neg", "Abs", "Erf"]
WIDTHS = st.sampled_from([2, 3, 4, 6, 8, 12])


class Graph:
    """Nodes as text over images of 4 x 4; pool: names of tensors by their channels, the last made behind."""

    def __init__(self, draw):
        self.draw, self.nodes, self.constants, self.count = draw, [], {}, 0
        self.rng = np.random.default_rng(draw(st.integers(0, 1000)))
        self.pool = []
        self.add("Conv<kernel_shape = [1, 1]>", ["x", self.weight(size := draw(WIDTHS), 3, 1, 1)], size)

    def name(self, prefix):
        self.count += 1
        return f"{prefix}{self.count}"

    def weight(self, *shape):
        name = self.name("w")
        self.constants[name] = self.rng.standard_normal(shape).astype(np.float32)
        return name

    def ints(self, *numbers):
        name = self.name("i")
        self.constants[name] = np.array(numbers, np.int64)
        return name

    def node(self, op, inputs, outputs=1):
        made = [self.name("t") for _ in range(outputs)]
        name, _, attributes = op.partition("<")
        suffix = f"<{attributes}" if attributes else ""
        self.nodes.append(f"[n{self.count}] {', '.join(made)} = {name}{suffix}({', '.join(inputs)})")
        return made

    def add(self, op, inputs, channels):
        self.pool.append((self.node(op, inputs)[0], channels))

    def pick(self, *sizes):
        """A tensor, of one of these sizes where some are given; recent ones first."""
        fit = [item for item in reversed(self.pool) if not sizes or item[1] in sizes]
        return self.draw(st.sampled_from(fit[:4]))


def conv(g):
    x, size = g.pick()
    group = g.draw(st.sampled_from([d for d in (1, 1, 2, 3, size) if size % d == 0]))
    outer = group * g.draw(st.integers(1, 4))
    kernel = g.draw(st.sampled_from([1, 3]))
    bias = [g.weight(outer)] if g.draw(st.booleans()) else []
    pads = ", ".join(["1" if kernel == 3 else "0"] * 4)
    head = f"kernel_shape = [{kernel}, {kernel}], pads = [{pads}], group = {group}"
    if g.draw(st.booleans()):
        g.add(f"Conv<{head}>", [x, g.weight(outer, size // group, kernel, kernel), *bias], outer)
    else:
        g.add(f"ConvTranspose<{head}>", [x, g.weight(size, outer // group, kernel, kernel), *bias], outer)


def unary(g):
    x, size = g.pick()
    g.add(g.draw(st.sampled_from(UNARY)), [x], size)


def binary(g):
    x, size = g.pick()
    y, _ = g.pick(size)
    g.add(g.draw(st.sampled_from(["Add", "Mul", "Sub", "Max", "Min"])), [x, y], size)


def per_channel(g):
    x, size = g.pick()
    kind = g.draw(st.sampled_from(["norm", "slope", "constant", "instance"]))
    if kind == "norm":
        variance = g.weight(size)
        g.constants[variance] = np.abs(g.constants[variance]) + 1
        g.add("BatchNormalization", [x, *(g.weight(size) for _ in range(3)), variance], size)
    elif kind == "slope":
        g.add("PRelu", [x, g.weight(size, 1, 1)], size)
    elif kind == "constant":
        g.add("Mul", [x, g.weight(1, size, 1, 1)], size)
    else:
        g.add("InstanceNormalization", [x, g.weight(size), g.weight(size)], size)


def concat(g):
    parts = [g.pick() for _ in range(g.draw(st.integers(2, 3)))]
    if sum(size for _, size in parts) <= 24:
        g.add("Concat<axis = 1>", [x for x, _ in parts], sum(size for _, size in parts))


def split(g):
    x, size = g.pick()
    if size > 1:
        first = g.draw(st.integers(1, size - 1))
        made = g.node("Split<axis = 1>", [x, g.ints(first, size - first)], 2)
        g.pool += zip(made, (first, size - first), strict=True)


def part(g):
    x, size = g.pick()
    start = g.draw(st.integers(0, size - 1))
    end = g.draw(st.integers(start + 1, size))
    last = g.draw(st.sampled_from([end, end - size] if end < size else [end, 2**63 - 1]))
    first = g.draw(st.sampled_from([start, start - size]))
    g.add("Slice", [x, g.ints(first), g.ints(last), g.ints(g.draw(st.sampled_from([1, -3])))], end - start)


def pad(g):
    x, size = g.pick()
    before, behind = g.draw(st.integers(0, 2)), g.draw(st.integers(0, 2))
    g.add("Pad", [x, g.ints(0, before, 0, 0, 0, behind, 0, 0)], size + before + behind)


def shuffle(g):
    x, size = g.pick()
    groups = g.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    (rows,) = g.node("Reshape", [x, g.ints(1, groups, size // groups, 4, 4)])
    (turned,) = g.node("Transpose<perm = [0, 2, 1, 3, 4]>", [rows])
    g.add("Reshape", [turned, g.ints(1, -1, 4, 4)], size)


def grouped_norm(g):
    x, size = g.pick()
    groups = g.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    (rows,) = g.node("Reshape", [x, g.ints(1, groups, size // groups * 16)])
    (normal,) = g.node("InstanceNormalization", [rows, g.weight(groups), g.weight(groups)])
    g.add("Reshape", [normal, g.ints(1, size, 4, 4)], size)


def squeeze(g):
    x, size = g.pick()
    inner = g.draw(st.integers(1, 4))
    (pooled,) = g.node("GlobalAveragePool", [x])
    (down,) = g.node("Conv", [pooled, g.weight(inner, size, 1, 1)])
    (up,) = g.node("Conv", [*g.node("Relu", [down]), g.weight(size, inner, 1, 1), g.weight(size)])
    g.add("Mul", [x, *g.node("Sigmoid", [up])], size)


def tokens(g):
    x, size = g.pick()
    outer = g.draw(WIDTHS)
    (rows,) = g.node("Transpose<perm = [0, 2, 1]>", g.node("Reshape", [x, g.ints(0, size, 16)]))
    (made,) = g.node("MatMul", [rows, g.weight(size, outer)])
    (columns,) = g.node("Transpose<perm = [0, 2, 1]>", g.node("Add", [made, g.weight(outer)]))
    g.add("Reshape", [columns, g.ints(1, outer, 4, 4)], outer)


def pixels(g):
    x, size = g.pick()
    mode = g.draw(st.sampled_from(["DCR", "CRD"]))
    (small,) = g.node("SpaceToDepth<blocksize = 2>", [x])
    g.add(f'DepthToSpace<blocksize = 2, mode = "{mode}">', [small], size)


def pool(g):
    x, size = g.pick()
    g.add("MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>", [x], size)


STEPS = [conv, conv, unary, binary, per_channel, concat, split, part, pad, shuffle, grouped_norm, squeeze, tokens,
         pixels, pool]  # fmt: skip


@st.composite
def graphs(draw):
    g = Graph(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9)):
        step(g)
    ends = g.pool[-3:]
    (x,) = g.node("Concat<axis = 1>", [x for x, _ in ends])
    size = sum(size for _, size in ends)
    if draw(st.booleans()):
        (y,) = g.node("Conv", [x, g.weight(3, size, 1, 1)])
    else:
        (y,) = g.node("Gemm", [*g.node("Flatten", [x]), g.weight(16 * size, 3), g.weight(3)])
    body = " ".join(g.nodes).replace(f"{y} = ", "y = ")
    model = small_models.model(body, "float[1, 3, 4, 4] x", "y", g.constants)
    return separate(model)


def cut_at_random(model, data):
    found = [group for group in groups(model, layout(model)) if group.free]
    cuts = {
        group.name: sorted(data.draw(st.sets(st.integers(0, group.size - 1), min_size=1), label=group.name))
        for group in found
    }
    event("something is cut" if any(len(cuts[group.name]) < group.size for group in found) else "nothing is cut")
    result = verify_cuts(model, cuts)
    assert result.mismatches == ()
    assert result.exact
    assert result.identical


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@settings(max_examples=30, deadline=None, suppress_health_check=QUIET)
@given(graphs(), st.data())
def test_random_cuts_of_random_graphs(model, data):
    cut_at_random(model, data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=QUIET)
@given(graphs(), st.data())
def test_a_thousand_random_cuts_of_random_graphs(model, data):
    cut_at_random(model, data)
