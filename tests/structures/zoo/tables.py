"""Numbers of tables, users and things, graphs: networks without pictures and sound."""

from __future__ import annotations

import numpy as np

from zoo.row import row
from zoo.samples import N, as_type, chosen, dynamic, features, flags, positive, tokens

LAST = {"y": -1}


@row(features(dynamic("N", 8), 20), int8_at_least=3, fast=True)
def tabular_layers_with_batch_norm(n, x):
    y = n.batch_norm(x)
    for width in (32, 24):
        y = n.Relu(n.batch_norm(n.linear(y, width)))
    return n.linear(y, 3)


@row(features(N, 20), int8_at_least=4)
def columns_of_very_unlike_range(n, x):
    scale = np.geomspace(1e-3, 1e4, 20, dtype=np.float32)
    y = n.Div(n.Mul(x, scale), scale)
    for _ in range(2):
        y = n.Add(y, n.linear(n.linear(y, 32, act="Relu"), 20))
    return n.linear(y, 2)


@row(features(1, 12), tokens(30, 1, 4), int8_at_least=3, exported=True)
def wide_and_deep(n, numbers, ids):
    tables = [n.normal(30, 8) for _ in range(4)]
    columns = n.Split(ids, outputs=4, axis=1)
    deep = [n.Squeeze(n.Gather(table, column), [1]) for table, column in zip(tables, columns, strict=True)]
    y = n.linear(n.linear(n.Concat(*deep, numbers, axis=1), 32, act="Relu"), 16, act="Relu")
    return n.Sigmoid(n.Add(n.linear(y, 1), n.linear(numbers, 1)))


@row(tokens(50, N), tokens(80, N, dtype=np.int32), int8_at_least=2)
def users_and_things_in_two_towers(n, user, thing):
    a = n.linear(n.linear(n.Gather(n.normal(50, 16), user), 24, act="Relu"), 12)
    b = n.linear(n.linear(n.Gather(n.normal(80, 16), thing), 24, act="Relu"), 12)
    a, b = (n.Div(side, n.Clip(n.reduce("ReduceL2", side, [1]), 1e-6)) for side in (a, b))
    return n.reduce("ReduceSum", n.Mul(a, b), [1])


@row(tokens(40, 1, 6), features(1, 4), int8_at_least=2)
def factorization_of_pairs(n, ids, numbers):
    vectors = n.Gather(n.normal(40, 8), ids)
    square = n.Pow(n.reduce("ReduceSum", vectors, [1], 0), 2.0)
    pairs = n.Mul(n.Sub(square, n.reduce("ReduceSum", n.Mul(vectors, vectors), [1], 0)), 0.5)
    y = n.linear(n.Concat(pairs, numbers, axis=1), 24, act="Relu")
    return n.linear(y, 1, act="Sigmoid", gain=1.5)


@row(tokens(40, 1, 10), flags(1, 10), int8_at_least=2)
def history_pooled_with_a_mask(n, ids, mask):
    y = n.Mul(n.Gather(n.normal(40, 16), ids), n.Unsqueeze(mask, [2]))
    mean = n.Div(n.reduce("ReduceSum", y, [1], 0), n.Add(n.reduce("ReduceSum", mask, [1]), 1e-3))
    return n.Softmax(n.linear(n.linear(mean, 24, act="Relu"), 20, gain=2.0), axis=-1)


@row(features(1, 16), int8_at_least=5)
def experts_shared_by_two_tasks(n, x):
    experts = [n.Unsqueeze(n.linear(x, 16, act="Relu"), [1]) for _ in range(3)]
    both, ends = n.Concat(*experts, axis=1), {}
    for task in ("click", "buy"):
        gate = n.Unsqueeze(n.Softmax(n.linear(x, 3), axis=-1), [2])
        mixed = n.reduce("ReduceSum", n.Mul(both, gate), [1], 0)
        ends[task] = n.Sigmoid(n.linear(mixed, 1, gain=2.0))
    ends["both"] = n.Mul(ends["click"], ends["buy"])
    return ends


@row(features(1, 24), int8_at_least=3)
def gradual_choice_of_columns(n, x):
    mask = n.Softmax(n.linear(x, 24, gain=2.0), axis=-1)
    y = n.linear(n.Mul(x, mask), 32)
    value, gate = n.Split(y, outputs=2, axis=1)
    return n.linear(n.Mul(value, n.Sigmoid(gate)), 4)


@row(features(1, 4), channels={"values": 1}, int8_at_least=2)
def controller_with_two_heads(n, x):
    y = n.linear(n.linear(x, 32, act="Tanh"), 32, act="Tanh")
    return {"action": n.Tanh(n.linear(y, 2)), "value": n.linear(y, 1, gain=50.0)}


@row(features(1, 6), agree=0.8, int8_at_least=2)
def best_action_of_a_duel(n, x):
    y = n.linear(n.linear(x, 24, act="Relu"), 24, act="Relu")
    advantage = n.linear(y, 4, gain=2.0)
    values = n.Add(n.linear(y, 1, gain=5.0), n.Sub(advantage, n.reduce("ReduceMean", advantage, [1])))
    return {"values": values, "action": n.ArgMax(values, axis=1, keepdims=0)}


@row(features(1, 10, 12), positive(1, 10, 10), channels=LAST, int8_at_least=2)
def graph_by_its_adjacency(n, x, adjacency):
    degree = n.Add(n.reduce("ReduceSum", adjacency, [2]), 1.0)
    for width in (16, 16):
        x = n.Relu(n.Div(n.Add(n.MatMul(adjacency, n.linear(x, width)), n.linear(x, width)), degree))
    return n.linear(x, 4)


@row(features(10, 12), tokens(10, 2, 24), channels=LAST, int8_at_least=2)
def graph_by_gather_and_scatter(n, x, edges):
    source, target = (n.Squeeze(end, [0]) for end in n.Split(edges, outputs=2, axis=0))
    for _ in range(2):
        message = n.linear(n.Concat(n.Gather(x, source), n.Gather(x, target), axis=1), 12, act="Relu")
        places = n.Expand(n.Unsqueeze(target, [1]), [24, 12])
        summed = n.ScatterElements(n.Mul(x, 0.0), places, message, axis=0, reduction="add")
        x = n.linear(n.Concat(x, summed, axis=1), 12, act="Relu")
    return n.linear(n.reduce("ReduceMean", x, [0]), 4)


@row(features(1, 10, 12), flags(1, 10, 10, dtype=bool), channels=LAST, int8_at_least=2)
def graph_with_attention_to_neighbours(n, x, edges):
    y = n.linear(x, 16)
    scores = n.LeakyRelu(n.Add(n.linear(y, 1), n.Transpose(n.linear(y, 1), perm=[0, 2, 1])), alpha=0.2)
    weights = n.Softmax(n.Where(edges, scores, np.float32(-1e9)), axis=-1)
    return n.linear(n.Elu(n.MatMul(weights, y)), 4)


@row(features(dynamic("points", 6, 12), 5), channels=LAST, int8_at_least=2)
def set_of_any_number_of_rows(n, x):
    y = n.linear(n.linear(x, 24, act="Relu"), 24, act="Relu")
    return n.linear(n.linear(n.reduce("ReduceMean", y, [0]), 24, act="Relu"), 3)


@row(features(1, 8), as_type(features(1, 8), np.float64), int8_at_least=2)
def doubles_beside_floats(n, x, weights):
    y = n.Mul(n.linear(x, 8, act="Relu"), n.Cast(weights, to=1))
    return n.linear(n.linear(y, 24, act="Relu"), 3)


@row(features(1, 3), int8_at_least=2)
def fourier_features_of_a_place(n, x):
    angles = n.Concat(*(n.Mul(x, float(2**k)) for k in range(4)), axis=1)
    y = n.Concat(x, n.Sin(angles), n.Cos(angles), axis=1)
    y = n.linear(n.linear(y, 32, act="Relu"), 32, act="Relu")
    return {"colour": n.Sigmoid(n.linear(y, 3)), "density": n.Softplus(n.linear(y, 1, gain=10.0))}


@row(chosen([0, 1, 2], 1, 4, 4), int8_at_least=1)
def one_hot_board(n, board):
    planes = n.Transpose(n.OneHot(board, np.int64(3), np.float32([0, 1]), axis=-1), perm=[0, 3, 1, 2])
    y = n.conv(n.conv(planes, 16), 16)
    return {
        "move": n.Softmax(n.Flatten(n.conv(y, 1, 1, act=None, gain=3.0)), axis=-1),
        "value": n.Tanh(n.linear(n.Flatten(y), 1)),
    }
