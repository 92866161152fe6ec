"""Each of the six contacts, by a made-up method that uses nothing else, against timm's own model edited by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import GatedMlp, GluMlp
from torch import nn

from vitgraft.backbones.base import drop_path
from vitgraft.common.errors import RequestError
from vitgraft.kernels.linear import Change
from vitgraft.method import Method
from vitgraft.testing.backbones import FAMILIES, random_backbone, random_images


class Trains(Method):
    """train: tensors of every kind, as far as the family has them."""

    def attach(self, backbone):
        super().attach(backbone)
        names = ["patch_embed.proj.weight", "norm.weight", "pos_embed", "cls_token", "reg_token", "norm_pre.weight"]
        names += ["attn_pool.latent", "fc_norm.weight", "layers.1.downsample.reduction.weight"]
        leaves = [
            "norm1.bias",
            "attn.qkv.weight",
            "attn.v_proj.weight",
            "attn.q_bias",
            "mlp.fc1_g.weight",
            "mlp.norm.bias",
        ]
        leaves += [
            "ls2.gamma",
            "gamma_2",
            "attn.relative_position_bias_table",
            "attn.logit_scale",
            "attn.cpb_mlp.0.weight",
        ]
        names += [f"{backbone.blocks[1].path}.{leaf}" for leaf in leaves]
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
    """weight: a layer of every role; each is as it were edited in place."""

    def attach(self, backbone):
        super().attach(backbone)
        roles = zip(backbone.blocks, ("qkv", "proj", "fc1", "fc2"), strict=False)
        self.paths = [path for block, role in roles for path in backbone.layers(block, role)]
        for path in self.paths:
            change = Scaling() if backbone.linear(path).bias is None else Doubling()
            self.contacts.change(backbone, path, change)


class Beside(nn.Module):
    """Uses all that a branch is given."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs, outputs, grid):
        return self.a(inputs) + grid[1] * self.b(outputs)


BESIDE = ((1, "attn"), (2, "mlp"))


class Branches(Method):
    def attach(self, backbone):
        super().attach(backbone)
        for i, sublayer in BESIDE:
            block = backbone.blocks[i]
            self.contacts.add_branch(backbone, f"{block.path}.{sublayer}", Beside(block.width))


class Tokens(Method):
    def attach(self, backbone):
        super().attach(backbone)
        self.two = nn.Parameter(torch.randn(1, 2, backbone.blocks[1].width))
        self.contacts.add_tokens(backbone, 1, self.two)


class OwnKeys(nn.Module):
    def __init__(self, block, T=3):
        super().__init__()
        self.both = nn.Parameter(torch.randn(2, block.heads, T, block.width // block.heads))

    def forward(self):
        return self.both[0], self.both[1]


class Prefixes(Method):
    def attach(self, backbone):
        super().attach(backbone)
        self.own = OwnKeys(backbone.blocks[2])
        self.contacts.add_prefix(backbone, 2, self.own)


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


def edited_by(method, backbone, paths):
    """A copy of timm's model in which these layers are changed."""
    vit = copy.deepcopy(backbone.vit)
    with torch.no_grad():
        for path in paths:
            layer = vit.get_submodule(path)
            weight, bias = method.contacts.change_at[path].merged(layer.weight.clone(), layer.bias)
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias.clone())
    return vit


def features(vit, images):
    """timm's tokens, of a map too: [B, T, D]."""
    found = vit.forward_features(images)
    return found.flatten(1, 2) if found.ndim == 4 else found


class Timm:
    """timm's forward of one picture batch, block by block, as timm writes it; tokens are [B, T, D]."""

    def __init__(self, vit, images):
        self.vit, self.rope, self.staged = vit, None, hasattr(vit, "layers")
        x = vit.patch_embed(images)
        if self.staged:
            self.blocks = [(stage, block) for stage in vit.layers for block in stage.blocks]
            self.grid = x.shape[1:3]
            self.start = x.flatten(1, 2)
            return
        self.blocks = [(None, block) for block in vit.blocks]
        self.grid = x.shape[1:3]
        found = vit._pos_embed(x)
        found, self.rope = found if isinstance(found, tuple) else (found, None)
        self.start = vit.norm_pre(found)

    def sublayers(self, i, x, front=0):
        """The input of block i, and of both its sub-layers (function, norm, its place, gamma)."""
        stage, block = self.blocks[i]
        if stage is not None and stage.blocks[0] is block:
            x = stage.downsample(x.unflatten(1, self.grid))
            self.grid, x = x.shape[1:3], x.flatten(1, 2)
        post = type(block).__name__ in ("SwinTransformerV2Block", "EvaBlockPostNorm")
        if stage is not None:
            grid = self.grid
            parts = (lambda y: block._attn(y.unflatten(1, grid)).flatten(1, 2), block.mlp)
        elif self.rope is not None:
            block.attn.num_prefix_tokens = self.vit.num_prefix_tokens + front
            parts = (lambda y: block.attn(y, rope=self.rope), block.mlp)
        else:
            parts = (block.attn, block.mlp)
        gammas = [getattr(block, f"gamma_{n}", None) for n in (1, 2)]
        if hasattr(block, "ls1"):
            gammas = [getattr(ls, "gamma", None) for ls in (block.ls1, block.ls2)]
        return x, [(parts[n], getattr(block, f"norm{n + 1}"), post, gammas[n]) for n in (0, 1)]

    def block(self, i, x, front=0):
        x, sublayers = self.sublayers(i, x, front)
        for function, norm, post, gamma in sublayers:
            y = norm(function(x)) if post else function(norm(x))
            x = x + (y if gamma is None else gamma * y)
        return x


def test_train_uses_a_copy_of_the_tensor(backbone, images):
    backbone, images = backbone.double(), images.double()
    method = attached(Trains, backbone)
    before = {name: t.clone() for name, t in backbone.tensors().items()}
    plain = backbone(images).tokens
    # The copy starts from the tensor's value; to the last bit but where torch takes another kernel for what trains.
    torch.testing.assert_close(method.read(backbone, images).tokens, plain, rtol=1e-12, atol=1e-12)
    edited = copy.deepcopy(backbone.vit)
    with torch.no_grad():
        for name, own in method.contacts.trained.named_parameters():
            own.add_(torch.randn_like(own))
            edited.get_parameter(name).copy_(own)
    assert sorted(n for n, _ in method.contacts.trained.named_parameters()) == sorted(method.names)
    found = method.read(backbone, images)
    torch.testing.assert_close(found.tokens, features(edited, images))
    pooled = method.features(backbone, images, found).pooled
    torch.testing.assert_close(pooled, edited.forward_head(edited.forward_features(images), pre_logits=True))
    pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in method.parameters())
    assert all(torch.equal(t, before[name]) and t.grad is None for name, t in backbone.tensors().items())
    assert torch.equal(backbone(images).tokens, plain)


def test_weight_computes_what_its_merge_would_write(backbone, images):
    backbone, images = backbone.double(), images.double()
    method = attached(Changes, backbone)
    edited = edited_by(method, backbone, method.paths)
    assert len(method.paths) >= 4
    with torch.no_grad():
        torch.testing.assert_close(method.read(backbone, images).tokens, features(edited, images))


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
    backbone, images = backbone.double(), images.double()
    method = attached(Branches, backbone).double()
    with torch.no_grad():
        timm = Timm(backbone.vit, images)
        x = timm.start
        for i, block in enumerate(backbone.blocks):
            x, sublayers = timm.sublayers(i, x)
            for part, (function, norm, post, gamma) in zip(("attn", "mlp"), sublayers, strict=True):
                inputs = x if post else norm(x)
                outputs = norm(function(inputs)) if post else function(inputs)
                x = x + (outputs if gamma is None else gamma * outputs)
                if (i, part) in BESIDE:
                    beside = method.contacts.branches.get_submodule(f"{block.path}.{part}")
                    x = x + beside.a(inputs) + timm.grid[1] * beside.b(outputs)
        torch.testing.assert_close(method.read(backbone, images).tokens, backbone.vit.norm(x))


def test_tokens_live_for_one_block(backbone, images):
    backbone, images = backbone.double(), images.double()
    method = attached(Tokens, backbone).double()
    with torch.no_grad():
        timm = Timm(backbone.vit, images)
        x = timm.block(0, timm.start)
        two = method.two.expand(len(x), -1, -1)
        if timm.staged:
            extra, x = in_every_window(timm, 1, two, x)
        else:
            x = timm.block(1, torch.cat([two, x], dim=1), front=2)
            extra, x = x[:, :2], x[:, 2:]
        for i in range(2, backbone.depth):
            x = timm.block(i, x)
        found = method.read(backbone, images)
    torch.testing.assert_close(found.tokens, backbone.vit.norm(x))
    assert list(found.extra) == [1]
    torch.testing.assert_close(found.extra[1], extra)


def in_every_window(timm, i, two, x):
    """Block i of a Swin with two tokens in front of every window, one window and one picture after the other."""
    x, ((_, norm1, post, _), (mlp, norm2, _, _)) = timm.sublayers(i, x)
    block = timm.blocks[i][1]
    (h, w), (a, b) = timm.grid, block.window_size
    assert not h % a, "no padding here"
    assert not w % b
    y = torch.cat([two, x], dim=1) if post else norm1(torch.cat([two, x], dim=1))
    extra, patches = y[:, :2], y[:, 2:].unflatten(1, (h, w)).roll([-s for s in block.shift_size], (1, 2))
    mask = block.get_attn_mask(patches)
    made, became = torch.zeros_like(patches), []
    for n, (top, left) in enumerate((top, left) for top in range(0, h, a) for left in range(0, w, b)):
        inside = torch.cat([extra, patches[:, top : top + a, left : left + b].flatten(1, 2)], dim=1)
        outside = window_attention(block.attn, inside, None if mask is None else mask[n])
        became.append(outside[:, :2])
        made[:, top : top + a, left : left + b] = outside[:, 2:].unflatten(1, (a, b))
    made = made.roll(tuple(block.shift_size), (1, 2)).flatten(1, 2)
    y = torch.cat([torch.stack(became).mean(0), made], dim=1)
    x = torch.cat([two, x], dim=1)
    x = x + (norm1(y) if post else y)
    x = x + (norm2(mlp(x)) if post else mlp(norm2(x)))
    return x[:, :2], x[:, 2:]


def window_attention(attn, x, mask):
    """timm's, but that the first two tokens have no position."""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    if hasattr(attn, "logit_scale"):
        heads = attn.num_heads
        q, v = (t + bias.view(heads, 1, -1) for t, bias in ((q, attn.q_bias), (v, attn.v_bias)))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * attn.logit_scale.clamp(max=math.log(100)).exp()
        table = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, heads).sigmoid()
        bias = table[attn.relative_position_index].permute(2, 0, 1)
    else:
        scores, bias = q @ k.mT * attn.scale, attn._get_rel_pos_bias()[0]
    scores[:, :, 2:, 2:] += bias if mask is None else bias + mask
    return attn.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_tap_hands_back_the_blocks_output(backbone, images):
    method = attached(Taps, backbone)
    found = method.read(backbone, images)
    with torch.no_grad():
        timm = Timm(backbone.vit, images)
        x, theirs = timm.start, []
        for i in range(backbone.depth):
            x = timm.block(i, x)
            theirs.append(x)
    assert list(found.taps) == [0, 2, 3]
    for i, tap in found.taps.items():
        torch.testing.assert_close(tap, theirs[i], rtol=1e-4, atol=1e-4)
        assert not tap.requires_grad, "nothing trains inside, so it is read without autograd"


def test_the_layers_of_a_gated_mlp_can_be_changed_and_those_of_an_unknown_one_cannot():
    backbone = random_backbone("cls", mlp_layer=GluMlp).double()
    images = random_images(backbone).double()
    torch.testing.assert_close(backbone(images).tokens, features(backbone.vit, images))
    method = attached(Changes, backbone)
    edited = edited_by(method, backbone, method.paths)
    torch.testing.assert_close(backbone(images, method.contacts).tokens, features(edited, images))
    backbone = random_backbone("cls", mlp_layer=GatedMlp)
    images = random_images(backbone)
    torch.testing.assert_close(backbone(images).tokens, features(backbone.vit, images))
    contacts = attached(Method, backbone).contacts
    contacts.change(backbone, "blocks.0.attn.qkv", Doubling())
    with pytest.raises(RequestError, match=r"there are blocks\.N\.attn\.proj, blocks\.N\.attn\.qkv, blocks\.N\.norm1"):
        contacts.change(backbone, "blocks.0.mlp.fc1", Doubling())  # it is called as a whole, which would not see it


def test_norms_and_the_patch_embedding_can_be_changed_too(backbone, images):
    """As if timm's own model had been edited."""
    backbone, images = backbone.double(), images.double()
    method = attached(Method, backbone)
    others = [path for path in backbone.affine if path not in backbone.linears]
    assert {"patch_embed.proj", f"{backbone.blocks[1].path}.norm2"} <= set(others)
    for path in others:
        bias = backbone.affine[path].bias
        method.contacts.change(backbone, path, Scaling() if bias is None else Doubling())
    edited = edited_by(method, backbone, others)
    torch.testing.assert_close(backbone(images, method.contacts).tokens, features(edited, images))


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


def test_what_stands_beside_a_linear_layer(backbone, images):
    """Inside windows too, where there are some."""
    method = attached(Method, backbone)
    vit, block = copy.deepcopy(backbone.vit), backbone.blocks[1]
    roles = ("proj", "fc2") if backbone.post_norm else ("qkv", "fc2")  # Swin-V2 has biases of q and v beside its layer
    paths = backbone.layers(block, *roles)
    for path in paths:
        linear = backbone.linear(path)
        branch = OnLinear(linear.in_features, linear.out_features)
        method.contacts.add_branch(backbone, path, branch)
        vit.get_submodule(path).register_forward_hook(lambda module, args, y, f=branch: y + f(args[0], y, None))
    assert method.contacts.kinds == ("branch",)
    torch.testing.assert_close(backbone(images, method.contacts).tokens, features(vit, images))


class OnLinear(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.a, self.b = nn.Linear(ins, outs), nn.Linear(outs, outs)

    def forward(self, inputs, outputs, grid):
        assert grid is None
        return self.a(inputs).tanh() + self.b(outputs)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "swin" not in name])
def test_what_comes_before_a_block(backbone, images):
    """Before its tokens and taps, after positions."""
    backbone, images = backbone.double(), images.double()
    contacts = attached(Method, backbone).contacts
    h, w = (images.shape[2] // backbone.patch[0], images.shape[3] // backbone.patch[1])

    class Turn(nn.Module):
        def forward(self, x, grid):
            assert grid == (h, w)
            return x.flip(1).cos()

    for block in (0, 2):
        contacts.add_before(backbone, block, Turn())
    contacts.tap(backbone, -1)
    contacts.tap(backbone, 1)
    found, timm = backbone(images, contacts), Timm(backbone.vit, images)
    x = timm.start.flip(1).cos()
    torch.testing.assert_close(found.taps[-1], x)
    x = timm.block(1, timm.block(0, x))
    torch.testing.assert_close(found.taps[1], x)
    x = timm.block(3, timm.block(2, x.flip(1).cos()))
    torch.testing.assert_close(found.tokens, backbone.vit.norm(x))


def test_keys_and_values_of_its_own(cls):
    """Every token looks at them too; they have no row."""
    cls = cls.double()
    images, method = random_images(cls).double(), attached(Prefixes, cls).double()
    edited = copy.deepcopy(cls.vit)
    edited.blocks[2].attn.forward = lambda z, **_: attention_by_hand(edited.blocks[2].attn, z, method.own)
    torch.testing.assert_close(cls(images, method.contacts).tokens, edited.forward_features(images))
    assert not torch.equal(cls(images).tokens, edited.forward_features(images))


def attention_by_hand(attn, z, own):
    q, k, v = attn.qkv(z).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    K, V = (t.expand(len(z), -1, -1, -1) for t in own())
    scores = q @ torch.cat([K, k], 2).mT * attn.head_dim**-0.5
    return attn.proj((scores.softmax(-1) @ torch.cat([V, v], 2)).transpose(1, 2).flatten(2))


def _clamped(block, x):
    x = (x + block.attn(block.norm1(x))).clamp(-1, 1)
    return x + block.mlp(block.norm2(x))


@pytest.mark.parametrize("family", [name for name in FAMILIES if "swin" not in name])
def test_tokens_that_stay(backbone, images):
    """From block 1 to block 2; what they were at the end is handed back, and taps never see them."""
    backbone, images = backbone.double(), images.double()
    contacts = attached(Method, backbone).contacts
    tokens = nn.Parameter(torch.randn(1, 3, backbone.width).double())
    contacts.add_tokens(backbone, 1, tokens, until=2)
    for block in range(-1, 4):
        contacts.tap(backbone, block)
    found = backbone(images, contacts)
    timm = Timm(backbone.vit, images)
    torch.testing.assert_close(found.taps[-1], timm.start)
    x = timm.block(0, timm.start)
    torch.testing.assert_close(found.taps[0], x)
    x = torch.cat([tokens.expand(len(x), -1, -1), x], 1)
    x = timm.block(2, timm.block(1, x, front=3), front=3)
    torch.testing.assert_close(found.extra, {2: x[:, :3]})
    torch.testing.assert_close(found.taps[2], x[:, 3:])
    torch.testing.assert_close(found.tokens, backbone.vit.norm(timm.block(3, x[:, 3:])))


def test_one_place_takes_one(cls):
    contacts = attached(Method, cls).contacts
    contacts.change(cls, "norm", Doubling())
    contacts.add_branch(cls, "blocks.0.mlp", Beside(48))
    contacts.add_after(cls, "blocks.0.mlp", nn.ReLU())
    contacts.add_before(cls, 3, nn.ReLU())
    contacts.add_prefix(cls, 3, OwnKeys(cls.blocks[3]))
    contacts.add_tokens(cls, 1, nn.Parameter(torch.zeros(1, 1, 48)), until=2)
    for again in (
        lambda: contacts.change(cls, "norm", Doubling()),
        lambda: contacts.add_branch(cls, "blocks.0.mlp", Beside(48)),
        lambda: contacts.add_after(cls, "blocks.0.mlp", nn.ReLU()),
        lambda: contacts.add_before(cls, 3, nn.ReLU()),
        lambda: contacts.add_prefix(cls, 3, OwnKeys(cls.blocks[3])),
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
        (Prefixes, ("prefix",), True, False),
        (Taps, ("tap",), False, False),
    ],
)
def test_what_the_contacts_imply(cls, cls_, kinds, crosses, mergeable):
    method = attached(cls_, cls)
    assert method.contacts.kinds == kinds
    assert method.crosses_backbone == crosses
    assert method.mergeable == mergeable


def test_all_six_at_once_and_none_afterwards(backbone, images):
    """In one method, and the backbone alone is bitwise what it was."""

    class All(Trains, Changes, Branches, Tokens, Prefixes, Taps):
        pass

    plain = backbone(images).tokens
    method = attached(All, backbone)
    assert method.contacts.kinds == ("train", "weight", "branch", "tokens", "prefix", "tap")
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
        with pytest.raises(RequestError, match=f"block {block}.*0 to 3"):
            contacts.add_prefix(cls, block, OwnKeys(cls.blocks[0]))
        with pytest.raises(RequestError, match=f"block {block}.*0 to 3"):
            contacts.add_before(cls, block, nn.ReLU())
    assert contacts.kinds == ()


def test_drop_path_is_for_training_inside_the_backbone(cls):
    images = random_images(cls, batch=8)
    plain = cls(images).tokens
    crossing, beside = attached(Changes, cls), attached(Taps, cls)
    for method in (crossing, beside):
        method.contacts.in_training.drop_path = 0.9
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
