"""What tells one video model from another, for profiles that fit one model only."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import check_choice, check_integer

FAMILIES = {"wan": "Wan", "hunyuan_video": "HunyuanVideo"}
MAX_BLOCKS = 1000
MAX_SIZE = 1_000_000


@dataclass(frozen=True)
class ModelFingerprint:
    """Family and sizes of a model; those of two models are equal if a profile fits both.

    Attributes:
        family: "wan" or "hunyuan_video".
        double_blocks: main blocks, all of Wan's.
        single_blocks: HunyuanVideo's single blocks, else 0.
        hidden_dim: width of a token.
        num_heads: attention heads.

    Raises:
        ConfigError: a field is out of range.
    """

    family: str
    double_blocks: int
    single_blocks: int
    hidden_dim: int
    num_heads: int

    def __post_init__(self) -> None:
        check_choice("family", self.family, tuple(FAMILIES))
        check_integer("double_blocks", self.double_blocks, 1, MAX_BLOCKS)
        check_integer("single_blocks", self.single_blocks, 0, MAX_BLOCKS)
        check_integer("hidden_dim", self.hidden_dim, 1, MAX_SIZE)
        check_integer("num_heads", self.num_heads, 1, MAX_SIZE)

    def describe(self) -> str:
        """In words: "Wan, 40 blocks, dimension 5120, 40 heads"."""
        blocks = f"{self.double_blocks} blocks"
        if self.single_blocks:
            blocks = f"{self.double_blocks} double and {self.single_blocks} single blocks"
        size = f"dimension {self.hidden_dim}, {self.num_heads} heads"
        return f"{FAMILIES[self.family]}, {blocks}, {size}"
