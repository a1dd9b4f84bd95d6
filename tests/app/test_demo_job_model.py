from __future__ import annotations

import numpy as np
import pytest

from app.demo_job import layers
from app.demo_job.corpus import Corpus, load_corpus
from app.demo_job.model import LanguageModel, ModelConfig

SMALL = ModelConfig(vocabulary=7, context=5, width=8, heads=2, blocks=2, hidden=12)
DIFFERENCE = 1e-5


@pytest.fixture
def small_model() -> LanguageModel:
    """A model of 1,100 float64 parameters, none of them at a special value such as a bias of zero or a gain of one."""
    rng = np.random.default_rng(3)
    model = LanguageModel(SMALL, rng, np.float64)
    for array in model.params.values():
        array[...] += 0.1 * rng.standard_normal(array.shape)
    return model


@pytest.fixture
def batch() -> tuple[layers.Tokens, layers.Tokens]:
    """Three pieces of five tokens and their targets."""
    rng = np.random.default_rng(4)
    return rng.integers(0, 7, size=(3, 5)), rng.integers(0, 7, size=(3, 5))


@pytest.mark.parametrize("name", list(LanguageModel(SMALL, np.random.default_rng(0)).params))
def test_a_gradient_is_the_slope_of_the_loss(
    small_model: LanguageModel, batch: tuple[layers.Tokens, layers.Tokens], name: str
) -> None:
    """Every element of every parameter: backward agrees with a central difference of two forwards."""
    small_model.forward(*batch)
    gradient = dict(small_model.backward(loss_scale=1.0))[name]
    parameter = small_model.params[name]
    slopes = np.zeros_like(parameter)
    for at in np.ndindex(parameter.shape):
        kept = parameter[at]
        parameter[at] = kept + DIFFERENCE
        above = small_model.forward(*batch)
        parameter[at] = kept - DIFFERENCE
        slopes[at] = (above - small_model.forward(*batch)) / (2 * DIFFERENCE)
        parameter[at] = kept
    assert np.abs(slopes).max() > 0
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-9)


def test_backward_gives_each_parameter_once_from_the_head_to_the_embeddings(
    small_model: LanguageModel, batch: tuple[layers.Tokens, layers.Tokens]
) -> None:
    """The order of backward is the order that "first parameter" refers to."""
    small_model.forward(*batch)
    names = [name for name, _ in small_model.backward(loss_scale=1.0)]
    assert sorted(names) == sorted(small_model.params)
    assert names[:2] == ["head.bias", "head.weight"]
    assert names.index("blocks.1.mlp.w2") < names.index("blocks.1.mlp.w1") < names.index("blocks.1.attention.out")
    assert names.index("blocks.1.attention.norm") < names.index("blocks.0.mlp.b2")
    assert names[-2:] == ["embedding.position", "embedding.token"]


def test_the_loss_scale_multiplies_every_gradient(
    small_model: LanguageModel, batch: tuple[layers.Tokens, layers.Tokens]
) -> None:
    """A scale of 1,024 gives 1,024 times the gradient, exactly, since it is a power of two."""
    small_model.forward(*batch)
    plain = dict(small_model.backward(loss_scale=1.0))
    for name, scaled in small_model.backward(loss_scale=1024.0):
        np.testing.assert_array_equal(scaled, plain[name] * 1024.0)


def test_a_character_is_predicted_from_earlier_ones_only() -> None:
    """Attention is causal: changing the last value leaves every earlier output as it was."""
    rng = np.random.default_rng(5)
    query, key, value = rng.standard_normal((3, 1, 2, 4, 3))
    before, _ = layers.attention(query, key, value)
    key[:, :, -1] += 1.0
    value[:, :, -1] += 1.0
    after, _ = layers.attention(query, key, value)
    np.testing.assert_array_equal(before[:, :, :-1], after[:, :, :-1])
    assert not np.array_equal(before[:, :, -1], after[:, :, -1])


def test_a_certain_and_wrong_model_has_a_large_loss_and_not_an_infinite_one() -> None:
    """The log of the softmax does not underflow: the loss of logits that are 10,000 apart is 10,000."""
    loss, _ = layers.cross_entropy(np.array([[[10_000.0, 0.0]]], dtype=np.float32), np.array([[1]]))
    assert loss == 10_000.0


def test_targets_are_the_inputs_one_character_on() -> None:
    """What the model learns to say next is what the text says next."""
    corpus = Corpus.of_text("abcdefghij")
    inputs, targets = corpus.batch(np.random.default_rng(0), batch=20, context=4)
    np.testing.assert_array_equal(inputs + 1, targets)
    assert {int(inputs.min()), int(targets.max())} == {0, 9}


def test_the_corpus_is_the_text_beside_it() -> None:
    """The tokens spell Newton's first sentence, and enough text follows to train on."""
    corpus = load_corpus()
    text = "".join(corpus.characters[token] for token in corpus.tokens[:200])
    assert "My Design in this Book is not to explain the Properties of Light by\nHypotheses" in text
    assert corpus.tokens.size > 100_000
