"""Each of the five contacts, by a made-up method that uses nothing else, against timm's own model edited by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers_backbones import random_backbone, random_images
from timm.layers import GluMlp
from torch import nn

from vitgraft.backbones.base import drop_path
from vitgraft.common.errors import RequestError
from vitgraft.kernels.linear import Change
from vitgraft.method import Method


class Trains(Method):
    """train: tensors of every kind, as far as the family has them."""

    def attach(self, backbone):
        super().attach(backbone)
        names = ["patch_embed.proj.weight", "blocks.1.norm1.bias", "blocks.2.attn.qkv.weight", "norm.weight"]
        names += ["pos_embed", "cls_token", "reg_token", "norm_pre.weight", "attn_pool.latent", "blocks.3.ls2.gamma"]
        self.names = [name for name in names if name in backbone.tensors()]
        for name in self.names:
            self.contacts.train_tensor(backbone, name)


class Doubling(Change):
    """W -> 2 W + 1, b -> b - 1."""

    def merged(self, weight, bias):
        return 2 * weight + 1, bias - 1


class Scaling(Change):
    """W -> 2 W."""

    def merged(self, weight, bias):
        return 2 * weight, bias


class Changes(Method):
    def attach(self, backbone):
        super().attach(backbone)
        self.paths = ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.2.mlp.fc1", "blocks.3.mlp.fc2"]
        for path in self.paths:
            self.contacts.change(backbone, path, Doubling())


class Beside(nn.Module):
    """Uses all that a branch is given."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs, outputs, grid):
        return self.a(inputs) + grid[1] * self.b(outputs)


class Branches(Method):
    def attach(self, backbone):
        super().attach(backbone)
        self.contacts.add_branch(backbone, "blocks.1.attn", Beside(backbone.width))
        self.contacts.add_branch(backbone, "blocks.2.mlp", Beside(backbone.width))


class Tokens(Method):
    def attach(self, backbone):
        super().attach(backbone)
        self.two = nn.Parameter(torch.randn(1, 2, backbone.width))
        self.contacts.add_tokens(backbone, 1, self.two)


class Taps(Method):
    def attach(self, backbone):
        super().attach(backbone)
        for block in (0, 2, 3):
            self.contacts.tap(backbone, block)


def attached(cls, backbone):
    torch.manual_seed(0)
    method = cls()
    method.attach(backbone)
    return method


def timm_blocks(vit, images):
    """timm's forward up to the first block, as timm writes it."""
    return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))


def test_train_uses_a_copy_of_the_tensor(backbone, images):
    backbone, images = backbone.double(), images.double()
    method = attached(Trains, backbone)
    before = {name: t.clone() for name, t in backbone.tensors().items()}
    plain = backbone(images).tokens
    assert torch.equal(method.read(backbone, images).tokens, plain), "the copy starts from the tensor's value"
    edited = copy.deepcopy(backbone.vit)
    with torch.no_grad():
        for name, own in method.contacts.trained.named_parameters():
            own.add_(torch.randn_like(own))
            edited.get_parameter(name).copy_(own)
    assert sorted(n for n, _ in method.contacts.trained.named_parameters()) == sorted(method.names)
    found = method.read(backbone, images)
    torch.testing.assert_close(found.tokens, edited.forward_features(images))
    pooled = method.features(backbone, images, found).pooled
    torch.testing.assert_close(pooled, edited.forward_head(found.tokens, pre_logits=True))
    pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(torch.equal(t, before[name]) and t.grad is None for name, t in backbone.tensors().items())
    assert torch.equal(backbone(images).tokens, plain)


def test_weight_computes_what_its_merge_would_write(backbone, images):
    method = attached(Changes, backbone)
    edited = copy.deepcopy(backbone.vit)
    with torch.no_grad():
        for path in method.paths:
            linear = edited.get_submodule(path)
            weight, bias = Doubling().merged(linear.weight, linear.bias)
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    with torch.no_grad():
        torch.testing.assert_close(method.read(backbone, images).tokens, edited.forward_features(images))


def test_weight_changes_a_tensor_that_also_trains(cls):
    """A linear layer whose bias trains and whose weight is changed, as in Consolidator."""
    images, path = random_images(cls), "blocks.1.mlp.fc1"
    method = attached(Method, cls)
    method.contacts.train_tensor(cls, f"{path}.bias")
    method.contacts.change(cls, path, Doubling())
    edited = copy.deepcopy(cls.vit)
    with torch.no_grad():
        linear = edited.get_submodule(path)
        next(method.contacts.trained.parameters()).add_(3)
        linear.weight.mul_(2).add_(1)
        linear.bias.add_(3 - 1)
        torch.testing.assert_close(method.read(cls, images).tokens, edited.forward_features(images))


def test_branch_adds_outside_layer_scale(backbone, images):
    method = attached(Branches, backbone)
    vit, grid = backbone.vit, (images.shape[2] // backbone.patch[0], images.shape[3] // backbone.patch[1])
    with torch.no_grad():
        x = timm_blocks(vit, images)
        for i, block in enumerate(vit.blocks):
            for norm, part, scale in ((block.norm1, "attn", block.ls1), (block.norm2, "mlp", block.ls2)):
                inputs = norm(x)
                outputs = getattr(block, part)(inputs)
                x = x + scale(outputs)
                if f"blocks.{i}.{part}" in ("blocks.1.attn", "blocks.2.mlp"):
                    beside = method.contacts.branches.get_submodule(f"blocks.{i}.{part}")
                    x = x + beside.a(inputs) + grid[1] * beside.b(outputs)
        torch.testing.assert_close(method.read(backbone, images).tokens, vit.norm(x))


def test_tokens_live_for_one_block(backbone, images):
    method = attached(Tokens, backbone)
    vit = backbone.vit
    with torch.no_grad():
        x = timm_blocks(vit, images)
        x = vit.blocks[1](torch.cat([method.two.expand(len(x), -1, -1), vit.blocks[0](x)], dim=1))
        extra, x = x[:, :2], x[:, 2:]
        tokens = vit.norm(vit.blocks[3](vit.blocks[2](x)))
        found = method.read(backbone, images)
    torch.testing.assert_close(found.tokens, tokens)
    assert list(found.extra) == [1]
    torch.testing.assert_close(found.extra[1], extra)


def test_tap_hands_back_the_blocks_output(backbone, images):
    method = attached(Taps, backbone)
    found = method.read(backbone, images)
    with torch.no_grad():
        theirs = backbone.vit.forward_intermediates(
            images, indices=[0, 2, 3], norm=False, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
        )
    assert list(found.taps) == [0, 2, 3]
    for tap, other in zip(found.taps.values(), theirs, strict=True):
        patches, prefix = other if isinstance(other, tuple) else (other, other[:, :0])
        torch.testing.assert_close(tap[:, backbone.prefix :], patches)
        torch.testing.assert_close(tap[:, : backbone.prefix], prefix)
        assert not tap.requires_grad, "nothing trains inside, so it is read without autograd"


def test_a_linear_layer_that_is_not_written_out_cannot_be_changed():
    """SwiGLU is called as a whole: a change of its layers would be ignored in silence."""
    backbone = random_backbone("cls", mlp_layer=GluMlp)
    images = random_images(backbone)
    torch.testing.assert_close(backbone(images).tokens, backbone.vit.forward_features(images))
    contacts = attached(Method, backbone).contacts
    contacts.change(backbone, "blocks.0.attn.qkv", Doubling())
    with pytest.raises(RequestError, match=r"there are blocks\.N\.attn\.proj, blocks\.N\.attn\.qkv, blocks\.N\.norm1"):
        contacts.change(backbone, "blocks.0.mlp.fc1", Doubling())


def test_norms_and_the_patch_embedding_can_be_changed_too(backbone, images):
    """As if timm's own model had been edited."""
    contacts, vit = attached(Method, backbone).contacts, copy.deepcopy(backbone.vit)
    for path in ("patch_embed.proj", "blocks.1.norm2", "norm"):
        layer = vit.get_submodule(path)
        change = Doubling() if layer.bias is not None else Scaling()
        contacts.change(backbone, path, change)
        with torch.no_grad():
            weight, bias = change.merged(layer.weight.clone(), layer.bias)
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias.clone())
    torch.testing.assert_close(backbone(images, contacts).tokens, vit.forward_features(images))


def test_what_comes_after_a_sublayer(cls):
    """After the residual sum, before the next norm."""
    images, contacts = random_images(cls), attached(Method, cls).contacts
    contacts.add_after(cls, "blocks.1.attn", nn.Hardtanh())
    contacts.add_after(cls, "blocks.2.mlp", nn.ReLU())
    vit = copy.deepcopy(cls.vit)
    block = vit.blocks[1]
    block.forward = lambda x: _clamped(block, x)
    vit.blocks[2].register_forward_hook(lambda module, args, output: output.relu())
    assert contacts.kinds == ("branch",)
    torch.testing.assert_close(cls(images, contacts).tokens, vit.forward_features(images))


def _clamped(block, x):
    x = (x + block.attn(block.norm1(x))).clamp(-1, 1)
    return x + block.mlp(block.norm2(x))


def test_tokens_that_stay(backbone, images):
    """From block 1 to block 2; what they were at the end is handed back, and taps never see them."""
    contacts = attached(Method, backbone).contacts
    tokens = nn.Parameter(torch.randn(1, 3, backbone.width))
    contacts.add_tokens(backbone, 1, tokens, until=2)
    for block in range(-1, 4):
        contacts.tap(backbone, block)
    found = backbone(images, contacts)
    vit = backbone.vit
    x = vit.blocks[0](found.taps[-1])
    torch.testing.assert_close(found.taps[0], x)
    x = torch.cat([tokens.expand(len(x), -1, -1), x], 1)
    x = vit.blocks[2](vit.blocks[1](x))
    torch.testing.assert_close(found.extra, {2: x[:, :3]})
    torch.testing.assert_close(found.taps[2], x[:, 3:])
    torch.testing.assert_close(found.tokens, vit.norm(vit.blocks[3](x[:, 3:])))


def test_one_place_takes_one(cls):
    contacts = attached(Method, cls).contacts
    contacts.change(cls, "norm", Doubling())
    contacts.add_branch(cls, "blocks.0.mlp", Beside(48))
    contacts.add_after(cls, "blocks.0.mlp", nn.ReLU())
    contacts.add_tokens(cls, 1, nn.Parameter(torch.zeros(1, 1, 48)), until=2)
    for again in (
        lambda: contacts.change(cls, "norm", Doubling()),
        lambda: contacts.add_branch(cls, "blocks.0.mlp", Beside(48)),
        lambda: contacts.add_after(cls, "blocks.0.mlp", nn.ReLU()),
        lambda: contacts.add_tokens(cls, 2, nn.Parameter(torch.zeros(1, 1, 48))),
    ):
        with pytest.raises(ValueError, match="already"):
            again()


@pytest.mark.parametrize(
    ("cls_", "kinds", "crosses", "mergeable"),
    [
        (Method, (), False, True),
        (Trains, ("train",), True, True),
        (Changes, ("weight",), True, True),
        (Branches, ("branch",), True, False),
        (Tokens, ("tokens",), True, False),
        (Taps, ("tap",), False, False),
    ],
)
def test_what_the_contacts_imply(cls, cls_, kinds, crosses, mergeable):
    method = attached(cls_, cls)
    assert method.contacts.kinds == kinds
    assert method.crosses_backbone == crosses
    assert method.mergeable == mergeable


def test_all_five_at_once_and_none_afterwards(backbone, images):
    """In one method, and the backbone alone is bitwise what it was."""

    class All(Trains, Changes, Branches, Tokens, Taps):
        pass

    plain = backbone(images).tokens
    method = attached(All, backbone)
    assert method.contacts.kinds == ("train", "weight", "branch", "tokens", "tap")
    method.read(backbone, images).tokens.sum().backward()
    assert torch.equal(backbone(images).tokens, plain)


def test_unknown_places_are_said_with_what_exists(cls):
    contacts = attached(Method, cls).contacts
    with pytest.raises(
        RequestError,
        match=r"attn\.qvk.*attn\.proj, .*attn\.qkv, .*mlp\.fc2.*Did you mean 'blocks\.1\.attn\.qkv'",
    ):
        contacts.change(cls, "blocks.1.attn.qvk", Doubling())
    with pytest.raises(RequestError, match=r"'blocks\.4\.attn'.*blocks\.3\.mlp"):
        contacts.add_branch(cls, "blocks.4.attn", Beside(48))
    with pytest.raises(RequestError, match=r"'blocks\.0\.norm3\.weight'"):
        contacts.train_tensor(cls, "blocks.0.norm3.weight")
    for block in (-2, 4):
        with pytest.raises(RequestError, match=f"block {block}.*0 to 3"):
            contacts.tap(cls, block)
        with pytest.raises(RequestError, match=f"block {block}.*0 to 3"):
            contacts.add_tokens(cls, block, nn.Parameter(torch.zeros(1, 1, 48)))
    assert contacts.kinds == ()


def test_drop_path_is_for_training_inside_the_backbone(cls):
    images = random_images(cls, batch=8)
    plain = cls(images).tokens
    crossing, beside = attached(Changes, cls), attached(Taps, cls)
    for method in (crossing, beside):
        method.contacts.drop_path = 0.9
    assert torch.equal(beside.train().read(cls, images).tokens, plain), "a pass that may be kept has no chance in it"
    one, two = (crossing.train().read(cls, images).tokens for _ in range(2))
    assert not torch.equal(one, two)
    one, two = (crossing.eval().read(cls, images).tokens for _ in range(2))
    assert torch.equal(one, two)


def test_drop_path_drops_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    dropped = drop_path(x, 0.25)
    assert set(dropped.flatten().tolist()) == {0.0, x.div(0.75)[0, 0, 0].item()}
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2))), "a sample as a whole"
    assert dropped.mean().item() == pytest.approx(1, abs=0.03)
    assert drop_path(x, 0.0) is x


def test_a_change_may_compute_the_same_without_forming_the_weight(cls):
    """What `Change.forward` is free to do: the default is the definition."""
    linear = cls.linears["blocks.0.mlp.fc1"]
    x = torch.randn(2, 5, 48)
    torch.testing.assert_close(
        Doubling()(x, linear.weight, linear.bias), F.linear(x, 2 * linear.weight + 1, linear.bias - 1)
    )
