"""A CLIP model's zero-shot classifier as an adapter: class names in the place of training pictures.

What it makes is an adapter of the method linear with the head `text`: it predicts, is evaluated and served as any, and
a fit may start from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import tasks
from ..backbones import Backbone
from ..common.errors import RequestError
from ..common.files import check_new_file
from ..common.settings import Settings
from ..model import build
from . import file as adapter

PLAIN = ("a photo of a {}.",)
# The seven that work best together on ImageNet, from the notebook beside the weights of Radford et al. 2021.
SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
TEMPLATES = {"plain": PLAIN, "seven": SEVEN}


class Texts(Protocol):
    """A text tower, and what of its image tower is needed."""

    name: str
    scale: float  # of the cosines
    projection: Tensor  # [E, D], of pooled features
    patches: Tensor  # [D, 3, p, p], by which it is known whether the backbone is its image tower

    def embed(self, sentences: Sequence[str]) -> Tensor:
        """[n, E]"""


class OpenClip:
    """A model of open_clip: one of its names with its weights, a file or a tag; or a model and tokenizer at hand."""

    def __init__(self, name: str, weights: str | None = None, *, model: Any = None, tokenizer: Any = None) -> None:
        try:
            import open_clip
        except ImportError as error:
            raise RequestError(
                "The text tower comes from open_clip, which is not installed: pip install 'vitgraft[clip]'."
            ) from error
        if model is None:
            try:
                model, tokenizer = open_clip.create_model(name, pretrained=weights), open_clip.get_tokenizer(name)
            except (RuntimeError, OSError, ValueError) as error:
                known = sorted({tag for model, tag in open_clip.list_pretrained() if model == name})
                has = (
                    f"weights of it are {', '.join(known)}"
                    if known
                    else "open_clip.list_models() names those there are"
                )
                raise RequestError(f"open_clip has no {name} with weights {weights!r} ({error}): {has}.") from error
        self._model, self._tokenizer = model.eval(), tokenizer
        projection = getattr(model.visual, "proj", None)
        if not isinstance(projection, Tensor):
            raise RequestError(f"The image tower of {name} is no ViT with a projection: take one such as ViT-B-16.")
        self.name = f"{name}, {weights}" if weights else name
        self.scale = float(model.logit_scale.detach().exp())
        self.projection, self.patches = projection.detach().mT.float(), model.visual.conv1.weight.detach().float()

    def embed(self, sentences: Sequence[str]) -> Tensor:
        with torch.no_grad():
            return torch.cat([self._model.encode_text(self._tokenizer([one])).float() for one in sentences])


def zero_shot(
    classes: Sequence[str],
    texts: Texts,
    out: str | Path,
    *,
    backbone: str | Backbone,
    templates: Sequence[str] = PLAIN,
    normalisation: str = "own",
    image_size: Any = None,
) -> Path:
    """Writes an adapter file that tells these classes apart by their names alone.

    classes: as people call them; underlines count as spaces. templates: sentences with {} for the name, whose
    embeddings are averaged. backbone: the image tower of `texts`, as timm has it. normalisation, image_size: as in a
    fit. RequestError for fewer than two classes, a template without {}, and a backbone that is another model's.
    """
    out, names = Path(out), list(classes)
    check_new_file(out)
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise RequestError(
            f"{len(names)} class names came, of which {len(set(names))} differ: give two or more, each once."
        )
    for template in templates:
        if "{}" not in template:
            raise RequestError(f"The template {template!r} has no place for the class: write {{}} where it goes.")
    loaded = backbone if isinstance(backbone, Backbone) else Backbone.load(backbone)
    _check_tower(loaded, texts)
    settings = Settings(epochs=1, normalisation=normalisation, image_size=image_size)
    task = tasks.find("classify")
    preprocess = task.preprocessing(loaded, settings.image_size, normalisation)
    options = {"embedding": len(texts.projection), "label_smoothing": 0.0}
    model = build(loaded, "linear", classes=len(names), head="text", head_options=options)
    embeddings = [
        F.normalize(texts.embed([t.format(_spoken(name)) for t in templates]), dim=-1).mean(0) for name in names
    ]
    head: Any = model.head
    with torch.no_grad():
        head.projection.copy_(texts.projection)
        head.fc.weight.copy_(texts.scale * F.normalize(torch.stack(embeddings), dim=-1))
    header = adapter.told(
        model,
        preprocess,
        names,
        head="text",
        head_options=options,
        protocol={**asdict(settings), "image_size": list(preprocess.size), "zero_shot": [texts.name, *templates]},
        metrics={"metric": task.metric, "value": None, "interval": None, "split": None},
        versions={"text": texts.name, "torch": torch.__version__, "timm": timm.__version__},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    adapter.write(out, model.state(), header)
    return out


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _check_tower(backbone: Backbone, texts: Texts) -> None:
    """RequestError unless the backbone is the image tower."""
    wanted = (backbone.width, *texts.patches.shape[1:])
    own = backbone.tensor("patch_embed.proj.weight").float()
    if own.shape != texts.patches.shape or texts.projection.shape[1] != wanted[0]:
        raise RequestError(
            f"The image tower of {texts.name} has patches of {list(texts.patches.shape)}, but {backbone.name} has "
            f"{list(own.shape)}: name that tower's own weights, such as vit_base_patch16_clip_quickgelu_224.openai."
        )
    if (own - texts.patches).abs().max() > 1e-2 * texts.patches.abs().max():
        raise RequestError(
            f"The patch embedding of {backbone.name} has other numbers than the image tower of {texts.name}; a text "
            "tower knows the features of its own image tower alone: name that tower's weights."
        )
