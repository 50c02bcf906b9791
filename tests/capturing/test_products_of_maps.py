"""What multiplies V is read where it is a product of maps, and refused where no map multiplies it."""

import pytest
import torch

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, Attention, ViT, captured, maps_by_hand, soft, vit


def landmarks(t):
    return t[:, :, 1:].unflatten(2, (4, -1)).mean(3)


def nystroem(q, k):
    few_q, few_k = landmarks(q), landmarks(k)
    return (soft(q, few_k) @ torch.linalg.pinv(soft(few_q, few_k))) @ soft(few_q, k)


CHAINS = {
    "squared": (lambda q, k: soft(q, k) @ soft(q, k), lambda a, q, k: a @ a),
    "squared by einsum": (
        lambda q, k: torch.einsum("bhij,bhjk->bhik", soft(q, k), soft(q, k)),
        lambda a, q, k: a @ a,
    ),
    "cubed": (lambda q, k: torch.bmm(*2 * [soft(q, k)[:, 0]]).unsqueeze(1), lambda a, q, k: (a @ a)[:, :1]),
    "two maps": (lambda q, k: soft(k, q) @ soft(q, k), lambda a, q, k: soft(k, q) @ a),
    "with its transpose": (lambda q, k: soft(q, k) @ soft(q, k).mT, lambda a, q, k: a @ a.mT),
    "Nystroem": (nystroem, lambda a, q, k: nystroem(q, k)),
}


def inputs_of_first(model):
    given = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        return model.blocks[0].split(given[0])


@pytest.mark.parametrize("name", CHAINS)
def test_a_product_of_maps_is_the_map_that_multiplies_v(name):
    chain, of = CHAINS[name]
    model = vit(lambda s, q, k, v: chain(q, k) @ v, depth=2)
    (maps,) = ap.capture(model, PIXELS, ("weights", "effective"))
    q, k, _ = inputs_of_first(model)
    assert maps.site == "effective" and maps.is_effective
    wanted = of(soft(q, k), q, k).expand(-1, 3, -1, -1)
    torch.testing.assert_close(maps.values[:, 0], wanted.detach(), rtol=0, atol=1e-5)


TWICE = {
    "transposed": lambda s, q, k, v: soft(q, k) @ v + soft(q, k).mT @ v,
    "one softmax transposed": lambda s, q, k, v: (lambda a: a @ v + a.mT @ v)(soft(q, k)),
    "one softmax masked": lambda s, q, k, v: (lambda a: a @ v - (a * torch.ones(17, 17).tril()) @ v)(soft(q, k)),
}


@pytest.mark.parametrize("name", TWICE)
def test_two_forms_of_a_map_that_read_one_v_are_not_effective(name):
    with pytest.raises(CaptureError, match="two forms of one softmax|this layer is not a softmax"):
        captured(vit(TWICE[name]))


def test_one_map_may_read_two_values():
    model = vit(lambda s, q, k, v: (lambda a: a @ v + a @ (0.5 * k))(soft(q, k)))
    torch.testing.assert_close(captured(model), maps_by_hand(model), rtol=0, atol=1e-6)


def exponentials(q, k):
    scores = q @ k.mT
    return (scores - scores.amax(-1, keepdim=True)).exp()


LATE = {
    "divided": lambda q, k, v: (lambda e: (e @ v) / e.sum(-1, keepdim=True))(exponentials(q, k)),
    "multiplied": lambda q, k, v: (lambda e: (e @ v) * (1 / e.sum(-1))[..., None])(exponentials(q, k)),
    "divided in place": lambda q, k, v: (lambda e: (e @ v).div_(e.sum(-1, keepdim=True)))(exponentials(q, k)),
    "a column of ones": lambda q, k, v: (lambda y: y[..., :-1] / y[..., -1:])(
        exponentials(q, k) @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
    ),
    "tokens first": lambda q, k, v: (lambda e: ((e @ v).transpose(1, 2) / e.sum(-1).mT.unsqueeze(-1)).transpose(1, 2))(
        exponentials(q, k)
    ),
    "sigmoid": lambda q, k, v: (lambda e: (e @ v) / e.sum(-1, keepdim=True))((q @ k.mT).sigmoid()),
    "chunks": lambda q, k, v: torch.cat(
        [(lambda e: (e @ v) / e.sum(-1, keepdim=True))(exponentials(c, k)) for c in q.split(6, 2)], 2
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_weights_that_are_normalised_after_the_product_are_refused(name):
    with pytest.raises(
        CaptureError, match=r"blocks\.0 multiplies V with weights whose rows do not sum to 1, and scales"
    ):
        captured(vit(lambda s, q, k, v: LATE[name](q, k, v)))


def test_a_softmax_whose_result_is_scaled_for_each_token_is_read():
    model = vit(lambda s, q, k, v: (soft(q, k) @ v) * q.sum(-1, keepdim=True).sigmoid())
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)


LINEAR = {
    "factorised": lambda s, q, k, v: q @ (k.softmax(-2).mT @ v),
    "factorised by einsum": lambda s, q, k, v: torch.einsum(
        "bhnc,bhcd->bhnd", q, torch.einsum("bhnc,bhnd->bhcd", k.softmax(-2), v)
    ),
    "factorised and scaled": lambda s, q, k, v: q @ (0.5 * (k.softmax(-2).mT @ v)),
    "a scaled context": lambda s, q, k, v: q.softmax(-1) @ ((k.softmax(-2).mT @ v) * 0.5),
    "a divided context": lambda s, q, k, v: q.softmax(-1) @ ((k.softmax(-2).mT @ v) / 17).contiguous(),
    "a copied context": lambda s, q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v).clone(),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_attention_is_refused_where_tokens_are_as_many_as_channels(name):
    model = ViT(lambda _: Attention(LINEAR[name], width=51), width=51).eval()  # 17 tokens, 17 wide
    with pytest.raises(CaptureError, match="linear attention"):
        captured(model)


@pytest.mark.parametrize("name", [name for name in LINEAR if "context" in name])
def test_linear_attention_with_a_scaled_context_is_refused(name):
    with pytest.raises(CaptureError, match="linear attention"):
        captured(vit(LINEAR[name]))


def test_tokens_as_many_as_channels_are_read_where_attention_is_not_linear():
    model = ViT(lambda _: Attention(lambda s, q, k, v: soft(q, k) @ v, width=51), width=51).eval()
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)
