"""`TensorSpec`: name, element type and shape of a model's input or output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import pydantic


def _dtype(value: object) -> np.dtype[np.generic]:
    try:
        return np.dtype(value)  # type: ignore[call-overload, no-any-return]
    except TypeError:
        raise ValueError(f"{value!r} is not the name of a numpy dtype, such as 'float32'") from None


Dtype = Annotated[
    np.dtype[np.generic],
    pydantic.PlainValidator(_dtype),
    pydantic.PlainSerializer(str, return_type=str),
    pydantic.WithJsonSchema({"type": "string"}),
]
"""A numpy dtype, stored by its name."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True
    )

    name: str
    """Name in the model."""
    dtype: Dtype
    """Element type, such as float32."""
    dims: tuple[int | str | None, ...]
    """One entry for each axis: a size, the name of a dynamic axis, or null where the size is unknown."""

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.dims)}]"
