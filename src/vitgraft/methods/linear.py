"""Linear probe: the backbone as it is, only the head learns."""

from ..method import Method


class Linear(Method):
    """Trains nothing but the head, on the backbone's pooled features.

    Parameters: 0 (the head has (D + 1) K).
    """

    title = "Linear probe"
    published = "VTAB-1k 52.9 (mean of 19, ViT-B/16 IN-21k; Jia et al. 2022)"
    keeps = 0.001

    @property
    def recipe(self) -> dict[str, float]:
        return {"lr": 1e-2}
