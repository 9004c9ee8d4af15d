"""Directions, edits and variations: scikit-learn as the oracle, geometry as properties, identity control on a toy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import LinearSVC
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fairface_synth as ffs
from fairface_synth.models.demo import demo_axes
from fairface_synth.thresholds import Threshold
from fairface_synth.variations import (
    PUBLISHED_EXPRESSIONS,
    Axis,
    Direction,
    edit,
    fit_direction,
    neutralise,
    published_axes,
    signed_distance,
    vary,
)

D, LAYERS = 6, 3
DOUBLE = torch.float64


def _direction(seed: int = 0, shape: tuple[int, ...] = (D,), offset: float = 0.0, name: str = "") -> Direction:
    rng = torch.Generator().manual_seed(seed)
    normal = torch.randn(*shape, generator=rng, dtype=DOUBLE)
    means = torch.rand(2, generator=rng, dtype=DOUBLE) + 0.5
    return Direction(normal / normal.norm(), -means[0], means[1], torch.tensor(offset, dtype=DOUBLE), name)


def _latents(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed), dtype=DOUBLE)


def _labelled(n: int = 600, seed: int = 0, slope: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, a measured quantity that follows one direction of them, and that direction."""
    w = _latents(seed, n, D)
    truth = _direction(seed).normal
    value = slope * (w @ truth) + 0.5 * _latents(seed + 1, n) + 7
    return w, value, truth


def test_kept_variations_are_saved_by_person(tmp_path) -> None:
    axis = Axis(_direction(name="turned head"), [0.5, 1.0])
    with pytest.raises(ffs.DataError, match="no images to save"):
        vary(_latents(0, 2, D), axis).save(tmp_path)
    generator = ffs.wrap_generator(
        synthesize=lambda w: w[:, 0, :3, None, None].float().tanh().expand(-1, -1, 8, 8), z_dim=D, resolution=8
    )
    varied = vary(_latents(0, 2, D), axis, generator=generator, keep_images=True)
    kept = varied.kept.clone()
    kept[1, 0] = False
    folder = replace(varied, kept=kept).save(tmp_path / "people")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert files == ["000000/turned_head_00.png", "000000/turned_head_01.png", "000001/turned_head_01.png"]


def test_what_is_no_axis_is_refused() -> None:
    for wrong in ({"yaw": _direction()}, [_direction()]):
        with pytest.raises(ffs.DataError, match="direction with steps"):
            vary(_latents(0, 2, D), wrong)


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_svm_is_the_published_one() -> None:
    w, value, _ = _labelled()
    labels = value > 7.5
    svm = LinearSVC(fit_intercept=False, max_iter=10_000, random_state=0).fit(w.numpy(), labels.numpy())
    coefficient = svm.coef_[0] / np.linalg.norm(svm.coef_)
    direction = fit_direction(w, labels)
    np.testing.assert_allclose(direction.normal.numpy(), coefficient, atol=1e-6)
    distance = svm.decision_function(w.numpy()) / np.linalg.norm(svm.coef_)
    assert float(direction.pos_mean) == pytest.approx(distance[labels.numpy()].mean())
    assert float(direction.neg_mean) == pytest.approx(distance[~labels.numpy()].mean())
    assert float(direction.offset) == 0


def test_logistic_has_the_intercept() -> None:
    w, value, _ = _labelled()
    labels = (value > 7.5).long()
    model = LogisticRegression(C=0.5, max_iter=10_000).fit(w.numpy(), labels.numpy())
    direction = fit_direction(w, labels, method="logistic", regularization=2.0)
    expected = model.decision_function(w.numpy()) / np.linalg.norm(model.coef_)
    np.testing.assert_allclose(signed_distance(w, direction).numpy(), expected, atol=1e-9)


def test_ridge_is_zero_where_the_mean_is_predicted() -> None:
    w, value, truth = _labelled()
    model = Ridge(alpha=1.0).fit(w.numpy(), value.numpy())
    direction = fit_direction(w, value, method="ridge")
    predicted = (model.predict(w.numpy()) - value.numpy().mean()) / np.linalg.norm(model.coef_)
    np.testing.assert_allclose(signed_distance(w, direction).numpy(), predicted, atol=1e-9)
    assert float(direction.normal @ truth) > 0.99
    low, high = value.quantile(torch.tensor([0.25, 0.75], dtype=DOUBLE))
    distance = signed_distance(w, direction)
    assert float(direction.neg_mean) == pytest.approx(float(distance[value <= low].mean()))
    assert float(direction.pos_mean) == pytest.approx(float(distance[value >= high].mean()))


def test_the_tails_of_a_measured_quantity_are_its_classes() -> None:
    w, value, _ = _labelled()
    low, high = value.quantile(torch.tensor([0.1, 0.9], dtype=DOUBLE))
    classes = torch.where(value >= high, 1, torch.where(value <= low, 0, -1))
    measured, labelled = fit_direction(w, value, tails=0.1), fit_direction(w, classes, held_out=0)
    torch.testing.assert_close(measured.normal, labelled.normal)
    torch.testing.assert_close(measured.pos_mean, labelled.pos_mean)


def test_unsure_samples_are_left_out() -> None:
    w, value, _ = _labelled()
    labels = torch.where(value > 8, 1, torch.where(value < 7, 0, -1))
    noisy = torch.where((labels < 0)[:, None], 100 * w, w)
    a, b = fit_direction(w, labels), fit_direction(noisy, labels)
    for field in ("normal", "neg_mean", "pos_mean"):
        torch.testing.assert_close(getattr(a, field), getattr(b, field))


@pytest.mark.parametrize("kind", ["classes", "measured"])
def test_quality_is_that_of_unseen_rows(kind: str) -> None:
    """High where there is something to find; around chance, not around the training fit, where there is nothing."""
    w, value, _ = _labelled(2000)
    noise = _latents(5, 2000)
    labels, nothing = (value > 7, noise > 0) if kind == "classes" else (value, noise)
    wide = torch.cat((w, _latents(9, 2000, 200)), dim=1)  # enough dimensions to fit noise
    found, chance = fit_direction(wide, labels), fit_direction(wide, nothing)
    assert found.metric == chance.metric == ("AUC" if kind == "classes" else "correlation")
    assert found.quality is not None
    assert chance.quality is not None
    assert found.quality > 0.85
    assert abs(chance.quality - (0.5 if kind == "classes" else 0)) < 0.12
    assert fit_direction(w, labels, held_out=0).quality is None


@pytest.mark.parametrize("method", ["svm", "logistic", "ridge"])
def test_orthogonal_to_others(method: str) -> None:
    w, value, _ = _labelled()
    others = [_direction(3), _direction(4)]
    labels = value if method == "ridge" else value > 7
    direction = fit_direction(w, labels, method=method, orthogonal_to=others)  # type: ignore[arg-type]
    assert float(direction.normal.norm()) == pytest.approx(1)
    for other in others:
        assert abs(float(direction.normal @ other.normal)) < 1e-12
    plain = fit_direction(w, labels, method=method)  # type: ignore[arg-type]
    if method != "svm":  # turned about the mean of the data; the published plane stays through the origin
        centre = w.mean(0, keepdim=True)
        torch.testing.assert_close(signed_distance(centre, direction), signed_distance(centre, plain))


def test_w_plus_latents_give_a_normal_per_layer() -> None:
    w, value, _ = _labelled()
    plus = w.view(-1, LAYERS, D // LAYERS)
    direction = fit_direction(plus, value, method="ridge", name="x")
    assert direction.normal.shape == (LAYERS, D // LAYERS)
    flat = fit_direction(w, value, method="ridge")
    torch.testing.assert_close(direction.normal.flatten(), flat.normal)
    torch.testing.assert_close(signed_distance(plus, direction), signed_distance(w, flat))
    torch.testing.assert_close(signed_distance(edit(plus, direction, 2.0), direction), signed_distance(w, flat) + 2)


def test_a_direction_saves_and_loads(tmp_path) -> None:
    w, value, _ = _labelled()
    direction = fit_direction(w.float(), value, method="ridge", name="yaw")
    direction.save(tmp_path / "yaw.safetensors")
    again = Direction.load(tmp_path / "yaw.safetensors")
    assert (again.name, again.method, again.quality, again.metric) == ("yaw", "ridge", direction.quality, "correlation")
    for field in ("normal", "neg_mean", "pos_mean", "offset"):
        value = getattr(again, field)
        assert value.dtype == torch.float32
        assert torch.equal(value, getattr(direction, field))


# --- edits ------------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)
amounts = st.floats(-5, 5)


@given(seeds, amounts, st.floats(-2, 2), st.sampled_from([(D,), (LAYERS, D)]))
def test_an_edit_moves_by_exactly_so_much(seed: int, amount: float, offset: float, shape: tuple[int, ...]) -> None:
    direction = _direction(seed, shape, offset)
    w = _latents(seed, 4, *shape)
    before = signed_distance(w, direction)
    moved = edit(w, direction, amount)
    torch.testing.assert_close(signed_distance(moved, direction), before + amount)
    torch.testing.assert_close(
        signed_distance(edit(w, direction, to=amount), direction), torch.full((4,), amount, dtype=DOUBLE)
    )
    torch.testing.assert_close(edit(moved, direction, -amount), w)
    # Nothing orthogonal to the normal moves.
    change = (moved - w).flatten(1)
    torch.testing.assert_close(change, amount * direction.normal.flatten().expand_as(change))


@given(seeds)
def test_amounts_belong_to_latents_not_to_layers(seed: int) -> None:
    """As many latents as layers: one amount a latent must still move every layer of that latent."""
    direction = _direction(seed, offset=0.3)
    w, amount = _latents(seed, LAYERS, LAYERS, D), _latents(seed + 1, LAYERS)
    moved = edit(w, direction, amount)
    for i in range(LAYERS):
        torch.testing.assert_close(moved[i], w[i] + amount[i] * direction.normal)
    target = edit(w, direction, to=amount)
    torch.testing.assert_close(signed_distance(target, direction), amount[:, None].expand(-1, LAYERS))
    per_layer = _latents(seed, LAYERS, LAYERS)
    torch.testing.assert_close(signed_distance(edit(w, direction, to=per_layer), direction), per_layer)


def test_class_units() -> None:
    direction = _direction(1)
    w = _latents(0, 5, D)
    ones = torch.tensor([1.0, -1.0, 0.0, 0.5, -2.0], dtype=DOUBLE)
    expected = torch.stack(
        (
            direction.pos_mean,
            direction.neg_mean,
            0 * direction.pos_mean,
            direction.pos_mean / 2,
            2 * direction.neg_mean,
        )
    )
    torch.testing.assert_close(signed_distance(edit(w, direction, to=ones, units="class"), direction), expected)
    moved = signed_distance(edit(w, direction, ones, units="class"), direction) - signed_distance(w, direction)
    torch.testing.assert_close(moved, expected)


@given(seeds, st.integers(1, 4), st.booleans())
def test_neutralise_is_the_nearest_neutral_latent(seed: int, count: int, plus: bool) -> None:
    directions = [_direction(seed + i, offset=0.1 * i) for i in range(count)]
    w = _latents(seed, 5, LAYERS, D) if plus else _latents(seed, 5, D)
    neutral = neutralise(w, directions)
    for direction in directions:
        assert float(signed_distance(neutral, direction).abs().max()) < 1e-6
    torch.testing.assert_close(neutralise(neutral, directions), neutral, atol=1e-6, rtol=0)
    # The nearest: least-norm solution of N·x = N·w − offset, from scipy's cousin in numpy.
    normals = torch.stack([d.normal for d in directions]).numpy()
    distances = np.stack([signed_distance(w, d).numpy() for d in directions], axis=-1).reshape(-1, count)
    step = np.linalg.lstsq(normals, distances.T, rcond=None)[0].T
    np.testing.assert_allclose(neutral.numpy().reshape(-1, D), w.numpy().reshape(-1, D) - step, atol=1e-6)


def test_neutralise_with_one_direction_is_the_published_formula() -> None:
    direction, w = _direction(2), _latents(2, 7, D)
    torch.testing.assert_close(neutralise(w, direction), w - (w @ direction.normal)[:, None] * direction.normal)
    torch.testing.assert_close(neutralise(w, [direction, direction]), neutralise(w, direction))
    assert neutralise(w, []) is w


def test_gradients_pass_through_edits() -> None:
    direction, w = _direction(2), _latents(2, 3, D).requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda w: neutralise(edit(edit(w, direction, 1.0), direction, to=0.5), direction), w
    )


# --- the published 45 -------------------------------------------------------------------------------------------------


def _published_directions() -> dict[str, Direction]:
    names = (*PUBLISHED_EXPRESSIONS, "pose", "illumination")
    return {name: _direction(50 + i, name=name) for i, name in enumerate(names)}


def _literally(w: np.ndarray, directions: dict[str, Direction]) -> np.ndarray:
    """The released code's 45 edits of one latent, number by number."""
    out = []
    for name in PUBLISHED_EXPRESSIONS:
        n, pos = directions[name].normal.numpy(), float(directions[name].pos_mean)
        out.append(w - (w @ n)[..., None] * n + 0.75 * pos * n)
    for name, factor in (("pose", 0.75), ("illumination", 1.25)):
        n = directions[name].normal.numpy()
        extent = max(-float(directions[name].neg_mean), float(directions[name].pos_mean))
        out += [w + step * n for step in factor * np.linspace(-extent, extent, 20)]
    return np.stack(out)


@pytest.mark.parametrize("shape", [(D,), (LAYERS, D)], ids=["W", "W+"])
def test_the_published_45(shape: tuple[int, ...]) -> None:
    directions = _published_directions()
    w = _latents(0, 4, *shape)
    result = vary(w, published_axes(directions))
    assert result.latents.shape == (4, 45, *shape)
    assert result.axis.tolist() == [0, 1, 2, 3, 4, *[5] * 20, *[6] * 20]
    for i in range(4):
        np.testing.assert_allclose(result.latents[i].numpy(), _literally(w[i].numpy(), directions), atol=1e-12)
    assert bool(result.kept.all())
    assert bool((result.factor == 1).all())
    assert bool(result.similarity.isnan().all())
    assert result.synthesized == 0
    assert result.counts().tolist() == [[4, 0, 0]] * 5 + [[80, 0, 0]] * 2


def test_missing_directions_are_named() -> None:
    directions = _published_directions()
    del directions["scream"], directions["pose"]
    with pytest.raises(ffs.DataError, match="more directions: scream, pose"):
        published_axes(directions)


def test_neutral_first_as_colbois_do() -> None:
    directions = _published_directions()
    w = _latents(0, 4, D)
    both = [directions["pose"], directions["illumination"]]
    result = vary(w, published_axes(directions), neutral=both)
    expected = vary(neutralise(w, both), published_axes(directions))
    torch.testing.assert_close(result.latents, expected.latents)


def test_axes() -> None:
    direction = _direction(1)
    line = torch.linspace(0, 1, 5, dtype=DOUBLE)
    between = Axis.between(direction, 5, 2.0)
    torch.testing.assert_close(
        between.steps, 2 * (direction.neg_mean + (direction.pos_mean - direction.neg_mean) * line)
    )
    assert between.kind == "set"
    result = vary(_latents(0, 3, D), [between, Axis(direction, [1, 2])])
    torch.testing.assert_close(
        signed_distance(result.latents[:, :5], direction), torch.as_tensor(between.steps).expand(3, -1)
    )
    assert result.names == ("axis 0", "axis 1")


# --- identity control, on a toy whose answers are known ---------------------------------------------------------------
#
# Latents are (x, y, z). The picture's three channels are them; identity is the angle of (x, y); a face is seen where
# |z| < 1. Starting at (1, 0, 0), moving y by t turns the identity by arctan(t).


def _toy() -> ffs.Generator:
    return ffs.wrap_generator(
        synthesize=lambda w: w[:, 0, :, None, None].expand(-1, -1, 2, 2), z_dim=3, w_dim=3, num_ws=1, resolution=2
    )


class _Angle:
    dim = 2

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return torch.nn.functional.normalize(images[:, :2, 0, 0], dim=1)


def _along(axis: int, name: str) -> Direction:
    one, zero = torch.ones(()), torch.zeros(())
    return Direction(torch.eye(3)[axis], -one, one, zero, name)


START = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])


def test_edits_are_shortened_dropped_and_counted() -> None:
    """cos ≥ 1/√2 allows y ≤ x: y of 1 passes for both, 2 and 4 need halving, 16 never passes with factors ≥ 1/4."""
    embedder = _Angle()
    axis = Axis(_along(1, "turn"), [0.9, 1.8, 3.6, 16.0])
    result = vary(
        START, [axis, Axis(_along(2, "other"), [50.0])], generator=_toy(), embedder=embedder, threshold=0.5**0.5
    )
    expected = torch.tensor([[1, 0.5, 0.25, 0, 1], [1, 1, 0.5, 0, 1]])
    assert torch.equal(result.factor, expected)
    assert torch.equal(result.kept, expected > 0)
    turned = START[:, None] + expected[..., None] * torch.tensor(
        [[0, 0.9, 0], [0, 1.8, 0], [0, 3.6, 0], [0, 16, 0], [0, 0, 50]]
    )
    torch.testing.assert_close(result.latents, turned)
    last = torch.where(expected > 0, expected, 0.25)  # what was tried last
    angle = torch.atan2(last * torch.tensor([0.9, 1.8, 3.6, 16.0, 0.0]), START[:, :1])
    torch.testing.assert_close(result.similarity, angle.cos())
    assert result.counts().tolist() == [[3, 3, 2], [2, 0, 0]]
    # 2 unedited; all 10; then what failed: (2 + 1, 3.6, 16) of one and (3.6, 16) of the other, ...
    assert result.synthesized == embedder.seen == 2 + 10 + 5 + 3
    assert "| turn  | 3     | 3         | 2       |" in str(result)


@pytest.mark.parametrize(("min_step", "factors"), [(1.0, [1, 0, 0]), (0.5, [1, 0.5, 0]), (0.3, [1, 0.5, 0])])
def test_min_step(min_step: float, factors: list[float]) -> None:
    axis = Axis(_along(1, "turn"), [0.9, 1.8, 3.6])
    result = vary(START[:1], [axis], generator=_toy(), embedder=_Angle(), threshold=0.5**0.5, min_step=min_step)
    assert result.factor.tolist() == [factors]


def test_faces_are_required_where_a_detector_is_given() -> None:
    axis = Axis(_along(2, "away"), [0.5, 1.5, 9.0])

    def seen(images: Tensor) -> Tensor:
        return images[:, 2, 0, 0].abs() < 1

    def detections(images: Tensor) -> ffs.Detections:
        n = len(images)
        return ffs.Detections(torch.where(seen(images), 0.96, 0.94), torch.zeros(n, 4), torch.zeros(n, 5, 2))

    def probabilities(images: Tensor) -> Tensor:
        return torch.where(seen(images), 0.96, 0.94)

    for detector in (seen, detections, probabilities):
        result = vary(START, [axis], generator=_toy(), detector=detector)
        assert result.factor.tolist() == [[1, 0.5, 0]] * 2
        assert result.synthesized == 2 + 6 + 4 + 2
        assert result.reference_found.tolist() == [True, True]
        assert str(result).endswith("| away | 2     | 2         | 2       | –           |")
        assert bool(result.similarity.isnan().all())


def test_unedited_images_without_a_face_are_counted() -> None:
    start = torch.cat((START, torch.tensor([[1.0, 0.0, 3.0]])))
    axes = [Axis(_along(1, "turn"), [0.1, 0.2]), Axis(_along(2, "nod"), [-2.5, 9.0])]
    models = {"generator": _toy(), "embedder": _Angle(), "threshold": 0.5}
    for size in (2, 256):
        result = vary(start, axes, detector=lambda x: x[:, 2, 0, 0].abs() < 1, min_step=1.0, batch_size=size, **models)  # type: ignore[arg-type]
        assert result.reference_found.tolist() == [True, True, False]
        assert result.kept.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, False]]
        assert result.synthesized == 3 + 12
        assert "No face found in 1 of 3 unedited images; 3 of the 7 dropped variations are theirs." in str(result)
    blind = vary(start, axes, min_step=1.0, **models)  # type: ignore[arg-type]
    assert bool(blind.reference_found.all())
    assert "No face" not in str(blind)


def test_a_detector_that_says_something_else() -> None:
    with pytest.raises(ffs.ShapeError, match="whether there is a face"):
        vary(START, [Axis(_along(1, "turn"), [0.1])], generator=_toy(), detector=lambda x: x[:, :2, 0, 0])


def test_setting_accounts_for_the_offset() -> None:
    direction, w = _direction(3, offset=0.7), _latents(3, 4, D)
    result = vary(w, [Axis(direction, [0.4], "set")]).latents[:, 0]
    step = 0.4 - signed_distance(w, direction)
    torch.testing.assert_close(result, w + step[:, None] * direction.normal)
    torch.testing.assert_close(signed_distance(result, direction), torch.full((4,), 0.4, dtype=DOUBLE))


def test_images_are_those_of_the_latents() -> None:
    axis = Axis(_along(1, "turn"), [0.9, 1.8])
    result = vary(START, [axis], generator=_toy(), embedder=_Angle(), threshold=0.5**0.5, keep_images=True)
    assert result.images is not None
    assert result.images.shape == (2, 2, 3, 2, 2)
    torch.testing.assert_close(result.images[..., 0, 0], result.latents)
    assert vary(START, [axis], generator=_toy(), embedder=_Angle(), threshold=0.5).images is None


def test_batches_change_nothing() -> None:
    axes = [Axis(_along(1, "turn"), [0.9, 1.8, 3.6, 16.0]), Axis(_along(0, "x"), [1.0])]
    models = {"generator": _toy(), "embedder": _Angle(), "threshold": 0.5**0.5, "keep_images": True}
    a, b = (vary(START, axes, batch_size=size, **models) for size in (3, 256))  # type: ignore[arg-type]
    for field in ("latents", "kept", "factor", "similarity", "images"):
        assert torch.equal(getattr(a, field), getattr(b, field)), field
    assert a.synthesized == b.synthesized


def test_a_threshold_object_and_the_reference_is_not_neutralised() -> None:
    threshold = Threshold(0.5**0.5, 0.01, 0.01, 0.0, 0.02, 3000, 3000.0)
    start = torch.tensor([[1.0, 3.0, 0.0]])
    axis = Axis(_along(2, "other"), [0.1])
    result = vary(
        start, [axis], neutral=_along(1, "turn"), generator=_toy(), embedder=_Angle(), threshold=threshold, min_step=0.5
    )
    # Neutralised, (1, 0, 0.1) is too far from (1, 3, 0), half the whole edit (1, 1.5, 0.05) is not.
    torch.testing.assert_close(result.latents, torch.tensor([[[1.0, 1.5, 0.05]]]))
    assert result.factor.tolist() == [[0.5]]


def test_vary_without_models_runs_on_a_device_without_waiting() -> None:
    with FakeTensorMode():
        normal, one = torch.randn(D, device="cuda"), torch.ones((), device="cuda")
        direction = Direction(normal, -one, one, 0 * one, "x")
        directions = dict.fromkeys((*PUBLISHED_EXPRESSIONS, "pose", "illumination"), direction)
        result = vary(torch.randn(4, D, device="cuda"), published_axes(directions), neutral=[direction])
    assert result.latents.shape == (4, 45, D)
    assert {t.device.type for t in (result.latents, result.kept, result.factor, result.similarity, result.axis)} == {
        "cuda"
    }


# --- what must speak up -----------------------------------------------------------------------------------------------


def test_bad_labels() -> None:
    w, value, _ = _labelled(100)
    for labels, message in (
        (torch.zeros(100, dtype=torch.int64), "too few samples"),
        (torch.arange(100) < 9, "too few samples"),
        (torch.full((100,), 2), "unknown class labels"),
        (value.masked_fill(torch.arange(100) == 3, torch.nan), r"NaN or infinite[\s\S]*w\[ok\]"),
        (torch.ones(100), "no direction is left|too few samples"),
    ):
        with pytest.raises(ffs.DataError, match=message):
            fit_direction(w, labels)
    with pytest.raises(ffs.DataError, match="ridge is for measured"):
        fit_direction(w, value > 7, method="ridge")
    with pytest.raises(ffs.DataError, match="NaN or infinite"):
        fit_direction(w.masked_fill(torch.arange(100)[:, None] == 3, torch.nan), value)
    with pytest.raises(ffs.ShapeError, match=r"labels \[n\]"):
        fit_direction(w, value[:50])
    for setting in ({"method": "forest"}, {"tails": 0.6}, {"regularization": 0.0}, {"held_out": 1.0}):
        with pytest.raises(ffs.DataError, match="out of range"):
            fit_direction(w, value, **setting)  # type: ignore[arg-type]


def test_nothing_left_beside_the_others() -> None:
    w, value, _ = _labelled()
    first = fit_direction(w, value, method="ridge")
    with pytest.raises(ffs.DataError, match="no direction is left"):
        fit_direction(w, value, method="ridge", orthogonal_to=first, held_out=0)


def test_bad_edits() -> None:
    direction, w = _direction(), _latents(0, 5, D)
    with pytest.raises(ffs.DataError, match="one of amount and to"):
        edit(w, direction)
    with pytest.raises(ffs.DataError, match="one of amount and to"):
        edit(w, direction, 1.0, to=1.0)
    with pytest.raises(ffs.DataError, match="unknown units"):
        edit(w, direction, 1.0, units="miles")  # type: ignore[arg-type]
    for amount in (torch.zeros(4), torch.zeros(5, D), torch.zeros(2, 5)):
        with pytest.raises(ffs.ShapeError, match="amounts do not fit"):
            edit(w, direction, amount)
    with pytest.raises(ffs.ShapeError, match="do not belong to the direction"):
        edit(w[:, :3], direction, 1.0)
    with pytest.raises(ffs.ShapeError, match="different shapes"):
        neutralise(_latents(0, 5, LAYERS, D), [direction, _direction(1, (LAYERS, D))])


def test_bad_axes() -> None:
    direction = _direction()
    with pytest.raises(ffs.ShapeError, match="needs steps"):
        Axis(direction, [])
    with pytest.raises(ffs.DataError, match="not finite"):
        Axis(direction, [1.0, float("nan")])
    with pytest.raises(ffs.DataError, match="unknown kind"):
        Axis(direction, [1.0], "jump")  # type: ignore[arg-type]


def test_bad_variations() -> None:
    axis, generator = Axis(_along(1, "turn"), [1.0]), _toy()
    for settings, message in (
        ({"threshold": 0.5}, "go together"),
        ({"embedder": _Angle(), "generator": generator}, "go together"),
        ({"embedder": _Angle(), "threshold": 1.5, "generator": generator}, "it is a cosine"),
        ({"embedder": _Angle(), "threshold": 0.5}, "no generator"),
        ({"keep_images": True}, "no generator"),
        ({"generator": generator}, "nothing to make images for"),
        ({"min_step": 0.0}, "out of range"),
        ({"batch_size": 0}, "out of range"),
    ):
        with pytest.raises(ffs.DataError, match=message):
            vary(START, [axis], **settings)  # type: ignore[arg-type]
    with pytest.raises(ffs.DataError, match="nothing to vary"):
        vary(START, [])
    with pytest.raises(ffs.DataError, match="NaN"):
        vary(START * torch.nan, [axis])
    with pytest.raises(ffs.DataError, match="embedder gave NaN"):
        vary(START * 0, [axis], generator=generator, embedder=lambda x: x[:, :2, 0, 0] / 0, threshold=0.5)  # type: ignore[arg-type]
    with pytest.raises(ffs.ShapeError, match="not a batch"):
        vary(START[0], [axis])
    square = Axis(replace(_direction(0, (3, 3)), name="W+"), [1.0])
    with pytest.raises(ffs.ShapeError, match="W\\+ direction cannot edit W"):
        vary(torch.zeros(3, 3, dtype=DOUBLE), [square])


# --- the bundled world ------------------------------------------------------------------------------------------------


def test_the_demo_s_axes_keep_faces_and_identities(world) -> None:
    w = ffs.draw_latents(world.generator, 77, 0, 2)
    result = vary(
        w,
        demo_axes(world.directions),
        generator=world.generator,
        embedder=world.embedder,
        threshold=0.8,
    )
    assert result.latents.shape == (2, 45, 100)
    again = world.embedder(world.generator.synthesize(result.latents.flatten(0, 1)[:, None])).view(2, 45, -1)
    unedited = world.embedder(world.generator.synthesize(w[:, None]))
    cosine = (again * unedited[:, None]).sum(-1)
    assert float(cosine.min()) > 0.8 - 1e-4, "dropped ones are the unedited latent"
    torch.testing.assert_close(cosine[result.kept], result.similarity[result.kept], atol=1e-4, rtol=0)
