"""Core gradients against the whole gradients projected, drawn labels against all labels weighed, forms by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.curvature.oracles import assert_same_state, gradient_oracle, setting, state_of, stored_inputs
from tests.zoo import FAMILIES
from torch import Tensor

from holdfast.core.errors import AdapterError, ConfigError, DataError, LayerError, NumericsError
from holdfast.curvature.fisher import (
    core_factors,
    core_gradients,
    diagonal,
    full,
    gradient_variance,
    topk,
)
from holdfast.curvature.samples import sample_gradients
from holdfast.data.batches import Encoded
from holdfast.layers.address import LayerMap
from holdfast.layers.capture import stream_pairs
from holdfast.layers.core_space import CoreSpace
from holdfast.models.load import LoadedModel

FUSED = {"phi3": ("qkv_proj", "gate_up_proj"), "gpt2": ("qkv_proj",), "gpt_neox": ("qkv_proj",)}


def spaces_of(layers: LayerMap, *, p: int = 4, q: int = 3, dtype: torch.dtype = torch.float64) -> dict[str, CoreSpace]:
    """A random space a layer, as wide on the left as on the right only by chance."""
    dice = torch.Generator().manual_seed(3)

    def basis(width: int, k: int) -> Tensor:
        return torch.linalg.qr(torch.randn(width, k, generator=dice, dtype=torch.float64)).Q.to(dtype)

    return {layer.name: CoreSpace(basis(layer.out_features, p), basis(layer.in_features, q)) for layer in layers}


def projected(space: CoreSpace, G_oi: Tensor) -> Tensor:
    return (space.left_op.T @ G_oi @ space.right_iq).flatten()


def assert_equal_gradients(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: str) -> None:
    assert list(found) == list(expected)
    for name, G_nd in expected.items():
        scale = G_nd.abs().max()
        assert_close(found[name] / scale, G_nd / scale, tolerance)


def adapted(family: str, layers: LayerMap) -> LayerMap:
    """The modules that an adapter of this family changes: fused where they are stored fused."""
    return layers.select([*FUSED.get(family, ()), *{layer.kind for layer in layers if layer.rows is None}])


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("family", FAMILIES)
def test_core_gradients_are_one_backward_a_sample_projected(family: str, loss: Any) -> None:
    loaded, rows, layers = setting(family, n=4, dtype=torch.float64)
    layers = adapted(family, layers)
    spaces = spaces_of(layers)
    found = core_gradients(loaded, rows, spaces, loss=loss, batch_size=3)
    oracles = [gradient_oracle(loaded, row, layers, loss) for row in rows]
    expected = {name: torch.stack([projected(space, G[name]) for G in oracles]) for name, space in spaces.items()}
    # the norms of some families round to float32 whatever the model's type is
    assert_equal_gradients(found, expected, "float64" if family.startswith("gpt") else "float32")


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_core_gradients_are_those_of_sample_gradients_projected(family: str) -> None:
    loaded, rows, layers = setting(family, n=5, dtype=torch.float64)
    spaces = spaces_of(layers)
    expected = {name: torch.zeros(len(rows), 12, dtype=torch.float64) for name in spaces}

    def consume(layer: Any, n: int, G_oi: Tensor) -> None:
        expected[layer.name][n] = projected(spaces[layer.name], G_oi)

    sample_gradients(loaded, rows, layers, consume, batch_size=2)
    assert_equal_gradients(core_gradients(loaded, rows, spaces, batch_size=2), expected, "float64")


def test_core_gradients_are_the_derivative_along_a_change_in_the_space() -> None:
    """Finite differences of the loss along the lift of each coordinate."""
    loaded, rows, layers = setting("gpt2", n=1, dtype=torch.float64)
    name = "layers.0.qkv_proj"
    spaces = spaces_of(layers.select(name), p=2, q=2)
    (found,) = core_gradients(loaded, rows, spaces)[name]
    weight, step = layers.read(name), 1e-5

    def loss_at(M_pq: Tensor) -> float:
        layers.write(name, weight + spaces[name].left_op @ M_pq @ spaces[name].right_iq.T)
        row = rows[0]
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
        return -float(torch.stack([logits[t - 1, row.ids[t]] for t in range(1, len(row)) if row.response[t]]).mean())

    for d in range(4):
        M_pq = torch.zeros(4, dtype=torch.float64).index_fill(0, torch.tensor(d), step).reshape(2, 2)
        slope = (loss_at(M_pq) - loss_at(-M_pq)) / (2 * step)
        assert float(found[d]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
@pytest.mark.parametrize("batch_size", [1, 2, 50])
def test_batch_size_padding_and_order_do_not_matter(labels: Any, batch_size: int) -> None:
    loaded, rows, layers = setting()
    spaces = spaces_of(layers, dtype=torch.float32)
    expected = core_gradients(loaded, rows, spaces, labels=labels, batch_size=4)
    assert {G_nd.dtype for G_nd in expected.values()} == {torch.float32}
    found = core_gradients(loaded, rows[::-1], spaces, labels=labels, batch_size=batch_size)
    assert_equal_gradients({name: G_nd.flip(0) for name, G_nd in found.items()}, expected, "float32")


def test_what_padding_embeds_to_does_not_matter() -> None:
    loaded, rows, layers = setting()
    spaces = spaces_of(layers, dtype=torch.float32)
    expected = core_gradients(loaded, rows, spaces)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[loaded.chat.pad_id] = 1e30
    assert all(loaded.chat.pad_id not in row.ids for row in rows)
    assert_equal_gradients(core_gradients(loaded, rows, spaces), expected, "float32")


def test_bfloat16_model_gives_float32_gradients_of_its_own_activations() -> None:
    loaded, rows, layers = setting(n=1, dtype=torch.bfloat16)
    spaces = spaces_of(layers, dtype=torch.float32)
    expected = {}
    sample_gradients(
        loaded, rows, layers, lambda layer, n, G: expected.update({layer.name: projected(spaces[layer.name], G)[None]})
    )
    found = core_gradients(loaded, rows, spaces)
    assert {G_nd.dtype for G_nd in found.values()} == {torch.float32}
    assert_equal_gradients(found, {name: expected[name] for name in spaces}, "float32")


def few_answers(rows: Sequence[Encoded], count: int) -> Encoded:
    """A row that is to predict ``count`` tokens, its last."""
    row, end = rows[0], rows[0].response.index(True) + count
    return replace(row, ids=row.ids[:end], response=row.response[:end])


def scores(loaded: LoadedModel, row: Encoded, name: str, space: CoreSpace) -> tuple[Tensor, Tensor]:
    """Of each response position and each label: its probability ``(s, v)`` and minus its score, ``(s, v, d)``."""
    weight = LayerMap.of(loaded.model).parameter(name)
    at = [t - 1 for t in range(1, len(row)) if row.response[t]]

    def log_probabilities(M_pq: Tensor) -> Tensor:
        change = space.left_op @ M_pq @ space.right_iq.T
        key = next(key for key, parameter in loaded.model.named_parameters() if parameter is weight)
        inputs = {"input_ids": torch.tensor([row.ids]), "use_cache": False}
        out = torch.func.functional_call(loaded.model, {key: weight.detach() + change}, (), inputs)
        return out.logits[0, at].log_softmax(-1)

    M_pq = torch.zeros(space.left_op.shape[1], space.right_iq.shape[1], dtype=torch.float64)
    jacobian_svpq = torch.func.jacfwd(log_probabilities)(M_pq)
    return log_probabilities(M_pq).exp().detach(), -jacobian_svpq.flatten(2).detach()


def test_drawn_labels_give_mean_zero_and_the_exact_fisher() -> None:
    """Against all labels at all positions, each with its probability: 4 sigma of 2,000 draws for every entry."""
    loaded, rows, layers = setting(dtype=torch.float64)
    loaded.model.set_attn_implementation("eager")
    name, n = "layers.1.up_proj", 2000
    row = few_answers(rows, 3)
    spaces = spaces_of(layers.select(name), p=2, q=2)
    p_sv, g_svd = scores(loaded, row, name, spaces[name])
    mean_sd = torch.einsum("sv,svd->sd", p_sv, g_svd)
    assert_close(mean_sd / g_svd.abs().max(), torch.zeros_like(mean_sd), "float32")
    exact_dd = torch.einsum("sv,svd,sve->de", p_sv, g_svd, g_svd)

    copies = [replace(row, id=f"{row.id}/{k}") for k in range(n)]
    drawn = core_gradients(loaded, copies, spaces, labels="sampled", loss="sum", seed=1, batch_size=500)[name]
    sigma_d = (exact_dd.diagonal() / n).sqrt()
    assert_close(drawn.mean(0) / sigma_d, torch.zeros(4), "estimate", sigma=1.0)
    products_nde = drawn[:, :, None] * drawn[:, None, :]
    sigma_dd = products_nde.std(0) / n**0.5
    assert_close(full(drawn) / sigma_dd, exact_dd / sigma_dd, "estimate", sigma=1.0)
    # the test can tell: its error is small beside what it estimates, and the row's own labels give something else
    assert float(sigma_dd.norm() / exact_dd.norm()) < 0.1
    own = core_gradients(loaded, [row], spaces, loss="sum")[name]
    assert ((full(own) - exact_dd).abs() / sigma_dd).max() > 20


def test_drawn_labels_depend_on_seed_and_row_id_alone() -> None:
    loaded, rows, layers = setting(n=3)
    spaces = spaces_of(layers.select("layers.1.down_proj"), dtype=torch.float32)

    def drawn(which: Sequence[Encoded], seed: int) -> Tensor:
        (found,) = core_gradients(loaded, which, spaces, labels="sampled", seed=seed).values()
        return found

    twin = replace(rows[0], id="twin")
    first, second, other = drawn(rows, 0), drawn([twin, rows[0]], 0), drawn(rows, 1)
    assert_close(second[1], first[0])
    assert not torch.allclose(second[0], second[1], rtol=1e-2)
    assert not torch.allclose(first, other, rtol=1e-2)


@pytest.mark.parametrize("token", [0, -1])
def test_sure_model_draws_its_one_label(token: int) -> None:
    """The first or the last token has all probability: as a label it has no gradient, the row's own has one."""
    loaded, rows, layers = setting(n=1, dtype=torch.float64)
    row, spaces, seen = few_answers(rows, 1), spaces_of(layers), []
    handle = loaded.model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1]))
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([row.ids[:-1]]))
        handle.remove()
        loaded.model.lm_head.weight.zero_()
        loaded.model.lm_head.weight[token] = 1e4 * seen[0]
    for seed in range(20):
        drawn = core_gradients(loaded, [row], spaces, labels="sampled", seed=seed)
        assert not any(G_nd.any() for G_nd in drawn.values())
    assert all(G_nd.any() for G_nd in core_gradients(loaded, [row], spaces).values())


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_factors_are_second_moments_of_inputs_and_output_gradients(family: str, labels: Any) -> None:
    loaded, rows, layers = setting(family, n=5, dtype=torch.float64)
    spaces = spaces_of(layers)
    found = core_factors(loaded, rows, spaces, labels=labels, batch_size=2)
    tokens = sum(map(len, rows))
    inputs = {name: torch.cat([stored_inputs(loaded, row, layers)[name] for row in rows]) for name in spaces}
    for name, (A_qq, G_pp) in found.items():
        a_tq = inputs[name] @ spaces[name].right_iq
        assert_close(A_qq, a_tq.T @ a_tq / tokens, "float32")
        assert_close(G_pp, G_pp.T, "float64")
    one_by_one = [core_factors(loaded, [row], spaces, labels=labels) for row in rows]
    for name, (_, G_pp) in found.items():
        expected = torch.stack([factors[name][1] for factors in one_by_one]).mean(0)
        assert_close(G_pp / expected.abs().max(), expected / expected.abs().max(), "float32")


def test_output_factor_is_the_sum_over_tokens_of_projected_output_gradients() -> None:
    loaded, rows, layers = setting("llama", n=1, dtype=torch.float64)
    layers = layers.select(["layers.0.q_proj", "layers.1.down_proj"])
    spaces = spaces_of(layers)
    row, seen = rows[0], {}
    loaded.model.requires_grad_(False)
    with stream_pairs(layers, lambda layer, a_bti, g_bto: seen.update({layer.name: g_bto[0]})):
        at = [t for t in range(1, len(row)) if row.response[t]]
        logits = loaded.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, [t - 1 for t in at]]
        torch.nn.functional.cross_entropy(logits, torch.tensor([row.ids[t] for t in at])).backward()
    for name, (_, G_pp) in core_factors(loaded, rows, spaces).items():
        g_tp = seen[name] @ spaces[name].left_op
        expected = g_tp.T @ g_tp
        assert_close(G_pp / expected.abs().max(), expected / expected.abs().max(), "float32")


def test_kronecker_product_of_the_factors_has_the_order_and_scale_of_the_full_fisher() -> None:
    """Independent inputs and gradients: then K-FAC is exact, up to the error of 20,000 samples of 3 tokens."""
    dice = torch.Generator().manual_seed(0)
    n, t, p, q = 20_000, 3, 2, 3
    a_ntq = torch.randn(n, t, q, generator=dice, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    g_ntp = torch.randn(n, t, p, generator=dice, dtype=torch.float64) * torch.tensor([1.0, 3.0])
    G_nd = torch.einsum("ntp,ntq->npq", g_ntp, a_ntq).flatten(1)
    A_qq = torch.einsum("ntq,ntr->qr", a_ntq, a_ntq) / (n * t)
    G_pp = torch.einsum("ntp,nts->ps", g_ntp, g_ntp) / n
    sigma_dd = (G_nd[:, :, None] * G_nd[:, None, :]).std(0) / n**0.5
    assert_close(full(G_nd) / sigma_dd, torch.kron(G_pp, A_qq) / sigma_dd, "estimate", sigma=1.5)


@pytest.mark.parametrize("labels", ["empirical", "sampled"])
@pytest.mark.parametrize("look", [core_gradients, core_factors])
def test_model_is_left_as_it_was(look: Any, labels: Any) -> None:
    loaded, rows, layers = setting()
    loaded.model.train()
    loaded.model.lm_head.eval()
    layers.parameter("layers.0.q_proj").requires_grad_(False)
    layers.parameter("layers.1.q_proj").grad = torch.ones_like(layers.parameter("layers.1.q_proj"))
    before, dice = state_of(loaded.model), torch.get_rng_state()
    with torch.no_grad():
        look(loaded, rows, spaces_of(layers), labels=labels)
    assert_same_state(loaded.model, before)
    assert torch.equal(torch.get_rng_state(), dice)


@pytest.mark.parametrize("look", [core_gradients, core_factors])
def test_gradient_that_is_not_finite_names_layer_and_row(look: Any) -> None:
    loaded, rows, layers = setting()
    longest = max(rows, key=len)

    def poison(_: Any, inputs: Any, output: Tensor) -> None:
        def spoilt(g_bti: Tensor) -> Tensor:
            spoilt_bti = g_bti.clone()
            spoilt_bti[0, 1, 3] = torch.inf
            return spoilt_bti

        output.register_hook(spoilt)

    handle = loaded.model.model.layers[0].register_forward_hook(poison)
    with pytest.raises(NumericsError, match=rf"gradient of layers.0.down_proj on row '{longest.id}' is not finite"):
        look(loaded, rows, spaces_of(layers))
    handle.remove()


def test_misfits_are_one_sentence() -> None:
    loaded, rows, layers = setting("phi3")
    spaces = spaces_of(layers)
    narrow = {"layers.0.o_proj": CoreSpace(torch.eye(32)[:, :2], torch.eye(16)[:, :2])}
    fused = spaces_of(layers.select("layers.0.qkv_proj")) | {"layers.0.q_proj": spaces["layers.0.q_proj"]}
    mute = replace(rows[3], response=(False,) * len(rows[3]))
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ConfigError, "Unknown labels 'drawn'", {"labels": "drawn"}),
        (ConfigError, "Unknown loss 'means'. Did you mean 'mean'", {"loss": "means"}),
        (ConfigError, "batch_size is too small: got 0", {"batch_size": 0}),
        (DataError, "got 0 rows", {"rows": []}),
        (DataError, rf"Row '{mute.id}' has no loss", {"rows": [*rows, mute]}),
        (LayerError, "no core gradients: got no spaces", {"spaces": {}}),
        (LayerError, "no layer matches 'q_proj'", {"spaces": {"q_proj": spaces["layers.0.q_proj"]}}),
        (LayerError, "selection overlaps", {"spaces": fused}),
        (AdapterError, r"layers.0.o_proj does not fit: got shape \(32, 16\), expected \(32, 32\)", {"spaces": narrow}),
    ]
    for error, sentence, options in cases:
        for look in (core_gradients, core_factors):
            with pytest.raises(error, match=sentence):
                look(loaded, **({"rows": rows, "spaces": spaces} | options))


def samples(n: int = 7, d: int = 6) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5


def test_full_is_the_mean_outer_product_and_the_other_forms_are_parts_of_it() -> None:
    G_nd = samples()
    expected = sum(torch.outer(g_d, g_d) for g_d in G_nd) / len(G_nd)
    assert_close(full(G_nd), expected, "float64")
    assert_close(diagonal(G_nd), expected.diagonal(), "float64")


def test_gradient_variance_is_the_diagonal_less_the_squared_mean() -> None:
    G_nd = samples()
    assert_close(gradient_variance(G_nd), diagonal(G_nd) - G_nd.mean(0) ** 2, "float64")
    assert not gradient_variance(G_nd[:1]).any()


def test_topk_keeps_the_largest_entries_of_the_diagonal() -> None:
    G_nd = torch.tensor([[1.0, -4.0, 2.0, 0.5, 3.0]])
    kept = {share: topk(G_nd, share).tolist() for share in (0.01, 0.2, 0.4, 0.41, 1.0)}
    assert kept == {
        0.01: [0, 16, 0, 0, 0],
        0.2: [0, 16, 0, 0, 0],
        0.4: [0, 16, 0, 0, 9],
        0.41: [0, 16, 4, 0, 9],
        1.0: [1, 16, 4, 0.25, 9],
    }


def test_forms_of_nothing_are_one_sentence() -> None:
    for form in (full, diagonal, gradient_variance):
        with pytest.raises(NumericsError, match=r"no Fisher of these gradients: got shape \(0, 6\)"):
            form(samples(n=0))
    with pytest.raises(ConfigError, match=r"share is out of range: got 1\.5"):
        topk(samples(), 1.5)
