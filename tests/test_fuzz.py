"""Thousands of random inputs to what reads data and recipes: nothing but the documented errors comes out."""

import argparse
import io
import pickle
import shutil
import tarfile
import warnings
from dataclasses import fields
from itertools import chain

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import utils
from s9.recipes import RECIPE_CHOICES, Recipe
from scripts import train

QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}
NAMES = [field.name for field in fields(Recipe)]
VALUES = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5), st.binary(max_size=3),
    st.lists(st.integers(), max_size=2), st.sampled_from([*chain(*RECIPE_CHOICES.values())]),
)  # fmt: skip


@settings(max_examples=1000, **QUICK)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_recipes(values):
    try:
        recipe = Recipe(**values)
    except ValueError as error:
        refused_for = str(error)
        assert any(name in refused_for for name in values)
    else:
        assert all(getattr(recipe, name) == value for name, value in values.items() if value == value)


@settings(max_examples=1000, **QUICK)
@given(
    st.one_of(
        st.text(max_size=20), st.builds("{}={}".format, st.sampled_from(NAMES), st.one_of(st.text(max_size=8), VALUES))
    )
)
def test_settings_of_the_command_line(text):
    try:
        name, value = train.parse_setting(text)
    except argparse.ArgumentTypeError:
        return
    assert type(value) is type(getattr(Recipe(), name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small data set of image folders and one of batches, to be damaged; and the bytes of their files."""
    root = tmp_path_factory.mktemp("fuzz")
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for index in range(4):
            path = root / "folders" / split / f"class-{index % 2}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    (root / "batches").mkdir()
    rows = {"data": generator.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 1, 0, 1]}
    for name in ("data_batch_1", "test_batch"):
        (root / "batches" / name).write_bytes(pickle.dumps(rows, protocol=2))
    (root / "batches" / "batches.meta").write_bytes(pickle.dumps({"label_names": ["even", "odd"]}, protocol=2))
    for layout in ("folders", "batches"):
        with tarfile.open(root / f"{layout}.tar", "w") as tar:
            tar.add(root / layout, layout)
    return root


EDITS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=6), st.integers(0, 40)), min_size=1, max_size=4
)


def edited(content: bytes, edits) -> bytes:
    """Some bytes of `content` replaced by others, at places given as shares of its length."""
    for place, new, drop in edits:
        start = int(place * len(content))
        content = content[:start] + new + content[start + drop :]
    return content


def load_or_refuse(source, root):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about corrupt EXIF
        try:
            data = utils.load_data(source, root)
        except utils.DataError as error:
            message = str(error)
            assert len(message.splitlines()) == 1
        else:
            assert data.train_images.shape[1:] == (3, 32, 32)
            assert data.train_labels.max() < len(data.classes)
    assert not list(root.glob("*.tmp"))
    shutil.rmtree(root)


@settings(max_examples=400, **QUICK)
@given(st.sampled_from(["data_batch_1", "test_batch", "batches.meta"]), EDITS)
def test_damaged_batches(folder, name, edits):
    path = folder / "batches" / name
    whole = path.read_bytes()
    try:
        path.write_bytes(edited(whole, edits))
        load_or_refuse(folder / "batches", folder / "root")
    finally:
        path.write_bytes(whole)


PICKLED = st.recursive(
    st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.none(), st.binary(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["data", "labels", "label_names", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=300, **QUICK)
@given(st.sampled_from(["data_batch_1", "batches.meta"]), PICKLED)
def test_batches_that_hold_something_else(folder, name, value):
    path = folder / "batches" / name
    whole = path.read_bytes()
    try:
        path.write_bytes(pickle.dumps(value, protocol=2))
        load_or_refuse(folder / "batches", folder / "root")
    finally:
        path.write_bytes(whole)


@settings(max_examples=300, **QUICK)
@given(st.sampled_from(["png", "jpeg", "bmp", "webp", "tiff", "ppm"]), EDITS)
def test_damaged_images(folder, kind, edits):
    content = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(content, kind)
    path = folder / "folders" / "train" / "class-0" / f"damaged.{kind}"
    try:
        path.write_bytes(edited(content.getvalue(), edits))
        load_or_refuse(folder / "folders", folder / "root")
    finally:
        path.unlink()


@settings(max_examples=200, **QUICK)
@given(st.sampled_from(["folders", "batches"]), EDITS)
def test_damaged_archives(folder, layout, edits):
    path = folder / "damaged.tar"
    path.write_bytes(edited((folder / f"{layout}.tar").read_bytes(), edits))
    load_or_refuse(path, folder / "root")
