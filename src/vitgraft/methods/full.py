"""Full fine-tuning: every tensor of the backbone trains. The yardstick."""

from ..backbones import Backbone
from ..method import Method


class Full(Method):
    """Trains a copy of every tensor of the backbone that the features depend on.

    Parameters: all of the backbone's.
    """

    title = "Full fine-tuning"
    published = "VTAB-1k 65.6 (mean of 19, ViT-B/16 IN-21k; Jia et al. 2022)"

    @property
    def recipe(self) -> dict[str, float]:
        return {"lr": 1e-4}

    def attach(self, backbone: Backbone) -> None:
        super().attach(backbone)
        for name in backbone.tensors():
            self.contacts.train_tensor(backbone, name)
