"""What E2VPT, eTT and Pro-tuning promise beside the behaviour matrix."""

import pytest
import torch
import torch.nn.functional as F

from vitgraft.common.errors import RequestError
from vitgraft.methods.e2vpt import chosen, in_pieces, whole
from vitgraft.methods.pro_tuning import Prompt
from vitgraft.model import build
from vitgraft.testing.backbones import random_images
from vitgraft.testing.methods import model_of, shaken


def test_without_keys_and_values_e2vpt_is_vpt(cls):
    images = random_images(cls)
    ours, vpt = build(cls, "e2vpt", classes=5, key_value=0), build(cls, "vpt", classes=5)
    for i, tokens in enumerate(vpt.method.tokens):
        tokens.data.copy_(ours.method.inputs[i])
    vpt.head.load_state_dict(ours.head.state_dict())
    assert torch.equal(ours.eval()(images), vpt.eval()(images))


def test_without_prompts_e2vpt_has_keys_and_values_alone(cls):
    method = build(cls, "e2vpt", classes=5, prompts=0).method
    assert method.contacts.kinds == ("prefix",)
    assert method.size == 4 * 5 * 48


def test_pieces_are_every_qth_channel():
    prompts = torch.arange(24.0).view(2, 12)
    pieces = in_pieces(prompts, 4)
    assert pieces[0].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert torch.equal(whole(pieces), prompts)


@pytest.mark.parametrize("keep_zero", [False, True])
def test_what_is_pruned_is_gone_and_the_rest_begins_again(cls, keep_zero):
    arguments = {"prompts": 4, "pieces": 8, "drop_tokens": 0.5, "drop_pieces": 0.25, "first_epochs": 2}
    method = model_of(("e2vpt", {**arguments, "keep_zero": keep_zero}), cls).method
    first = build(cls, "e2vpt", classes=5, prompts=4, seed=0).method  # the same draw, as its own seed is 0
    tokens = [method.contacts.tokens[i][0](1)[0] for i in range(4)]
    assert {t.shape for t in tokens} == {(4 if keep_zero else 2, 48)}
    masks = [in_pieces(t, 8).ne(0).any(-1) for t in tokens]
    assert all(torch.equal(mask, masks[0]) for mask in masks), "all blocks drop the same"
    assert sorted(masks[0].sum(1).tolist()) == ([0, 0, 6, 6] if keep_zero else [6, 6])
    if keep_zero:
        for own, t, mask in zip(first.inputs, tokens, masks, strict=True):
            assert torch.equal(in_pieces(t, 8)[mask], in_pieces(own.detach(), 8)[mask])
    for ours, theirs in zip(method.keys_values, first.keys_values, strict=True):
        assert torch.equal(ours, theirs)


def test_absolute_scores_keep_what_the_loss_would_miss():
    gradients = torch.tensor([[-9.0, 1, 0, 0], [1, 1, 1, 1], [0.1, 0, 0, 0]])
    assert chosen(gradients, 2, 2, "absolute").int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    assert chosen(gradients, 2, 2, "released").int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1]]


def test_dropout_is_drawn_for_each_picture(cls):
    method = build(cls, "e2vpt", classes=5, dropout=0.5).method.train()
    made = method.contacts.tokens[0][0](6)
    assert len({tuple(t.flatten().tolist()) for t in made}) == 6
    assert method.eval().contacts.tokens[0][0](6).shape[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": 0, "key_value": 0}, "which would add nothing: give one or more of either"),
        ({"prompts": 0, "drop_tokens": 0.5}, "was to drop prompts, but has none"),
        ({"drop_tokens": 1.0}, "is a share"),
        ({"pieces": 7, "drop_pieces": 0.5}, "width 48 .* cannot be cut into 7 pieces"),
    ],
)
def test_what_e2vpt_cannot_be(cls, arguments, said):
    with pytest.raises(RequestError, match=said):
        build(cls, "e2vpt", classes=3, **arguments)


def test_pruning_all_away_leaves_the_least(cls):
    method = build(cls, "e2vpt", classes=3, prompts=3, pieces=16, drop_tokens=0.99, drop_pieces=0.99).method
    assert method.kept == (1, 4)


def test_what_ett_stores_answers_as_what_trained(cls):
    model, images = shaken(model_of(("ett", {}), cls)), random_images(cls)
    before, trained = model(images), sum(p.numel() for p in model.method.parameters())
    model.method.consolidate()
    torch.testing.assert_close(model(images), before)
    assert sum(p.numel() for p in model.method.parameters()) == model.method.size < trained


def test_ett_wants_pictures_of_every_class(cls):
    method = build(cls, "ett", classes=4).method
    with pytest.raises(RequestError, match="1 of 4 classes have none"):
        method.calibrate(cls, [(random_images(cls, batch=3), torch.arange(3))])


def test_prototypes_are_kept_apart_as_they_were(cls):
    model = model_of(("ett", {}), cls)
    images, labels = random_images(cls, batch=5), torch.arange(5)
    losses = model.train()(images, labels)
    assert set(losses) == {"cross_entropy", "prototypes"}
    assert losses["prototypes"] > 0
    assert set(model_of(("ett", {"regulariser": 0.0}), cls).train()(images, labels)) == {"cross_entropy"}


@pytest.mark.parametrize(("h", "w", "prefix"), [(4, 4, 1), (3, 5, 0), (2, 7, 3)])
def test_a_prompt_of_the_map(h, w, prefix):
    """The formula in float64, on a map that is not square; what stands before the patches is untouched."""
    torch.manual_seed(0)
    prompt = Prompt(10, 6, 3).double()
    x = torch.randn(2, prefix + h * w, 10, dtype=torch.float64)
    assert torch.equal(prompt(x, (h, w)), x), "it begins as nothing"
    for p in prompt.parameters():
        p.data.normal_()
    G = x[:, prefix:].mT.reshape(2, 10, h, w)
    u = F.gelu(F.conv2d(G, prompt.reduce.weight[:, :, None, None], prompt.reduce.bias))
    u = F.gelu(F.conv2d(u, prompt.depthwise.weight, prompt.depthwise.bias, padding=1, groups=6))
    expected = G + prompt.beta * F.conv2d(u, prompt.widen.weight[:, :, None, None], prompt.widen.bias)
    y = prompt(x, (h, w))
    torch.testing.assert_close(y[:, prefix:].mT.reshape(2, 10, h, w), expected)
    assert torch.equal(y[:, :prefix], x[:, :prefix])


def test_where_prompts_of_the_map_stand(cls):
    assert [*build(cls, "pro_tuning", classes=3, places=2).method.contacts.before_at] == ["blocks.0", "blocks.2"]
    with pytest.raises(RequestError, match=r"5 places, but .* has 4 blocks"):
        build(cls, "pro_tuning", classes=3, places=5)
    with pytest.raises(RequestError, match="give an odd number"):
        build(cls, "pro_tuning", classes=3, kernel=4)
