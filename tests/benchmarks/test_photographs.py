"""Pictures within a file of files, and that none of what is learnt from is in the test."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from benchmarks.models import images, store
from benchmarks.train import photographs


def encoded(width: int, colour: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, 8), (colour,) * 3).save(stream, "webp", lossless=True)
    return stream.getvalue()


junk = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"", b"RIFF", b"RIFF\xff\xff\xff\xff", b"RIFFRIFFWEBP", b"WEBP"])
)


@given(st.lists(st.tuples(junk, st.integers(1, 32), st.integers(0, 255)), max_size=4), junk)
def test_pictures_are_found_among_anything(parts, tail):
    pictures = [encoded(width, colour) for _, width, colour in parts]
    whole = b"".join(before + picture for (before, _, _), picture in zip(parts, pictures, strict=True)) + tail
    assert list(photographs.webp(whole)) == pictures
    assert list(photographs.webp(whole[:-1])) == pictures[: len(pictures) - (not tail and bool(pictures))]


@pytest.mark.slow
@pytest.mark.skipif(bool(store.missing(photographs.REQUIRES)), reason="benchmarks/fetch.sh train has not been run")
def test_photographs_repeat_and_no_test_shows_them():
    few = store.field(photographs.photographs(24), "x")
    assert few.shape == (24, images.SIDE, images.SIDE, 3)
    assert few.dtype == np.uint8
    assert min(float(image.std()) for image in few) > 1
    with open(Path(images.__file__).with_name("imagenet_stamps.csv"), newline="") as file:
        tested = {Path(row["photograph"]).name for row in csv.DictReader(file)}
    learnt = {path.stem for path in images.unlabelled_stamps((*images.UNLABELLED, *photographs.STAMPS))}
    assert len(tested) > 100
    assert len(learnt) > 250
    assert not tested & learnt
