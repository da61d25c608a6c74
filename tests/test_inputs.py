"""What a request may be made from, besides PIL pictures, Python numbers and ids inside the vocabulary."""

from __future__ import annotations

import numpy as np
from models import IMAGE, inputs_for, llama, llava

import mmspec
from mmspec import Target, zoo
from mmspec.inputs import load_image


def test_pictures_as_arrays():
    """NumPy arrays of 8-bit RGB values are read as the PIL pictures that they were made from."""
    target, picture = mmspec.load_target("tiny"), zoo.demo_image()
    array = np.asarray(picture)
    assert np.array_equal(np.asarray(load_image(array)), array) and array.shape[-1] == 3
    assert np.array_equal(np.asarray(load_image(array[:, ::-1])), array[:, ::-1]), "strides"
    options = {"prompt": "Describe the picture.", "max_new_tokens": 6}
    want = mmspec.generate(target, images=[picture], **options).token_ids
    assert mmspec.generate(target, images=[array], **options).token_ids == want
    assert mmspec.generate(target, images=array, **options).token_ids == want
    black = mmspec.generate(target, images=[np.zeros_like(array)], **options).token_ids
    assert black != want, "the picture makes no difference: the test is blind"


def test_placeholders_and_padding_may_lie_outside_the_vocabulary():
    inputs = inputs_for("llava", [1, 1], [9, 4])
    want = mmspec.generate(Target(llava()), inputs=inputs, max_new_tokens=6).token_ids
    model = llava()
    model.config.image_token_id = 70
    for pad in (-100, 71):
        ids = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 70)
        ids = ids.masked_fill(inputs["attention_mask"] == 0, pad)
        assert (ids == pad).any()
        out = mmspec.generate(Target(model), inputs={**inputs, "input_ids": ids}, max_new_tokens=6)
        assert out.token_ids == want


def test_numbers_of_other_types():
    target = Target(llama())
    sampled = {"inputs": inputs_for("llama", [0]), "max_new_tokens": 8, "temperature": 1.0, "seed": 4}
    want = mmspec.generate(target, **sampled).token_ids
    others = {"seed": np.int64(4), "max_new_tokens": np.int32(8), "temperature": np.float32(1)}
    assert mmspec.generate(target, **{**sampled, **others}).token_ids == want
    assert mmspec.generate(target, **{**sampled, "seed": 5}).token_ids != want
