"""The massive attribute classifier: against torch's own layers, scikit-learn, brute force, and simulated faces."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch import Tensor, nn

from fairface_synth.attribute_classifier import (
    MAC,
    _calibrate,
    _class_weights,
    _folded,
    _logits,
    _losses,
    _platt,
    _rate,
    _reliability,
    _Settings,
    _split,
    _start,
    _training_logits,
    train_mac,
)
from fairface_synth.attribute_schema import MAAD_FACE, AttributeSchema
from fairface_synth.errors import FairFaceError

D, IDENTITIES = 12, 900
SCHEMA = AttributeSchema(("Even", "Rare", "Random", "Common"))
SLOPES, OFFSETS = torch.tensor([8.0, 8.0, 0.0, 8.0]), torch.tensor([0.0, -4.5, 0.0, 4.5])
SMALL = {"hidden": 8, "branch": 4, "epochs": 2, "batch_size": 64, "progress": False}


def _faces(n: int, seed: int, undefined: float = 0.2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings, labels, identities, and the true P(attribute present): logistic in four directions."""
    rng = torch.Generator().manual_seed(seed)
    identity = torch.arange(n) % IDENTITIES
    x = torch.randn(IDENTITIES, D, generator=rng)[identity] + torch.randn(n, D, generator=rng)
    x = F.normalize(x, dim=1)
    p = (x[:, :4] * SLOPES + OFFSETS).sigmoid()
    labels = torch.where(torch.rand(n, 4, generator=rng) < p, 1, -1)
    labels[torch.rand(n, 4, generator=rng) < undefined] = 0
    return x, labels, identity, p


@pytest.fixture(scope="module")
def mac() -> MAC:
    x, labels, identity, _ = _faces(18_000, 0)
    sizes = {"hidden": 48, "branch": 12, "epochs": 10, "batch_size": 512, "lr": 5e-3, "validation": 0.4, "dropout": 0.2}
    return train_mac(x, labels, identity, schema=SCHEMA, **sizes, progress=False)


@pytest.fixture(scope="module")
def fresh() -> tuple[Tensor, Tensor, Tensor]:
    x, labels, _, p = _faces(20_000, 1)
    return x, labels, p


# --- the network ------------------------------------------------------------------------------------------------------


def _branches(weights: dict[str, Tensor], dropout: float = 0.0) -> tuple[nn.Module, list[nn.Module]]:
    """The same network from torch's layers: a trunk, and a module for each attribute."""

    def block(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> list[nn.Module]:
        layers = [nn.Linear(*weight.shape), nn.ReLU(), nn.BatchNorm1d(weight.shape[1])]
        for parameter, value in (
            (layers[0].weight, weight.T),
            (layers[0].bias, bias),
            (layers[2].weight, scale),
            (layers[2].bias, shift),
        ):
            parameter.data = value.detach().clone()
        return layers

    parts = ("weight", "bias", "scale", "shift")
    trunk = nn.Sequential(*(m for t in ("trunk0", "trunk1") for m in block(*(weights[f"{t}.{p}"] for p in parts))))
    branches = []
    for k in range(len(weights["out.bias"])):
        own = [weights["branch.weight"][:, k]] + [weights[f"branch.{p}"][k] for p in parts[1:]]
        last = nn.Linear(len(own[1]), 1)
        last.weight.data, last.bias.data = weights["out.weight"][k : k + 1].detach(), weights["out.bias"][k : k + 1]
        branches.append(nn.Sequential(*block(*own), last))
    return trunk, branches


def test_stacked_branches_are_a_loop_over_torchs_own_layers() -> None:
    rng = torch.Generator().manual_seed(0)
    weights, running = _start(D, 5, _Settings(7, 3, 0.0, 1, 8, 1.0, 0.0, 0), rng, torch.device("cpu"))
    weights = {k: (v + 0.3 * torch.randn(v.shape, generator=rng)).detach() for k, v in weights.items()}
    trunk, branches = _branches(weights)
    for _ in range(3):  # in training: the statistics of the batch, which move the running ones
        x = torch.randn(16, D, generator=rng)
        h = trunk(x)
        expected = torch.cat([b(h) for b in branches], dim=1)
        torch.testing.assert_close(_training_logits(weights, running, x, 0.0, rng), expected)
    trunk.eval()
    x = torch.randn(16, D, generator=rng)
    expected = torch.cat([b.eval()(trunk(x)) for b in branches], dim=1)
    torch.testing.assert_close(_logits(_folded(weights, running), x), expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 1000))
def test_the_loss_is_masked_class_weighted_cross_entropy_on_logits(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(30, 3, generator=rng), torch.randint(-1, 2, (30, 3), generator=rng)
    counts = torch.stack(((labels > 0).sum(0), (labels < 0).sum(0)))
    balance, losses = _class_weights(counts), _losses(logits, labels, _class_weights(counts))
    assert (losses[labels == 0] == 0).all()
    for k in range(3):
        two = torch.stack((torch.zeros(30), logits[:, k]), dim=1)  # absent, present
        target = torch.where(labels[:, k] == 0, -100, (labels[:, k] > 0).long())
        weight = torch.stack((balance[1, k], balance[0, k]))
        expected = F.cross_entropy(two, target, weight=weight, ignore_index=-100, reduction="sum")
        torch.testing.assert_close(losses[:, k].sum(), expected)


def test_class_weights_make_both_classes_count_alike() -> None:
    balance = _class_weights(torch.tensor([[10, 50], [90, 50]]))
    torch.testing.assert_close(balance * torch.tensor([[10.0, 50], [90, 50]]), torch.full((2, 2), 50.0))


@given(st.integers(1, 300))
def test_the_learning_rate_rises_and_falls_and_is_never_zero_at_first(total: int) -> None:
    rates = [_rate(step, total) for step in range(total)]
    assert max(rates) == 1
    assert all(0 < r <= 1 for r in rates)
    top = rates.index(1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


# --- the split --------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 30), min_size=30, max_size=200).filter(lambda x: len(set(x)) >= 10),
    st.floats(0.05, 0.9),
    st.integers(0, 100),
)
def test_no_identity_is_on_two_sides(identities: list[int], validation: float, seed: int) -> None:
    x = torch.zeros(len(identities), 2)
    rows, people = _split(x, x, [f"id {i}" for i in identities], validation, seed)
    owners = [{identities[i] for i in part.tolist()} for part in rows]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    assert all(len(part) for part in rows)
    assert sorted(torch.cat(rows).tolist()) == list(range(len(identities)))
    assert [len(p) for p in people] == [len(o) for o in owners]


def test_the_held_out_share_is_the_wanted_one() -> None:
    x = torch.zeros(10_000, 2)
    rows, _ = _split(x, x, torch.arange(10_000) // 10, 0.2, 0)
    assert [len(r) for r in rows] == pytest.approx([8000, 1000, 1000], abs=30)


def test_figures_come_from_the_test_identities_alone() -> None:
    x, labels, identity, _ = _faces(2000, 3)
    mac = train_mac(x, labels, identity, schema=SCHEMA, **SMALL)
    rows, _ = _split(x, labels, identity, 0.2, 0)
    test = labels[rows[2]]
    assert mac.metrics["positive"].tolist() == (test > 0).sum(0).tolist()
    assert mac.metrics["negative"].tolist() == (test < 0).sum(0).tolist()
    again = mac.evaluate(x[rows[2]], test)
    torch.testing.assert_close(again.auc, mac.metrics["auc"])
    torch.testing.assert_close(again.ece, mac.metrics["ece"])
    assert str(again) == str(mac.report())


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_scikit_learns(mac: MAC, fresh) -> None:
    x, labels, _ = fresh
    report, p = mac.evaluate(x, labels), mac(x)
    for k in range(4):
        known = labels[:, k] != 0
        truth, score = (labels[known, k] > 0).numpy(), p[known, k].numpy()
        assert float(report.balanced_accuracy[k]) == pytest.approx(balanced_accuracy_score(truth, score >= 0.5))
        weighted = balanced_accuracy_score(truth, score >= float(mac.thresholds[k]))
        assert float(report.weighted_accuracy[k]) == pytest.approx(weighted, abs=1e-4)
        assert float(report.f1[k]) == pytest.approx(f1_score(truth, score >= 0.5, zero_division=0))
        assert float(report.auc[k]) == pytest.approx(roc_auc_score(truth, score))
        error = 0.0
        for b in range(10):
            inside = (score >= b / 10) & ((score < (b + 1) / 10) | (b == 9))
            if inside.any():
                error += inside.mean() * abs(truth[inside].mean() - score[inside].mean())
        assert float(report.ece[k]) == pytest.approx(error, abs=1e-4)


def test_it_learns_what_can_be_learned(mac: MAC, fresh) -> None:
    x, labels, p = fresh
    report = mac.evaluate(x, labels)
    for k in (0, 1, 3):
        known = labels[:, k] != 0
        best = roc_auc_score(labels[known, k] > 0, p[known, k])  # of the truth itself
        assert float(report.auc[k]) > best - 0.03


def test_probabilities_are_calibrated_in_spite_of_class_weights(mac: MAC, fresh) -> None:
    x, labels, p = fresh
    report = mac.evaluate(x, labels)
    assert float(report.ece.max()) < 0.03
    for k in (1, 3):  # a rare and a common attribute, which class weighting moves towards one half
        assert float(report.ece_before[k]) > 0.1
        assert float(mac(x)[:, k].mean()) == pytest.approx(float(p[:, k].mean()), abs=0.02)
        share = (labels[:, k] > 0).sum() / (labels[:, k] != 0).sum()
        assert float(mac.thresholds[k]) == pytest.approx(float(share), abs=0.1)
    assert float((mac(x) - p).abs().mean()) < 0.05


def test_a_rare_attribute_is_better_told_at_its_threshold(mac: MAC, fresh) -> None:
    report = mac.evaluate(*fresh[:2])
    assert float(report.weighted_accuracy[1]) > float(report.balanced_accuracy[1]) + 0.05


@pytest.mark.parametrize("gone", [1, -1])
def test_a_figure_without_both_classes_is_nan_with_a_reason(mac: MAC, fresh, gone: int) -> None:
    x, labels = fresh[0][:500], fresh[1][:500].clone()
    labels[:, 0][labels[:, 0] == gone] = 0
    report = mac.evaluate(x, labels)
    figures = report.to_dict()["Even"]
    assert all(math.isnan(figures[f]) for f in ("balanced_accuracy", "weighted_accuracy", "f1", "auc", "ece"))
    assert f"no {'positive' if gone > 0 else 'negative'} face" in figures["note"]
    assert "no " in str(report)
    assert report.to_frame().loc[0, "attribute"] == "Even"


def test_platts_scaling_is_logistic_regression_on_smoothed_targets() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(400, 3, generator=rng).double()
    labels = torch.where(torch.rand(400, 3, generator=rng) < (2 * logits - 3).sigmoid(), 1, -1)
    labels[:, 2] = torch.where(logits[:, 2] > 0, 1, -1)  # separable: finite only by the smoothing
    labels[:100, 1] = 0
    slope, offset = _platt(logits, labels)
    for k in range(3):
        known = labels[:, k] != 0
        z, y = logits[known, k].numpy(), labels[known, k].numpy() > 0
        target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
        twice = np.concatenate((np.ones_like(z), np.zeros_like(z)))
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
            np.tile(z, 2)[:, None], twice, np.concatenate((target, 1 - target))
        )
        assert float(slope[k]) == pytest.approx(fit.coef_[0, 0], rel=1e-3)
        assert float(offset[k]) == pytest.approx(fit.intercept_[0], rel=1e-3, abs=1e-3)


def test_calibration_without_a_class_takes_back_the_weights_and_says_so() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 2, generator=rng), torch.full((200, 2), -1)
    labels[:, 1] = torch.where(logits[:, 1] < 0, 1, -1)  # ranked the wrong way round
    counts = torch.tensor([[20, 50], [180, 50]])
    slope, offset, notes = _calibrate(logits, labels, counts, AttributeSchema(("a", "b")))
    assert slope.tolist() == [1, 0]
    assert offset.tolist() == pytest.approx([math.log(20 / 180), 0])
    assert "class shares" in notes["a"]
    assert "not predictable" in notes["b"]


# --- reliability ------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30), st.floats(0, 1))
def test_reliability_is_the_published_double_sum(values: list[float], alpha: float) -> None:
    m = len(values)
    pairs = sum(abs(a - b) for a in values for b in values)
    expected = (1 - alpha) / m * sum(values) - alpha / m**2 * pairs
    assert float(_reliability(torch.tensor(values)[:, None], alpha)) == pytest.approx(expected, abs=1e-5)


def test_reliability_is_the_same_in_any_batches_and_follows_its_seed(mac: MAC, fresh) -> None:
    x = fresh[0][:300]
    p, reliability = mac.predict(x, passes=20)
    torch.testing.assert_close(p, mac(x))
    parts = [mac.predict(part, passes=20) for part in x.split(7)]
    torch.testing.assert_close(torch.cat([r for _, r in parts]), reliability)
    assert torch.equal(mac.predict(x, passes=20)[1], reliability)
    assert not torch.allclose(mac.predict(x, passes=20, seed=1)[1], reliability)
    assert float(reliability.max()) <= 0.5
    one = mac.predict(x, passes=20, alpha=0)[1]  # centrality alone: P of the predicted class, averaged
    assert float(one.min()) >= 0
    assert float(one.max()) <= 1


def test_reliable_predictions_are_right_more_often(mac: MAC, fresh) -> None:
    x, labels, _ = fresh
    p, reliability = mac.predict(x[:5000], passes=50)
    for k in (0, 1, 3):
        known = labels[:5000, k] != 0
        right = ((p[known, k] >= 0.5) == (labels[:5000, k][known] > 0)).float()
        sure = reliability[known, k] > reliability[known, k].median()
        assert float(right[sure].mean()) > float(right[~sure].mean()) + 0.05


# --- what a user does -------------------------------------------------------------------------------------------------


def test_training_is_deterministic_given_the_seed() -> None:
    x, labels, identity, _ = _faces(1000, 5)
    a, b, c = (train_mac(x, labels, identity, schema=SCHEMA, seed=s, **SMALL) for s in (0, 0, 1))
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert torch.equal(a(x), b(x))


def test_identities_may_be_strings_integers_or_tensors() -> None:
    x, labels, identity, _ = _faces(1000, 5)
    one = train_mac(x, labels, identity, schema=SCHEMA, **SMALL)
    for same in (identity.tolist(), identity.numpy(), [str(i) for i in identity.tolist()]):
        assert train_mac(x, labels, same, schema=SCHEMA, **SMALL).fingerprint == one.fingerprint


def test_saved_and_loaded(mac: MAC, fresh, tmp_path) -> None:
    noisy = dataclasses.replace(mac, noisy={"Rare": "few"})
    noisy.save(tmp_path / "mac.safetensors")
    loaded = MAC.load(tmp_path / "mac.safetensors")
    assert torch.equal(loaded(fresh[0]), mac(fresh[0]))
    assert loaded.fingerprint == mac.fingerprint
    assert loaded.schema == SCHEMA
    assert loaded.schema.noisy == {"Rare": "few"}
    assert loaded.training == mac.training
    assert "flagged" in str(loaded.report())
    half = mac.to(dtype=torch.float16).to(dtype=torch.float32)
    assert half.metrics["positive"].tolist() == mac.metrics["positive"].tolist()
    torch.testing.assert_close(half(fresh[0]), mac(fresh[0]), rtol=0, atol=0.02)


def test_maad_face_is_the_default_schema() -> None:
    rng = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(300, 16, generator=rng), dim=1)
    labels = torch.randint(-1, 2, (300, 47), generator=rng)
    mac = train_mac(x, labels, range(300), **SMALL)
    assert mac.schema == MAAD_FACE
    assert mac(x).shape == (300, 47)
    assert "human-checked" in mac.schema.noisy["Big_Lips"]
    assert len(str(mac.report()).splitlines()) == 49


def test_an_attribute_that_cannot_be_learned_is_an_error_by_name() -> None:
    x, labels, identity, _ = _faces(500, 5)
    labels[:, 1] = torch.where(labels[:, 1] > 0, 0, labels[:, 1])
    with pytest.raises(FairFaceError, match="Rare"):
        train_mac(x, labels, identity, schema=SCHEMA, **SMALL)


def test_bad_input_speaks_up(mac: MAC) -> None:
    x, labels, identity, _ = _faces(500, 5)
    nan = x.clone()
    nan[3, 0] = torch.nan

    def train(x=x, labels=labels, identity=identity, **settings):
        return train_mac(x, labels, identity, **({"schema": SCHEMA} | SMALL | settings))

    for call in (
        lambda: train(x=nan),
        lambda: train(x=2 * x),
        lambda: train(x=x.numpy()),
        lambda: train(labels=labels[:, :3]),
        lambda: train(labels=2 * labels),
        lambda: train(labels=labels[:100]),
        lambda: train(identity=None),
        lambda: train(identity=identity[:100]),
        lambda: train(identity=identity % 9),
        lambda: train(identity=[""] * 500),
        lambda: train(validation=0),
        lambda: train(validation=1),
        lambda: train(dropout=1),
        lambda: train(epochs=0),
        lambda: train(epochs=1.5),
        lambda: train(lr=float("nan")),
        lambda: train(labels=labels > 0),
        lambda: train(labels=(labels > 0).int()),
        lambda: mac.evaluate(x, (labels > 0).int()),
        lambda: train(schema=list(SCHEMA.names)),
        lambda: train(batch_size=1),
        lambda: train(lr=0),
        lambda: mac(nan),
        lambda: mac(2 * x),
        lambda: mac(F.normalize(x[:, :5], dim=1)),
        lambda: mac.predict(x, passes=1),
        lambda: mac.predict(x, alpha=2),
        lambda: dataclasses.replace(mac, dropout=0.0).predict(x),
        lambda: mac.evaluate(x, labels[:100]),
        lambda: mac.evaluate(x, labels[:, :2]),
    ):
        with pytest.raises(FairFaceError):
            call()


@pytest.mark.cuda
def test_trained_on_a_gpu_it_says_the_same_everywhere() -> None:
    x, labels, identity, _ = _faces(2000, 5)
    mac = train_mac(x, labels, identity, schema=SCHEMA, device="cuda", **SMALL)
    assert mac.device.type == "cuda"
    p, reliability = mac.predict(x.cuda(), passes=20)
    torch.testing.assert_close(p.cpu(), mac.to("cpu")(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(reliability.cpu(), mac.to("cpu").predict(x, passes=20)[1], rtol=1e-3, atol=1e-4)


# --- the bundled one --------------------------------------------------------------------------------------------------


def test_the_bundled_classifier_sees_what_the_bundled_labeller_sees(world) -> None:
    z = torch.randn(250, 100, generator=torch.Generator().manual_seed(7))
    images = world.generator.synthesize(world.generator.map(z))
    with torch.no_grad():
        p, labels = world.mac(world.embedder(images)), world.labeller(images)
    for attribute, value, name in (
        ("gender", 0, "Looks_Female"),
        ("age", 0, "Looks_Younger"),
        ("age", 2, "Looks_Older"),
        ("skin_tone", 2, "Dark_Tone"),
    ):
        truth = labels[attribute][:, value] > 0.5
        assert roc_auc_score(truth, p[:, world.mac.schema.index(name)]) > 0.75


def test_the_documented_figures_are_the_bundled_ones(world) -> None:
    page = (Path(__file__).parents[1] / "docs" / "annotation.md").read_text()
    assert str(world.mac.report()) in page
    assert set(world.mac.schema.noisy) == {
        n for n, row in world.mac.report().to_dict().items() if row["weighted_accuracy"] < 0.8
    }
    for name in world.mac.names:
        assert name in page.split("| attribute | present | absent |")[1].split("On the last")[0]


@pytest.mark.slow
def test_the_training_script_labels_as_documented(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    script = importlib.import_module("train_demo_mac")
    assert script.band(torch.tensor([0.0, 0.2, 0.3, 0.6, 1.0]), 0.2, 0.6).tolist() == [-1, -1, 0, 1, 1]
    assert script.band(torch.tensor([0.0, -0.05, -0.1, -0.15, -1.0]), -0.05, -0.15).tolist() == [-1, -1, 0, 1, 1]
    points = torch.zeros(1, 68, 2)
    points[0, 36], points[0, 45], points[0, 30] = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.6, 0.5]])
    assert float(script.nose_offset(points)) == pytest.approx(0.25)  # to the viewer's right
    points[0, 48], points[0, 54], points[0, 62], points[0, 66] = torch.tensor(
        [[0.4, 0.8], [0.6, 0.8], [0.5, 0.78], [0.5, 0.83]]
    )
    assert float(script.mouth_opening(points)) == pytest.approx(0.25)
    points[0, 17:, 0].clamp_(0.25, 0.75)
    points[0, 17:, 1].clamp_(0.25, 0.75)
    points[0, 17] = 0.75
    images = -torch.ones(1, 3, 64, 64)
    images[..., 32:] = 1  # black on the left, white on the right
    level, side = script.illumination(images, points)
    assert float(level) == pytest.approx(50, abs=1)
    assert float(side) == pytest.approx(100, abs=1)
