"""Pre-trained Vision Transformers: what each promises, one file a family, and where their weights come from."""

from .base import Backbone, Block
from .eva import Eva
from .swin import Swin
from .vit import ViT

__all__ = ["Backbone", "Block", "Eva", "Swin", "ViT"]
