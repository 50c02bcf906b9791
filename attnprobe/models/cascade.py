"""How does a block hand something on to the next one besides its tokens?"""

from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
        """[image, token, width] and what the block before handed on -> the same two."""
        s = self.scale_adjustment
        y, carried = self.attn(self.norm1(x * s), carried)
        x = x + self.drop_path1(self.ls1(y)) / s
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x * s)))) / s, carried
