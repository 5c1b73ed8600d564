"""Code examples for the app developer: Kotlin for Android, Swift for iOS, Python and C++ for other targets."""

from __future__ import annotations

import json
import math
from collections.abc import Set
from dataclasses import dataclass

from toolchain.formats.manifest import Manifest
from toolchain.formats.target import Target
from toolchain.formats.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Element:
    """Names of an element type in each language.

    Attributes:
        cpp: type of an element.
        kotlin: array, buffer that wraps it, and the type that has to be given with a byte or short buffer.
        swift: type of an element and of a tensor; None where the Swift package has no such tensors.
    """

    cpp: str
    kotlin: tuple[str, str, str]
    swift: tuple[str, str] | None


_ELEMENTS = {
    "float32": Element("float", ("FloatArray", "FloatBuffer", ""), ("Float", ".float")),
    "float64": Element("double", ("DoubleArray", "DoubleBuffer", ""), None),
    "float16": Element("Ort::Float16_t", ("ShortArray", "ShortBuffer", "OnnxJavaType.FLOAT16"), None),
    "uint8": Element("uint8_t", ("ByteArray", "ByteBuffer", "OnnxJavaType.UINT8"), ("UInt8", ".uInt8")),
    "int8": Element("int8_t", ("ByteArray", "ByteBuffer", "OnnxJavaType.INT8"), ("Int8", ".int8")),
    "bool": Element("bool", ("ByteArray", "ByteBuffer", "OnnxJavaType.BOOL"), None),
    "int32": Element("int32_t", ("IntArray", "IntBuffer", ""), ("Int32", ".int32")),
    "int64": Element("int64_t", ("LongArray", "LongBuffer", ""), ("Int64", ".int64")),
}


def run_once(manifest: Manifest, target: Target, files: Set[str]) -> str:
    """Write code that loads the model and runs it once, with the target's threads and session options."""
    known = all(str(port.dtype) in _ELEMENTS for port in manifest.inputs)
    # A profile has no field for the operating system; the first word of a phone's name tells it.
    system = target.name.split("-")[0]
    phone_file = "model.ort" if "model.ort" in files else "model.onnx"
    if system == "android" and known:
        return _block("kotlin", _kotlin(manifest, target, phone_file))
    if system == "ios" and known and all(_ELEMENTS[str(port.dtype)].swift for port in manifest.inputs):
        return _block("swift", _swift(manifest, target, phone_file))
    file = "model.onnx" if "model.onnx" in files else "model.ort"
    blocks = [_block("python", _python(manifest, target, file))]
    if known:
        blocks.append(_block("cpp", _cpp(manifest, target, file)))
    return "\n\n".join(blocks)


def compare_with_golden(target: Target, files: Set[str]) -> str:
    """Write a Python program that compares the model's outputs with golden.npz."""
    file = "model.onnx" if "model.onnx" in files else "model.ort"
    lines = ["import numpy as np, onnxruntime as ort", "", "options = ort.SessionOptions()"]
    if target.package.ort_platform == "arm":
        entry = 'options.add_session_config_entry("session.qdqisint8allowed", "1")'
        lines.append(f"{entry}  # the default on ARM; other machines need it to compute the same")
    lines += [
        f'session = ort.InferenceSession("{file}", options, providers=["CPUExecutionProvider"])',
        'golden = np.load("golden.npz")',
        'for i in range(int(golden["samples"])):',
        '    feed = {x.name: golden[f"input:{x.name}:{i}"] for x in session.get_inputs()}',
        "    for y, got in zip(session.get_outputs(), session.run(None, feed)):",
        '        expected = golden[f"output:{y.name}:{i}"]',
        '        print(i, y.name, "same" if np.array_equal(got, expected) else f"off by {abs(got - expected).max()}")',
    ]
    return _block("python", lines)


def _block(language: str, lines: list[str]) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _shape(port: TensorSpec) -> list[int]:
    return [dim if isinstance(dim, int) else 1 for dim in port.dims]


def _comma(values: list[int]) -> str:
    return ", ".join(str(value) for value in values)


def _variables(ports: tuple[TensorSpec, ...], stem: str) -> list[str]:
    return [stem] if len(ports) == 1 else [f"{stem}{i}" for i in range(1, len(ports) + 1)]


def _python(manifest: Manifest, target: Target, file: str) -> list[str]:
    lines = ["import numpy as np, onnxruntime as ort", "", "options = ort.SessionOptions()"]
    lines.append(f"options.intra_op_num_threads = {target.runtime.threads}")
    lines += [
        f'options.add_session_config_entry("{key}", "{value}")' for key, value in target.runtime.session_options.items()
    ]
    lines.append(f'session = ort.InferenceSession("{file}", options, providers=["CPUExecutionProvider"])')
    lines.append("feed = {  # your data instead of zeros")
    lines += [
        f"    {_quote(p.name)}: np.zeros({_shape(p)}, np.{_numpy(str(p.dtype))}),  # your data" for p in manifest.inputs
    ]
    outputs = ", ".join(_variables(manifest.outputs, "result"))
    return [*lines, "}", f"{outputs}{',' if len(manifest.outputs) == 1 else ''} = session.run(None, feed)"]


def _numpy(dtype: str) -> str:
    return "bool_" if dtype == "bool" else dtype


def _cpp(manifest: Manifest, target: Target, file: str) -> list[str]:
    ins, outs = manifest.inputs, manifest.outputs
    lines = [
        "#include <onnxruntime_cxx_api.h>",
        "#include <vector>",
        "",
        "Ort::Env env;",
        "Ort::SessionOptions options;",
    ]
    lines.append(f"options.SetIntraOpNumThreads({target.runtime.threads});")
    lines += [f'options.AddConfigEntry("{k}", "{v}");' for k, v in target.runtime.session_options.items()]
    lines.append(f'Ort::Session session(env, ORT_TSTR("{file}"), options);')
    lines.append("auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);")
    lines.append("std::vector<Ort::Value> inputs;")
    for port, name in zip(ins, _variables(ins, "data"), strict=True):
        shape, kind = _shape(port), _ELEMENTS[str(port.dtype)].cpp
        lines.append(f"static {kind} {name}[{math.prod(shape)}];  // your data")
        lines.append(f"const std::vector<int64_t> {name}_shape{{{_comma(shape)}}};")
        lines.append(
            f"inputs.push_back(Ort::Value::CreateTensor<{kind}>("
            f"memory, {name}, {math.prod(shape)}, {name}_shape.data(), {name}_shape.size()));"
        )
    lines.append(f"const char* input_names[] = {{{_quoted(ins)}}};")
    lines.append(f"const char* output_names[] = {{{_quoted(outs)}}};")
    lines.append(
        "auto results = session.Run(Ort::RunOptions{nullptr}, input_names, inputs.data(), inputs.size(), "
        f"output_names, {len(outs)});"
    )
    first = _ELEMENTS.get(str(outs[0].dtype))
    return [*lines, f"const {first.cpp}* first = results[0].GetTensorData<{first.cpp}>();"] if first else lines


def _kotlin(manifest: Manifest, target: Target, file: str) -> list[str]:
    lines = ["import ai.onnxruntime.*", "import java.nio.*", ""]
    lines.append("val env = OrtEnvironment.getEnvironment()")
    lines.append("val options = OrtSession.SessionOptions().apply {")
    lines.append(f"    setIntraOpNumThreads({target.runtime.threads})")
    lines += [f'    addConfigEntry("{k}", "{v}")' for k, v in target.runtime.session_options.items()]
    lines.append("}")
    lines.append(f'val session = env.createSession(context.assets.open("{file}").readBytes(), options)')
    lines.append("val inputs = mapOf(")
    for port in manifest.inputs:
        array, buffer, kind = _ELEMENTS[str(port.dtype)].kotlin
        shape = _shape(port)
        data = f"{buffer}.wrap({array}({math.prod(shape)}))"
        extra = f", {kind}" if kind else ""
        tensor = f"OnnxTensor.createTensor(env, {data}, longArrayOf({_comma(shape)}){extra})"
        lines.append(f"    {_quote(port.name)} to {tensor},  // your data")
    lines += [")", "session.run(inputs).use { results ->"]
    lines += [
        f"    val {name} = results.get({_quote(port.name)}).get() as OnnxTensor"
        for port, name in zip(manifest.outputs, _variables(manifest.outputs, "result"), strict=True)
    ]
    return [*lines, "}"]


def _swift(manifest: Manifest, target: Target, file: str) -> list[str]:
    stem, _, suffix = file.partition(".")
    lines = ["import OnnxRuntimeBindings", "", "let env = try ORTEnv(loggingLevel: .warning)"]
    lines += ["let options = try ORTSessionOptions()", f"try options.setIntraOpNumThreads({target.runtime.threads})"]
    lines += [
        f'try options.addConfigEntry(withKey: "{k}", value: "{v}")' for k, v in target.runtime.session_options.items()
    ]
    lines.append(f'let path = Bundle.main.path(forResource: "{stem}", ofType: "{suffix}")!')
    lines.append("let session = try ORTSession(env: env, modelPath: path, sessionOptions: options)")
    names = _variables(manifest.inputs, "input")
    for port, name in zip(manifest.inputs, names, strict=True):
        swift = _ELEMENTS[str(port.dtype)].swift
        kind, element = swift if swift else ("Float", ".float")
        shape = _shape(port)
        lines.append(f"var {name}Data = [{kind}](repeating: 0, count: {math.prod(shape)})  // your data")
        bytes_ = f"NSMutableData(bytes: &{name}Data, length: {name}Data.count * MemoryLayout<{kind}>.stride)"
        lines.append(f"let {name}Bytes = {bytes_}")
        tensor = f"ORTValue(tensorData: {name}Bytes, elementType: {element}, shape: [{_comma(shape)}])"
        lines.append(f"let {name} = try {tensor}")
    fed = ", ".join(f"{_quote(port.name)}: {name}" for port, name in zip(manifest.inputs, names, strict=True))
    lines.append("let results = try session.run(")
    lines.append(f"    withInputs: [{fed}], outputNames: [{_quoted(manifest.outputs)}], runOptions: nil)")
    lines += [
        f"let {name} = try results[{_quote(port.name)}]!.tensorData() as Data"
        for port, name in zip(manifest.outputs, _variables(manifest.outputs, "result"), strict=True)
    ]
    return lines


def _quoted(ports: tuple[TensorSpec, ...]) -> str:
    return ", ".join(_quote(port.name) for port in ports)


def _quote(name: str) -> str:
    return json.dumps(name)
