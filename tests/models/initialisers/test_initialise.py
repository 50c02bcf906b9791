"""What is written into a model, what is left as it was, and what is refused."""

import copy

import pytest
import timm
import torch
from torch import nn

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.initialisers import adam, initialise, mimetic, targets, use_sinusoidal_positions
from attnprobe.models.initialisers.maps import position_maps

GEOMETRY = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
PATCHES_ONLY = {"class_token": False, "global_pool": "avg"}


def plain(fixed=True, **options):
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", **{**GEOMETRY, **PATCHES_ONLY, **options})
    if fixed:
        use_sinusoidal_positions(model)
    return model


def attention_weights(model):
    """Per block Wq, Wk, Wv [head, head width, width] and Wproj."""
    for block in model.blocks:
        q, k, v = block.attn.qkv.weight.detach().unflatten(0, (3, 3, 16))
        yield q, k, v, block.attn.proj.weight.detach()


@pytest.fixture
def short_adam(monkeypatch):
    """Few steps, so that what is compared is where the factors go."""
    monkeypatch.setattr(adam.solve, "__kwdefaults__", {"steps": 5})


def mass_on_target(model, impulses):
    maps = position_maps(model).values[0]
    wanted = targets.shifts(4, 4, impulses.offsets.flatten(0, 1)).unflatten(0, impulses.offsets.shape[:2])
    return ((maps * wanted).sum(-1) * wanted.sum(-1)).sum() / wanted.sum()


def test_closed_form_heads_attend_to_their_offsets_in_every_block():
    model = plain()
    impulses = initialise(model, "impulse3")
    assert impulses.offsets.tolist() == [[[0, 0], [-1, 0], [0, 1]]] * 3
    assert mass_on_target(model, impulses) > 0.8


def test_closed_form_noise_is_fresh_in_every_block_unless_asked():
    blocks = [q for q, *_ in attention_weights(initialised("impulse3"))]
    assert not torch.equal(blocks[0], blocks[1])
    blocks = [q for q, *_ in attention_weights(initialised("impulse3", init_once=True))]
    assert torch.equal(blocks[0], blocks[1])


def initialised(weight_init, **options):
    model = plain()
    initialise(model, weight_init, **options)
    return model


def test_closed_form_values_multiply_to_the_mimetic_matrix():
    for *_, v, output in attention_weights(initialised("impulse3", compat="repo")):
        product = output @ v.flatten(0, 1)
        noise = (product + 0.4 * torch.eye(48)) / 0.4  # uniform of variance 1 / width, so bounded
        assert noise.abs().max() <= (3 / 48) ** 0.5 + 1e-4


def test_unused_ranks_have_no_query_but_keep_their_keys():
    """Sinusoids on 4 x 4 patches have rank 7: the other columns do nothing now, and can learn."""
    for q, k, *_ in attention_weights(initialised("impulse3")):
        assert (q.norm(dim=-1) > 0).sum(-1).tolist() == [5, 5, 5]
        assert (k.norm(dim=-1) > 0).all()


def test_adam_writes_q_and_k_only_and_copies_them(short_adam):
    model, untouched = plain(), plain()
    initialise(untouched, "skip", reset=False)
    impulses = initialise(model, "impulse5", solver="adam", reset=False)
    assert impulses.losses.shape == (1, 5) and impulses.offsets.shape == (3, 3, 2)
    weights, before = list(attention_weights(model)), list(attention_weights(untouched))
    for (q, k, v, output), (_, _, v_before, output_before) in zip(weights, before, strict=True):
        assert torch.equal(q, weights[0][0]) and torch.equal(k, weights[0][1])
        assert torch.equal(v, v_before) and torch.equal(output, output_before)
    rest = {n: p for n, p in model.named_parameters() if "attn.qkv.weight" not in n}
    assert all(torch.equal(p, untouched.get_parameter(n)) for n, p in rest.items())


def test_adam_draws_in_the_authors_order(short_adam):
    model = plain()
    torch.manual_seed(3)
    impulses = initialise(model, "impulse3", solver="adam", pseudo_input1="U", reset=False)
    torch.manual_seed(3)
    torch.empty(16, 48).uniform_()
    codes = torch.randint(0, 9, (3,))
    start = adam.draw_start(3, 48, 16)
    assert impulses.offsets[0].tolist() == [[code // 3 - 1, code % 3 - 1] for code in codes.tolist()]
    assert impulses.column_norms == (pytest.approx(start[0].norm(dim=1).mean().item()),)


def test_adam_per_block_draws_anew_and_uses_the_second_input_after_the_first_block(short_adam, monkeypatch):
    seen = []
    solve = adam.solve
    monkeypatch.setattr(adam, "solve", lambda tokens, *rest: seen.append(tokens) or solve(tokens, *rest))
    model = plain()
    initialise(model, "impulse3", solver="adam", init_once=False, pseudo_input1="P", pseudo_input2="U")
    assert len(seen) == 3 and torch.equal(seen[1], seen[2]) and not torch.equal(seen[0], seen[1])
    blocks = [q for q, *_ in attention_weights(model)]
    assert not torch.equal(blocks[1], blocks[2])


def test_mimetic_writes_its_products():
    model = plain(fixed=False)
    torch.manual_seed(5)
    initialise(model, "mimetic0.7_0.5", compat="exact", reset=False)
    torch.manual_seed(5)
    z_qk = [mimetic.uniform_noise(3, 48, 48) for _ in range(3)]
    z_value = [mimetic.uniform_noise(48, 48) for _ in range(3)]
    for block, (q, k, v, output) in enumerate(attention_weights(model)):
        u, s, vh = torch.linalg.svd(0.7 * z_qk[block] + 0.5 * torch.eye(48))
        nearest = (u[..., :16] * s[:, None, :16]) @ vh[:, :16]
        torch.testing.assert_close(q.mT @ k, nearest, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            output @ v.flatten(0, 1), 0.4 * z_value[block] - 0.4 * torch.eye(48), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("weight_init", ["impulse3", "mimetic0.7_0.7", "skip", ""])
def test_the_seed_alone_decides_whatever_the_model_held_before(weight_init):
    model = plain()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.5)
    for each in (model, other):
        torch.manual_seed(11)
        initialise(each, weight_init)
    assert all(torch.equal(p, other.get_parameter(n)) for n, p in model.named_parameters())
    assert not torch.isnan(model(torch.zeros(1, 3, 16, 16))).any()


def test_skip_is_pytorchs_default_and_sets_the_tables_timm_leaves_unset():
    model = plain(fixed=False, class_token=True, global_pool="token", reg_tokens=1)
    initialise(model, "skip")
    assert model.cls_token.abs().max() == 0 and model.reg_token.abs().max() == 0
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)
    bound = 48**-0.5
    assert 0.9 * bound < model.blocks[1].attn.proj.weight.abs().max() <= bound


def test_timms_own_initialisation_leaves_the_fixed_table():
    model = plain()
    table = model.pos_embed.clone()
    initialise(model, "")
    assert torch.equal(model.pos_embed, table)
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_nothing_happens_on_the_meta_device():
    with torch.device("meta"):
        model = plain()
    assert initialise(model, "impulse3") is None
    assert all(p.is_meta for p in model.parameters())


def test_half_precision_models_are_solved_in_full_precision():
    model = plain().bfloat16()
    impulses = initialise(model, "impulse3")
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert mass_on_target(model.float(), impulses) > 0.8


class WithoutQkv(nn.Module):
    num_heads, head_dim = 3, 16


def without_qkv():
    model = plain()
    model.blocks[1].attn = WithoutQkv()
    return model


def wide_heads():
    model = plain()
    for block in model.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.qkv = 1, 64, nn.Linear(48, 192)
    return model


def narrow_heads():
    model = plain()
    for block in model.blocks:
        block.attn.head_dim, block.attn.qkv = 8, nn.Linear(48, 72)
    return model


@pytest.mark.parametrize(
    ("make", "weight_init", "error", "said"),
    [
        (lambda: plain(fixed=False), "impulse3", InputError, "on fixed positions; learned ones move away"),
        (lambda: plain(depth=1), "impulse3", InputError, "divides by depth - 1"),
        (lambda: plain(depth=1), "mimetic0.7_0.7", InputError, "divides by depth - 1"),
        (lambda: plain(class_token=True), "impulse3", InputError, "would be attended to and never read"),
        (lambda: plain(qk_norm=True), "impulse3", InputError, "qk_norm rescales"),
        (plain, "impulse9", ShapeError, "past a grid of 4 x 4"),
        (plain, "impulse2", InputError, "has no centre"),
        (plain, "impuls3", InputError, "Did you mean"),
        (without_qkv, "impulse3", InputError, r"blocks\[i\].attn.qkv, of shape .*no such layer"),
        (wide_heads, "impulse3", InputError, "heads of width 64 are wider than the model"),
        (narrow_heads, "mimetic0.7_0.7", InputError, "3 heads of width 8 make them 24 x 48"),
        (lambda: nn.Linear(2, 2), "impulse3", InputError, "Linear has none"),
    ],
)
def test_what_the_method_does_not_allow_is_refused_with_the_reason(make, weight_init, error, said):
    with pytest.raises(error, match=said):
        initialise(make(), weight_init)


@pytest.mark.parametrize(
    "options", [{"solver": "sgd"}, {"compat": "paper"}, {"pseudo_input1": "Q"}, {"pseudo_input2": "p"}]
)
def test_options_that_do_not_exist_are_refused(options):
    with pytest.raises(InputError, match="is not a choice"):
        initialise(plain(), "impulse3", **options)


def test_a_class_token_that_is_read_may_stay():
    model = plain(class_token=True, global_pool="token")
    assert mass_on_target(model, initialise(model, "impulse3")) > 0.8
