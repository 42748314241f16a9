"""What every method is by its definition: an SVD in a norm of its own, and nothing else. All in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_cases import ALL, decomposed, inputs_of, output_loss, stats_of, truncated, weight_of

from flashsvd.errors import CheckpointError, InputError
from flashsvd.methods import method_named, methods

SIZE = st.integers(2, 20)
SEED = st.integers(0, 10**6)
SVD = method_named("svd")


@settings(max_examples=30)
@given(st.sampled_from(ALL), st.integers(1, 3), SIZE, SIZE, SEED)
def test_full_rank_is_the_dense_weight(spec: str, units: int, m: int, n: int, seed: int) -> None:
    weight, x = weight_of(units, m, n, seed), inputs_of(4 * n, n, seed)
    spectrum = decomposed(spec, weight, x, seed)
    for unit in range(units):
        torch.testing.assert_close(truncated(spectrum, unit, min(m, n)), weight[unit], rtol=1e-9, atol=1e-10)


@settings(max_examples=30)
@given(st.integers(1, 3), SIZE, SIZE, SEED, st.data())
def test_svd_loses_the_tail_and_its_first_singular_value(
    units: int, m: int, n: int, seed: int, data: st.DataObject
) -> None:
    weight = weight_of(units, m, n, seed)
    unit = data.draw(st.integers(0, units - 1))
    rank = data.draw(st.integers(1, min(m, n)))
    spectrum = SVD.decompose(weight, None)
    sigma = spectrum.sigma[unit]
    residual = weight[unit] - truncated(spectrum, unit, rank)
    torch.testing.assert_close(residual.square().sum(), sigma[rank:].square().sum(), rtol=1e-9, atol=1e-12)
    spectral = torch.linalg.matrix_norm(residual, 2)
    following = sigma[rank] if rank < len(sigma) else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(spectral, following, rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(st.sampled_from(["whiten", "whiten:sqrt=cholesky"]), SIZE, SIZE, SEED, st.data())
def test_whitening_loses_the_tail_of_the_outputs_and_nothing_loses_less(
    spec: str, m: int, n: int, seed: int, data: st.DataObject
) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed)
    rank = data.draw(st.integers(1, min(m, n)))
    spectrum = decomposed(spec, weight, x)
    whole = output_loss(x, weight[0], torch.zeros_like(weight[0]))
    loss = output_loss(x, weight[0], truncated(spectrum, 0, rank))
    torch.testing.assert_close(
        loss, spectrum.sigma[0, rank:].square().sum(), rtol=1e-7, atol=1e-9 * float(whole)
    )
    others = [truncated(decomposed(other, weight, x, seed), 0, rank) for other in ("svd", "asvd", "fwsvd")]
    generator = torch.Generator().manual_seed(seed)
    others.append(
        torch.randn(m, rank, dtype=torch.float64, generator=generator)
        @ torch.randn(rank, n, dtype=torch.float64, generator=generator)
    )
    for other in others:
        assert loss <= output_loss(x, weight[0], other) + 1e-9 * whole


@settings(max_examples=30)
@given(SIZE, SIZE, SEED, st.data())
def test_every_root_of_the_gram_gives_one_approximation(
    m: int, n: int, seed: int, data: st.DataObject
) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed)
    rank = data.draw(st.integers(1, min(m, n)))
    gram = x.T @ x
    values, vectors = torch.linalg.eigh(gram)
    roots = {
        "eigh": vectors * values.sqrt(),
        "symmetric": vectors * values.sqrt() @ vectors.T,
        "cholesky": torch.linalg.cholesky(gram),
    }
    by_root = []
    for root in roots.values():
        u, sigma, z = torch.linalg.svd(weight[0] @ root, full_matrices=False)
        by_root.append((u[:, :rank] * sigma[:rank]) @ z[:rank] @ torch.linalg.inv(root))
    outputs = torch.linalg.eigh(weight[0] @ gram @ weight[0].T).eigenvectors[:, -rank:]
    by_root.append(outputs @ outputs.T @ weight[0])
    scale = float(weight.abs().max())
    for spec in ("whiten", "whiten:sqrt=cholesky", "drone", "svd_llm", "svd_llm_v2"):
        mine = truncated(decomposed(spec, weight, x), 0, rank)
        for other in by_root:
            # Compared in the norm that they minimise: two equal singular values leave the choice open in the rest.
            one, two = output_loss(x, weight[0], mine), output_loss(x, weight[0], other)
            torch.testing.assert_close(
                one, two, rtol=1e-6, atol=1e-8 * float((x @ weight[0].T).square().sum())
            )
        if rank < min(m, n):
            sigma = decomposed(spec, weight, x).sigma[0]
            if sigma[rank] < 0.9 * sigma[rank - 1]:
                torch.testing.assert_close(mine, by_root[0], rtol=1e-5, atol=1e-6 * scale)


@settings(max_examples=30)
@given(st.integers(1, 3), SIZE, SIZE, SEED, st.data())
def test_fwsvd_loses_the_tail_of_its_weighted_norm_and_svd_no_less(
    units: int, m: int, n: int, seed: int, data: st.DataObject
) -> None:
    weight = weight_of(units, m, n, seed)
    fisher = torch.rand(units, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-3
    spectrum = method_named("fwsvd").decompose(weight, stats_of(inputs_of(2, n, seed), fisher))
    unit, rank = data.draw(st.integers(0, units - 1)), data.draw(st.integers(1, min(m, n)))

    def weighted(approximation: torch.Tensor) -> torch.Tensor:
        return ((weight[unit] - approximation).square() * fisher[unit]).sum()

    whole = float(weighted(torch.zeros_like(weight[unit])))
    loss = weighted(truncated(spectrum, unit, rank))
    torch.testing.assert_close(
        loss, spectrum.sigma[unit, rank:].square().sum(), rtol=1e-7, atol=1e-10 * whole
    )
    assert loss <= weighted(truncated(SVD.decompose(weight, None), unit, rank)) + 1e-10 * whole


@settings(max_examples=25)
@given(SIZE, SIZE, SEED, st.data())
def test_one_method_is_another_in_its_special_case(m: int, n: int, seed: int, data: st.DataObject) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed)
    rank = data.draw(st.integers(1, min(m, n)))
    identity = torch.eye(n, dtype=torch.float64) * 3.7
    plain = SVD.decompose(weight, None)
    from flashsvd.stats.base import InputStats

    by_identity = method_named("whiten").decompose(weight, InputStats(n, gram=identity))
    flat_asvd = method_named("asvd:alpha=0").decompose(weight, stats_of(x))
    d = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1
    by_diagonal = method_named("whiten").decompose(weight, InputStats(n, gram=d.diag()))
    fisher = method_named("fwsvd").decompose(weight, InputStats(n, fisher=d[None]))
    for mine, same in ((by_identity, plain), (flat_asvd, plain), (by_diagonal, fisher)):
        torch.testing.assert_close(
            (weight[0] - truncated(mine, 0, rank)).mul(d.sqrt() if same is fisher else 1).norm(),
            (weight[0] - truncated(same, 0, rank)).mul(d.sqrt() if same is fisher else 1).norm(),
            rtol=1e-7,
            atol=1e-8,
        )
    torch.testing.assert_close(by_identity.sigma, plain.sigma * 3.7**0.5, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(by_diagonal.sigma, fisher.sigma, rtol=1e-7, atol=1e-7)


@settings(max_examples=25)
@given(st.sampled_from(ALL), SIZE, SIZE, SEED, st.floats(0.01, 100.0), st.data())
def test_more_of_the_same_text_changes_nothing(
    spec: str, m: int, n: int, seed: int, factor: float, data: st.DataObject
) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed)
    rank = data.draw(st.integers(1, min(m, n)))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    first = truncated(decomposed(spec, weight, x), 0, rank)
    for again in (x[order], torch.cat([x, x])):
        other = truncated(decomposed(spec, weight, again), 0, rank)
        one, two = output_loss(x, weight[0], first), output_loss(x, weight[0], other)
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8 * float((x @ weight[0].T).square().sum()))
    if spec == "whiten":
        gram = stats_of(x)
        from dataclasses import replace

        assert gram.gram is not None
        scaled = method_named(spec).decompose(weight, replace(gram, gram=gram.gram * factor))
        torch.testing.assert_close(
            scaled.sigma, decomposed(spec, weight, x).sigma * factor**0.5, rtol=1e-5, atol=1e-6 * factor**0.5
        )


@settings(max_examples=20)
@given(st.sampled_from(ALL), SIZE, SIZE, SEED)
def test_loss_falls_with_every_rank(spec: str, m: int, n: int, seed: int) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed)
    spectrum = decomposed(spec, weight, x)
    assert (spectrum.sigma.diff(dim=-1) <= 1e-9 * spectrum.sigma[..., :1]).all()
    if spec in ("svd", "whiten", "basis_sharing"):
        measured = torch.eye(n, dtype=torch.float64) if spec == "svd" else x
        losses = [
            float(output_loss(measured, weight[0], truncated(spectrum, 0, rank)))
            for rank in range(1, min(m, n) + 1)
        ]
        assert all(
            later <= earlier * (1 + 1e-9) + 1e-9 * losses[0] for earlier, later in itertools.pairwise(losses)
        )


def test_a_slice_is_a_fresh_fit() -> None:
    weight = weight_of(2, 9, 13, 3)
    spectrum = SVD.decompose(weight, None)
    for unit, rank in itertools.product(range(2), range(1, 10)):
        u, sigma, v = torch.linalg.svd(weight[unit])
        torch.testing.assert_close(
            truncated(spectrum, unit, rank), (u[:, :rank] * sigma[:rank]) @ v[:rank], rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize(("m", "n"), [(6, 12), (20, 12)])
def test_a_singular_gram_has_no_cholesky_root_but_loses_the_tail_all_the_same(m: int, n: int) -> None:
    weight, x = weight_of(1, m, n, 5), inputs_of(5, n, 5)
    with pytest.raises(CheckpointError, match=r"singular \(5 calibration tokens\).*more than 12 tokens"):
        decomposed("whiten:sqrt=cholesky", weight, x)
    spectrum = decomposed("whiten", weight, x)
    whole = float((x @ weight[0].T).square().sum())
    for rank in range(1, min(m, n) + 1):
        torch.testing.assert_close(
            output_loss(x, weight[0], truncated(spectrum, 0, rank)),
            spectrum.sigma[0, rank:].square().sum(),
            rtol=1e-5,
            atol=1e-7 * whole,
        )
    assert output_loss(x, weight[0], truncated(spectrum, 0, 5)) < 1e-7 * whole
    torch.testing.assert_close(truncated(spectrum, 0, min(m, n)), weight[0], rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(SIZE, SIZE, SEED, st.data())
def test_centred_loses_no_more_than_uncentred(m: int, n: int, seed: int, data: st.DataObject) -> None:
    weight, x = weight_of(1, m, n, seed), inputs_of(3 * n, n, seed) + 3.0
    rank = data.draw(st.integers(1, min(m, n)))
    spectrum = decomposed("whiten:centred", weight, x)
    assert spectrum.mean is not None
    approximation = truncated(spectrum, 0, rank)
    shift = (weight[0] - approximation) @ spectrum.mean
    centred = (x @ weight[0].T - x @ approximation.T - shift).square().sum()
    uncentred = output_loss(x, weight[0], truncated(decomposed("whiten", weight, x), 0, rank))
    whole = float((x @ weight[0].T).square().sum())
    assert centred <= uncentred + 1e-9 * whole
    torch.testing.assert_close(centred, spectrum.sigma[0, rank:].square().sum(), rtol=1e-6, atol=1e-9 * whole)


def test_a_method_that_weighs_nothing_would_be_noticed() -> None:
    """The bounds above are tight enough to tell whitening from plain SVD, and the mean from none."""
    weight, x = weight_of(1, 10, 12, 1), inputs_of(40, 12, 1) + 3.0
    whole = float((x @ weight[0].T).square().sum())
    best = output_loss(x, weight[0], truncated(decomposed("whiten", weight, x), 0, 4))
    for planted in ("svd", "asvd", "fwsvd"):
        assert (
            output_loss(x, weight[0], truncated(decomposed(planted, weight, x), 0, 4)) > best + 1e-4 * whole
        )
    centred = decomposed("whiten:centred", weight, x)
    forgotten = output_loss(x, weight[0], truncated(centred, 0, 4))
    assert forgotten > centred.sigma[0, 4:].square().sum() + 1e-4 * whole
    left, right = SVD.decompose(weight, None).factors(0, 8)
    assert (weight[0] - left[:, :-1] @ right[:-1]).norm() > 1e-3


def test_float32_factors_are_split_evenly() -> None:
    weight = weight_of(2, 12, 8, 2).float()
    for spec in ALL:
        left, right = decomposed(spec, weight, inputs_of(40, 8, 2)).factors(1, 5)
        assert left.dtype == right.dtype == torch.float32
        torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1), rtol=1e-4, atol=1e-5)


def test_a_weight_of_zeros_has_factors_of_zeros() -> None:
    x = inputs_of(40, 8, 2)
    for spec in ALL:
        left, right = decomposed(spec, torch.zeros(1, 6, 8), x).factors(0, 3)
        assert torch.isfinite(left).all() and (left @ right == 0).all()


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    weight, x = weight_of(1, 10, 8, 4), inputs_of(40, 8, 4)
    x[:, 3] = 0
    for spec in ("asvd", "whiten", "whiten:centred"):
        torch.testing.assert_close(
            truncated(decomposed(spec, weight, x), 0, 8), weight[0], rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nmf", "method must be one of asvd, basis_sharing, fwsvd, svd, whiten, drone"),
        ("svd:alpha=1", "svd has no option 'alpha': its options are none"),
        ("asvd:alpha=x", "asvd: alpha must be a number, got 'x'"),
        ("asvd:alpha=-1", "alpha must be from 0 to 2"),
        ("whiten:sqrt=qr", "sqrt must be eigh or cholesky"),
        ("whiten:centred=maybe", "centred must be true or false"),
        ("basis_sharing:group=1", "at least 2 layers"),
    ],
)
def test_a_wrong_name_or_option_is_one_clear_line(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        method_named(spec)


def test_aliases_and_options_say_what_they_are() -> None:
    assert method_named("drone").title == "DRONE"
    assert method_named("asvd:alpha=0.5").spec == "asvd"
    assert method_named("whiten: centred").spec == "whiten:centred=true"
    assert set(methods()) == {"svd", "fwsvd", "asvd", "whiten", "basis_sharing"}
    for method in methods().values():
        assert method.title and method.source
