"""`Net`: writes an ONNX graph node by node, and runs every node on a few samples as soon as it is written.

Because values are known while the graph grows, sizes need not be written down, and weights can be scaled as training
leaves them: every channel of a layer has a standard deviation of about `gain` and a mean near 0, a few weights are
large. Operators are methods: ``n.Relu(x)``, ``n.Split(x, outputs=2, axis=1)``; numbers, lists and arrays among the
inputs become initializers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from zoo.samples import Feed, Input

PROBES = 8
"""Number of samples that a graph is run on while it is built."""
Operand = str | float | int | Sequence | np.ndarray | None


class Net:
    """A graph under construction.

    Args:
        inputs: the inputs by name.
        feeds: the samples that every node is run on.
        opset: version of the standard operators.
        seed: seed of the weights.
    """

    def __init__(self, inputs: dict[str, Input], feeds: list[Feed], opset: int, seed: int) -> None:
        self.inputs, self.opset = inputs, opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.values: list[dict[str, object]] = [dict(feed) for feed in feeds]
        self.functions: list[onnx.FunctionProto] = []
        self.domains: set[str] = set()
        self._numbers: Iterator[int] = itertools.count()

    def __getattr__(self, op: str) -> Callable:
        if not op[0].isupper():
            raise AttributeError(op)
        return partial(self.add, op)

    # -- values ------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> np.ndarray:
        """The value of the first sample."""
        return self.constants[name] if name in self.constants else self.values[0][name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.value(name).shape

    def const(self, array: Operand, name: str | None = None) -> str:
        """An initializer; Python's numbers are float32 and int64."""
        if isinstance(array, np.ndarray | np.generic):
            array = np.asarray(array)
        else:
            array = np.array(array)
            array = array.astype({"f": np.float32, "i": np.int64}.get(array.dtype.kind, array.dtype))
        name = name or self._name("const")
        self.constants[name] = array
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Normal numbers, float32."""
        return (scale * self.rng.standard_normal(shape)).astype(np.float32)

    def weight(self, *shape: int, fan: int) -> np.ndarray:
        """Weights of a layer with `fan` inputs; a few are large."""
        return (self.rng.standard_t(5, shape) / np.sqrt(1.7 * fan)).astype(np.float32)

    def _name(self, stem: str) -> str:
        return f"{stem.lower()}_{next(self._numbers)}"

    # -- nodes -------------------------------------------------------------------------------------------------------

    def add(
        self,
        op: str,
        *inputs: Operand,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        name: str = "",
        **attributes,
    ):
        """Write a node and run it.

        Args:
            op: the operator.
            inputs: names of values; None leaves an optional input out; anything else becomes an initializer.
            outputs: how many, or their names.
            domain: of the operator.
            name: of the node.
            attributes: as for ``onnx.helper.make_node``.

        Returns:
            The name of its output; a tuple of names if there are several.
        """
        takes = ["" if x is None else x if isinstance(x, str) else self.const(x) for x in inputs]
        gives = [self._name(op) for _ in range(outputs)] if isinstance(outputs, int) else list(outputs)
        node = helper.make_node(op, takes, gives, name=name, domain=domain, **attributes)
        self.domains.add(domain)
        self.nodes.append(node)
        self._run(node)
        return gives[0] if len(gives) == 1 else tuple(gives)

    def _run(self, node: onnx.NodeProto) -> None:
        used = list(dict.fromkeys(_reads(node)))
        fed = [name for name in used if name not in self.constants]
        graph = helper.make_graph(
            [node],
            "one",
            [_info(name, self.values[0][name]) for name in fed],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [numpy_helper.from_array(self.constants[name], name) for name in used if name in self.constants],
        )
        run = session(self._model(graph))
        for values in self.values:
            values.update(
                zip([o for o in node.output if o], run.run(None, {name: values[name] for name in fed}), strict=True)
            )

    def _model(self, graph: onnx.GraphProto) -> onnx.ModelProto:
        versions = {domain: self.opset if not domain else 1 for domain in {"", *self.domains}}
        imports = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
        ir_version = {7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7}.get(self.opset, 8 if self.opset < 19 else 10)
        return helper.make_model(
            graph, opset_imports=imports, ir_version=ir_version, functions=self.functions, producer_name="zoo"
        )

    def finish(self, outputs: dict[str, str]) -> onnx.ModelProto:
        """The model. outputs: the values by the names that they get as outputs."""
        for name, value in outputs.items():
            if name != value:
                self.add("Identity", value, outputs=[name])
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        starts = [
            helper.make_tensor_value_info(name, _element(self.values[0][name]), spec.declared())
            for name, spec in self.inputs.items()
        ]
        used = {name for node in self.nodes for name in _reads(node)} | set(outputs)
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used]
        if self.opset < 9:  # their version of the file format lists weights among the inputs
            starts += [helper.make_tensor_value_info(c.name, c.data_type, c.dims) for c in constants]
        model = self._model(helper.make_graph(self.nodes, "structure", starts, ends, constants))
        return declare_outputs(model, {name: self.value(name) for name in outputs})

    # -- bodies of If, Loop and Scan ---------------------------------------------------------------------------------

    def body(self, build: Callable[..., Sequence[str]], *, shapes: bool = True, **inputs: Sequence) -> onnx.GraphProto:
        """A graph for an attribute. It may read the values of this graph.

        Args:
            build: takes a `Net` and the names of the inputs, and returns the names of the outputs.
            shapes: the body declares the shapes of its inputs and outputs.
            inputs: a value by name, which the body is run on while it is built.
        """
        inner = Net({}, [], self.opset, 0)
        inner.rng, inner.constants, inner.functions, inner._numbers = (
            self.rng,
            self.constants,
            self.functions,
            self._numbers,
        )
        inner.values = [{**values, **{name: np.asarray(at) for name, at in inputs.items()}} for values in self.values]
        ends = build(inner, *inputs)
        self.domains |= inner.domains
        infos = [helper.make_tensor_value_info(name, _element(inner.value(name)), None) for name in ends]
        takes = [
            helper.make_tensor_value_info(name, _element(value), np.shape(value)) for name, value in inputs.items()
        ]
        return helper.make_graph(inner.nodes, "body", takes, infos)

    # -- layers ------------------------------------------------------------------------------------------------------

    def conv(self, x, channels, k=3, s=1, act="Relu", groups=1, d=1, gain=1.0, bias=True, **attributes):
        """A convolution of any number of dimensions with its activation; padded to keep the size at stride 1."""
        inner, space = self.shape(x)[1], len(self.shape(x)) - 2
        kernel = [k] * space if isinstance(k, int) else list(k)
        if "pads" not in attributes and "auto_pad" not in attributes:
            attributes["pads"] = 2 * [d * (size // 2) for size in kernel]
        if d != 1:
            attributes["dilations"] = [d] * space
        weight = self.weight(channels, inner // groups, *kernel, fan=inner // groups * int(np.prod(kernel)))
        attributes |= {"strides": [s] * space, "group": groups, "kernel_shape": kernel}
        return self._scaled(partial(self.add, "Conv", x, **attributes), weight, 0, 1, act, gain, bias)

    def deconv(self, x, channels, k=2, s=2, act="Relu", gain=1.0, **attributes):
        """A transposed convolution with its activation."""
        inner, space = self.shape(x)[1], len(self.shape(x)) - 2
        weight = self.weight(inner, channels, *[k] * space, fan=inner)
        return self._scaled(
            partial(self.add, "ConvTranspose", x, strides=[s] * space, **attributes), weight, 1, 1, act, gain
        )

    def linear(self, x, width, act=None, gain=1.0, bias=True):
        """A Gemm for two axes, else a MatMul and an Add, with its activation."""
        weight = self.weight(self.shape(x)[-1], width, fan=self.shape(x)[-1])
        if len(self.shape(x)) == 2:
            none = [] if self.opset >= 11 else [np.zeros(width, np.float32)]
            return self._scaled(lambda w, *b: self.Gemm(x, w, *(b or none)), weight, 1, 1, act, gain, bias)

        def product(weight, *bias):
            y = self.MatMul(x, weight)
            return self.Add(y, *bias) if bias else y

        return self._scaled(product, weight, 1, -1, act, gain, bias)

    def _scaled(self, product, weight, weight_axis, axis, act, gain, bias=True):
        """Scale weights and set biases as a folded batch normalization does; channels differ in range by about 2."""
        place, last = self.const(weight), len(self.nodes)
        y = product(place)
        flat = np.concatenate(
            [np.moveaxis(values[y], axis, -1).reshape(-1, values[y].shape[axis]) for values in self.values]
        )
        scale = gain * np.exp(0.3 * self.rng.standard_normal(flat.shape[1])) / (flat.std(0) + 1e-6)
        shift = gain * 0.4 * self.rng.standard_normal(flat.shape[1]) - flat.mean(0) * scale
        if not bias:
            scale = np.full_like(scale, gain / (flat.std() + 1e-6))
        along = [1] * weight.ndim
        along[weight_axis] = -1
        self.constants[place] = (weight * scale.reshape(along)).astype(np.float32)
        del self.nodes[last:]
        return self.act(product(place, *([shift.astype(np.float32)] if bias else [])), act)

    def _by_channel(self, name, axis):
        """All values as [places, channels]."""
        arrays = [np.moveaxis(values[name], axis, -1) for values in self.values]
        return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])

    def act(self, x, kind):
        """An activation by its name; None is none."""
        match kind:
            case None:
                return x
            case "SiLU":
                return self.Mul(x, self.Sigmoid(x))
            case "HardSwish" if self.opset < 14:
                return self.Mul(x, self.Div(self.Clip(self.Add(x, 3.0), 0.0, 6.0), 6.0))
            case "Gelu" if self.opset < 20:
                return self.Mul(self.Mul(x, self.Add(self.Erf(self.Div(x, 1.4142135)), 1.0)), 0.5)
            case "Relu6":
                return self.Clip(x, 0.0, 6.0)
            case "PRelu":
                slope = self.rng.uniform(0.05, 0.4, (self.shape(x)[1], *[1] * (len(self.shape(x)) - 2)))
                return self.PRelu(x, slope.astype(np.float32))
            case _:
                return self.add(kind, x)

    def reduce(self, kind, x, axes, keepdims=1):
        """A reduction, in the form of this opset."""
        if self.opset >= 18 or (kind == "ReduceSum" and self.opset >= 13):
            return self.add(kind, x, list(axes), keepdims=keepdims)
        return self.add(kind, x, axes=list(axes), keepdims=keepdims)

    def batch_norm(self, x, **attributes):
        """A batch normalization whose statistics are those of its input."""
        flat = self._by_channel(x, 1)
        width = flat.shape[1]
        gamma, beta = np.exp(self.normal(width, scale=0.3)), self.normal(width, scale=0.3)
        return self.BatchNormalization(x, gamma, beta, flat.mean(0), flat.var(0) + np.float32(1e-3), **attributes)

    def layer_norm(self, x, axis=-1):
        """Layer normalization over the last axis: one operator from opset 17 on, else its parts."""
        width = self.shape(x)[-1]
        gamma, beta = np.exp(self.normal(width, scale=0.3)), self.normal(width, scale=0.2)
        if self.opset >= 17:
            return self.LayerNormalization(x, gamma, beta, axis=axis)
        centred = self.Sub(x, self.reduce("ReduceMean", x, [-1]))
        variance = self.reduce("ReduceMean", self.Pow(centred, 2.0), [-1])
        return self.Add(self.Mul(self.Div(centred, self.Sqrt(self.Add(variance, 1e-5))), gamma), beta)

    def flat_mean(self, x):
        """The mean over all places, [N, C]."""
        return self.Flatten(self.GlobalAveragePool(x))

    def heads(self, x, heads):
        """[N, T, C] divided into heads, [N, heads, T, C / heads]."""
        return self.Transpose(self.Reshape(x, [0, 0, heads, self.shape(x)[-1] // heads]), perm=[0, 2, 1, 3])

    def attend(self, q, k, v, mask=None):
        """softmax(q kᵀ / √d + mask) v, joined again: [N, T, C]."""
        scores = self.MatMul(q, self.Transpose(k, perm=[0, 1, 3, 2]))
        scores = self.Mul(scores, float(self.shape(q)[-1] ** -0.5))
        weights = self.Softmax(self.Add(scores, mask) if mask is not None else scores, axis=-1)
        y = self.Transpose(self.MatMul(weights, v), perm=[0, 2, 1, 3])
        return self.Reshape(y, [0, 0, self.shape(v)[1] * self.shape(v)[-1]])

    def attention(self, x, heads=2, mask=None):
        """Self-attention with four projections."""
        width = self.shape(x)[-1]
        q, k, v = (self.heads(self.linear(x, width), heads) for _ in range(3))
        return self.linear(self.attend(q, k, v, mask), width)

    def block(self, x, heads=2, act="Gelu", mask=None):
        """A transformer block that normalizes before each half."""
        x = self.Add(x, self.attention(self.layer_norm(x), heads, mask))
        return self.Add(x, self.linear(self.linear(self.layer_norm(x), 2 * self.shape(x)[-1], act), self.shape(x)[-1]))

    def recurrent(self, kind, x, hidden, direction="forward", outputs=1, lengths=None, **attributes):
        """LSTM, GRU or RNN over [T, N, C]; the first of its outputs is Y [T, directions, N, H]."""
        rows, ways = hidden * {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 1 + (direction == "bidirectional")
        width = self.shape(x)[-1]
        w, r = self.weight(ways, rows, width, fan=width), self.weight(ways, rows, hidden, fan=hidden)
        attributes |= {"hidden_size": hidden, "direction": direction}
        return self.add(kind, x, w, r, self.normal(ways, 2 * rows, scale=0.2), lengths, outputs=outputs, **attributes)


def session(model: onnx.ModelProto | str, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL) -> ort.InferenceSession:
    """onnxruntime on one thread; by default it runs the nodes as they are."""
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads, settings.graph_optimization_level = 4, 1, level
    source = model if isinstance(model, str) else model.SerializeToString()
    return ort.InferenceSession(source, settings, providers=["CPUExecutionProvider"])


def declare_outputs(model: onnx.ModelProto, values: dict[str, object]) -> onnx.ModelProto:
    """Declare the outputs as onnxruntime knows them; where it does not know the rank, by their number of axes."""
    ends = []
    for end in session(model).get_outputs():
        value = values[end.name]
        if isinstance(value, list):
            ends.append(helper.make_tensor_sequence_value_info(end.name, _element(value[0]), None))
            continue
        shape = end.shape if len(end.shape) == np.ndim(value) else [None] * np.ndim(value)
        ends.append(helper.make_tensor_value_info(end.name, _element(value), shape))
    del model.graph.output[:]
    model.graph.output.extend(ends)
    return model


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The values of the graph around it that a node reads, those in its bodies included."""
    yield from filter(None, node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {i.name for i in graph.input} | {o for inner in graph.node for o in inner.output}
            yield from (name for inner in graph.node for name in _reads(inner) if name not in own)
            yield from (end.name for end in graph.output if end.name not in own)


def _element(value: object) -> int:
    array = np.asarray(value)
    return TensorProto.STRING if array.dtype.kind in "OU" else helper.np_dtype_to_tensor_dtype(array.dtype)


def _info(name: str, value: object) -> onnx.ValueInfoProto:
    """A graph input for this value, of any size; vectors have theirs, because they may be shapes."""
    if isinstance(value, list):
        return helper.make_tensor_sequence_value_info(name, _element(value[0]), None)
    sizes = np.shape(value) if np.ndim(value) == 1 else [None] * np.ndim(value)
    return helper.make_tensor_value_info(name, _element(value), sizes)
