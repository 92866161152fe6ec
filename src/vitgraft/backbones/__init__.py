"""Pre-trained Vision Transformers: what each promises, one file a family, and where their weights come from."""

from .base import Backbone
from .vit import ViT

__all__ = ["Backbone", "ViT"]
