import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr

from attnprobe.capturing import capture
from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change
from attnprobe.metrics import measure
from attnprobe.models.ablate import Ablatable
from examples.variants_table import harm_of_previous_map
from tests.models.test_ablate import images, model_of


def test_it_is_the_divergence_of_the_classes_with_the_map_of_the_block_before():
    model, ablatable = model_of("vit"), None
    found = harm_of_previous_map(model, [images(5)])
    ablatable = Ablatable(model, images(5))
    whole = model(images(5)).detach().double().softmax(-1).numpy()
    assert np.isnan(found[0])
    for block in (2, 3, 4):
        with torch.inference_mode(), ablatable.without([Change("map", block)]):
            other = ablatable.module(images(5)).double().softmax(-1).numpy()
        assert found[block - 1] == pytest.approx(entropy(whole, other, axis=1).mean(), rel=1e-6)


def test_batches_do_not_matter():
    model = model_of("deepvit")
    parts = images(5).split(2)
    whole = harm_of_previous_map(model, [images(5)])
    np.testing.assert_allclose(harm_of_previous_map(model, parts)[1:], whole[1:], rtol=1e-5)  # logits in float32


def test_a_block_with_the_map_of_the_one_before_does_no_harm_and_overlap_orders_blocks_by_it():
    """Queries and keys of each block drift away from those of the first; the further, the more harm."""
    model = model_of("vit", depth=6)
    first = model.blocks[0]
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            block.load_state_dict(first.state_dict())
            block.attn.proj.weight *= 0.02  # tokens hardly change, so equal weights make equal maps
            block.mlp.fc2.weight *= 0.02
            noise = torch.randn(48, 24, generator=torch.Generator().manual_seed(number))
            block.attn.qkv.weight[:48] += 0.02 * 3**number * noise
    harm = harm_of_previous_map(model, [images(8)])[1:]
    overlap = measure(capture(model, images(8)), ["map_overlap"], bootstrap=0)["map_overlap"].mean.diagonal(1)
    assert (harm >= 0).all() and harm.argmin() == overlap.argmax() and spearmanr(overlap, -harm)[0] > 0.5


def test_other_kinds_of_models_are_refused():
    with pytest.raises(InputError):
        harm_of_previous_map(torch.nn.Linear(3, 3), [images(1)])
