"""Classes and features of any model: the size of its head, and one vector per image from before it."""

from typing import Any, TypeGuard

from torch import Tensor, nn


def n_classes(model: nn.Module) -> int | None:
    """Number of classes a model tells apart; 0 for a backbone without a head; None where it does not say."""
    if of_transformers(model) and hasattr(model, "base_model"):
        classifies = "ImageClassification" in type(model).__name__
        return int(model.config.num_labels) if classifies else 0  # type: ignore[union-attr]
    classes = getattr(model, "num_classes", None)
    return classes if isinstance(classes, int) else None


def features(model: Any, pixels: Tensor) -> Tensor:
    """[image, feature], before the head: what timm pools; the class token, or else the pooled or mean token.

    A model of another kind is asked for its output, whose tokens or pixels are averaged.
    """
    if of_transformers(model) and hasattr(model, "base_model"):
        base = model.base_model
        output = base(pixels)
        tokens, pooled = output.last_hidden_state, getattr(output, "pooler_output", None)
        if getattr(getattr(base, "embeddings", None), "cls_token", None) is not None:
            return tokens[:, 0]  # not `pooler_output`, whose layer is often untrained
        return tokens.flatten(2).mean(-1) if tokens.ndim == 4 else tokens.mean(1) if pooled is None else pooled
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        output = model.forward_head(model.forward_features(pixels), pre_logits=True)
    else:
        output = model(pixels)
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == 3:  # tokens: of a model that does not pool
        return output[:, 0] if getattr(model, "cls_token", None) is not None else output.mean(1)
    return output.flatten(2).mean(-1) if output.ndim == 4 else output


def of_transformers(model: Any) -> TypeGuard[Any]:
    """True if a model, perhaps built by hand, is of transformers."""
    return hasattr(getattr(model, "config", None), "name_or_path")
