"""timm's plain Vision Transformer, and the only file that knows the names of its modules."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, global_pool_nlc, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.func import functional_call

from ..contacts import Contacts
from ..features import Activations
from ..kernels.attention import attention
from ..kernels.linear import frozen_linear
from ..kernels.recompute import checkpointed, recomputed
from .base import Backbone, drop_path
from .weights import Loaded

# The linear layers of a block that a method may change; their own forward passes are written out below.
CHANGEABLE = ("qkv", "proj", "fc1", "fc2")


class ViT(Backbone):
    """timm's plain ViT: AugReg, DeiT, DINO, DINOv2, MAE, CLIP, SigLIP.

    The forward pass is written out here, over timm's own modules, because a method's contacts lie between them. With no
    contacts it equals timm's.
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        vit: Any = self.vit
        self.width = vit.embed_dim
        self.depth = len(vit.blocks)
        self.prefix = vit.num_prefix_tokens
        self.has_cls = vit.has_class_token
        self.pooling = vit.global_pool or ("token" if self.has_cls else "avg")
        self.patch = vit.patch_embed.patch_size
        self.has_layerscale = not isinstance(self._at["blocks.0.ls1"], nn.Identity)
        first: Any = self._at["blocks.0.attn"]
        self.heads = first.num_heads
        self.linears = {
            path: module
            for path, module in self._at.items()
            if path.startswith("blocks.")
            and isinstance(module, nn.Linear)
            and path.split(".")[-1] in CHANGEABLE
            and type(self._at[path.rpartition(".")[0]]) in (Attention, Mlp)
        }
        norms = {
            path: module
            for path, module in self._at.items()
            if isinstance(module, nn.LayerNorm) and (path == "norm" or re.fullmatch(r"blocks\.\d+\.norm[12]", path))
        }
        self.affine = {"patch_embed.proj": self._at["patch_embed.proj"], **norms, **self.linears}

    @classmethod
    def takes(cls, vit: nn.Module) -> bool:
        return isinstance(vit, VisionTransformer)

    @property
    def timm_arguments(self) -> dict[str, Any]:
        """What `timm.create_model` needs besides `architecture` and `num_classes` to make a ViT for these tensors.

        It takes pictures of any size that the patch divides, and pools as `pool` does.
        """
        vit: Any = self.vit
        found = {**self._model_args, "img_size": list(vit.patch_embed.img_size), "dynamic_img_size": True}
        if not vit.global_pool:  # timm then hands on all tokens
            found |= {"global_pool": self.pooling, "fc_norm": not isinstance(vit.fc_norm, nn.Identity)}
        return found

    def forward(self, images: Tensor, contacts: Contacts | None = None, *, pooled_only: bool = False) -> Activations:
        """images [B, 3, H, W] (normalised), with a method's contacts or none -> Activations.

        pooled_only: nothing but `pool` will look at the tokens. Where it takes CLS, the last block then computes its
        sub-layers for the prefix tokens alone, and these are all that is given.
        """
        c = self._in_effect(contacts)
        x, grid = self._embed(images, c)
        end = self.depth - 1
        checkpoints = c.gradient_checkpointing and c.training and c.inside and torch.is_grad_enabled()
        short = pooled_only and self.pooling == "token" and end not in c.taps
        found = Activations(x, grid)
        drop = c.drop_path if c.training and c.inside else 0.0
        M = last = 0  # how many extra tokens stand in front, and their last block
        if -1 in c.taps:
            found.taps[-1] = self._tap(x, c.taps[-1])
        for i in range(self.depth):
            if i in c.tokens:
                tokens, last = c.tokens[i]
                M = tokens.shape[1]
                x = torch.cat([tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
            wanted = slice(M, M + self.prefix) if short and i == end else None
            given = (x, i, c, grid, drop * i / max(end, 1), wanted)
            x = checkpointed(self._block, *given) if checkpoints else self._block(*given)
            if M and i == last and wanted is None:
                found.extra[i], x = x.split([M, x.shape[1] - M], dim=1)
                M = 0
            if i in c.taps:
                found.taps[i] = self._tap(x[:, M:] if M else x, c.taps[i])
        found.tokens = self._call("norm", x, c)
        return found

    def pool(self, tokens: Tensor, contacts: Contacts | None = None) -> Tensor:
        """tokens [B, P+N, D] after the final norm -> [B, D], as the weights were trained to be pooled."""
        c = self._in_effect(contacts)
        if self.vit.attn_pool is not None:
            x = self._call("attn_pool", tokens if self.vit.pool_include_prefix else tokens[:, self.prefix :], c)
        else:
            x = global_pool_nlc(
                tokens,
                pool_type=self.pooling,
                num_prefix_tokens=self.prefix,
                reduce_include_prefix=self.vit.pool_include_prefix,
            )
        return self._call("fc_norm", x, c)

    def _embed(self, images: Tensor, c: Contacts) -> tuple[Tensor, tuple[int, int]]:
        """Patches, position embedding resampled to their grid, prefix tokens: [B, 3, H, W] -> [B, P+N, D]."""
        self._check_size(*images.shape[-2:])
        x = self._call("patch_embed", images, c)
        B, h, w, _ = x.shape
        x = x.flatten(1, 2)
        own = c.own("")
        vit = self.vit
        prefix = [own.get(name, getattr(vit, name)) for name in ("cls_token", "reg_token")]
        prefix = [token.expand(B, -1, -1) for token in prefix if token is not None]
        position = own.get("pos_embed", vit.pos_embed)
        if position is not None:
            position = resample_abs_pos_embed(
                position,
                new_size=[h, w],
                old_size=list(vit.patch_embed.grid_size),
                num_prefix_tokens=0 if vit.no_embed_class else self.prefix,
            )
        if position is not None and vit.no_embed_class:  # DeiT-3, DINOv2 with registers: patches only
            x = x + position
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        if position is not None and not vit.no_embed_class:
            x = x + position
        return self._call("norm_pre", x, c), (h, w)

    def _block(
        self, x: Tensor, i: int, c: Contacts, grid: tuple[int, int], rate: float, wanted: slice | None = None
    ) -> Tensor:
        """One pre-norm block with a drop path rate, [B, P+N, D] -> the same, or the wanted tokens of it."""
        for norm, sublayer, scale in (("norm1", "attn", "ls1"), ("norm2", "mlp", "ls2")):
            path = f"blocks.{i}.{sublayer}"
            inputs = recomputed(partial(self._call, f"blocks.{i}.{norm}", c=c), x)
            if sublayer == "attn":
                outputs = self._attention(path, inputs, c, wanted)
                if wanted is not None:
                    x, inputs = x[:, wanted], inputs[:, wanted]
            else:
                outputs = self._mlp(path, inputs, c)
            x = self._add(f"blocks.{i}.{scale}", x, drop_path(outputs, rate), c)
            if (branch := c.branch_at.get(path)) is not None:
                # Outside LayerScale, which would mute it (gamma is about 1e-5 at the start of DINOv2's training).
                x += drop_path(branch(inputs, outputs, grid), rate)
            if (after := c.after_at.get(path)) is not None:
                x = after(x)
        return x

    def _add(self, path: str, x: Tensor, outputs: Tensor, c: Contacts) -> Tensor:
        """x plus the outputs of a sub-layer through the LayerScale at `path`, in one pass over memory."""
        scale: Any = self._at[path]
        if isinstance(scale, nn.Identity):
            return x + outputs
        return torch.addcmul(x, outputs, c.own(path).get("gamma", scale.gamma))

    def _tap(self, x: Tensor, normalised: bool) -> Tensor:
        return recomputed(partial(F.layer_norm, normalized_shape=(self.width,)), x) if normalised else x

    def _attention(self, path: str, x: Tensor, c: Contacts, wanted: slice | None) -> Tensor:
        """From the wanted tokens, or all, to all."""
        attn: Any = self._at[path]
        B, T, _ = x.shape
        qkv = self._call(f"{path}.qkv", x, c).view(B, T, 3, attn.num_heads, attn.head_dim)
        # Parted before it is turned: the gradients then lie together as the linear layer wants them.
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        q, k = self._call(f"{path}.q_norm", q, c), self._call(f"{path}.k_norm", k, c)
        if wanted is not None:
            q = q[:, :, wanted]
        x = attention(q, k, v).transpose(1, 2).flatten(2)
        return self._call(f"{path}.proj", self._call(f"{path}.norm", x, c), c)

    def _mlp(self, path: str, x: Tensor, c: Contacts) -> Tensor:
        mlp: Any = self._at[path]
        if type(mlp) is not Mlp:  # SwiGLU and its kin: trained tensors reach it, its linears are not among `linears`
            return self._call(path, x, c)
        x = recomputed(mlp.act, self._call(f"{path}.fc1", x, c))
        return self._call(f"{path}.fc2", self._call(f"{path}.norm", x, c), c)

    def _call(self, path: str, x: Tensor, c: Contacts) -> Tensor:
        """The module at `path`, with the method's copies of its tensors, or as the method has changed it."""
        module: Any = self._at[path]
        if path in self.linears:
            own, compute = c.own(path), c.change_at.get(path, frozen_linear)
            return compute(x, own.get("weight", module.weight), own.get("bias", module.bias))
        tensors = c.tensors(path, module)
        return functional_call(module, tensors, (x,)) if tensors else module(x)
