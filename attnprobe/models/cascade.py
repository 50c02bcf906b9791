"""Blocks that pass something on to the next one besides their tokens, such as logits or maps."""

from typing import Any, NoReturn

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attnprobe.core.errors import InputError


class Cascade(nn.Sequential):
    """Blocks called as `tokens, carried = block(tokens, carried)`, the first with `carried=None`.

    Takes the place of a timm model's `blocks`: same parameter names, same call. What is carried is an argument and a
    result, never a module's state, so that compile, DataParallel and a second forward pass work as usual.
    """

    grad_checkpointing = False

    def forward(self, tokens: Tensor) -> Tensor:
        """[image, token, width] -> the same."""
        carried = None
        for block in self:
            if self.grad_checkpointing and self.training:
                tokens, carried = checkpoint(block, tokens, carried, use_reentrant=False)
            else:
                tokens, carried = block(tokens, carried)
        return tokens


class CascadeBlock(Block):
    """timm's pre-norm block around an attention layer that takes and returns what is carried.

    Both branches see `s * x` and are divided by `s`; see `ScaledBlock`.
    """

    scale_adjustment = 1.0

    def forward(self, x: Tensor, carried: object = None) -> tuple[Tensor, object]:
        """[image, token, width] and what the previous block passed on -> the same two."""
        s = self.scale_adjustment
        y, carried = self.attn(self.norm1(x * s), carried)
        x = x + self.drop_path1(self.ls1(y)) / s
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x * s)))) / s, carried


class CascadeViT(VisionTransformer):
    """timm's ViT made of `CascadeBlock`s; a subclass replaces their attention.

    Raises:
        InputError: (when called) an attention mask was given, or features of single blocks were asked for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, block_fn=CascadeBlock, **kwargs)
        self.blocks = Cascade(*self.blocks)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade memory for a second forward pass of each block in training."""
        self.blocks.grad_checkpointing = enable

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[image, channel, row, col] -> the normalised output of the last block, [image, token, width]."""
        if attn_mask is not None or is_causal:
            raise InputError(
                f"{type(self).__name__} takes no attention mask: it passes whole maps from block to block."
            )
        return super().forward_features(x)

    def forward_intermediates(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Not available: timm's version calls each block alone."""
        raise InputError(
            f"the blocks of {type(self).__name__} cannot run one by one: each needs what the previous one passes on. "
            "`attnprobe.capture(model, images, tokens=True)` gives the output of every block."
        )
