"""Pipeline, accept/reject, reports and figures, on the bundled world."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

import fairface_synth as ffs
from fairface_synth import DataError, GroupError, Groups, ShapeError, plotting


@pytest.fixture(scope="module")
def pipeline(world) -> ffs.Pipeline:
    return ffs.Pipeline.fit(
        world.generator, world.labeller, attributes=["skin_tone", "gender"], n=3000, seed=0, progress=False
    )


def test_sample_has_the_quota_and_is_reproducible(pipeline) -> None:
    sample = pipeline.sample("light", n=9, seed=4, progress=False)
    assert sample.images.shape == (9, 3, 64, 64)
    assert pipeline.groups.count(sample.group_ids).tolist() == [5, 4, 0, 0, 0, 0]
    again = pipeline.latents(sample.group_ids, sample.index, seed=4)
    torch.testing.assert_close(sample.latents, again)
    one = pipeline.latents(sample.group_ids[7:8], sample.index[7:8], seed=4)
    torch.testing.assert_close(one, again[7:8])
    assert not torch.equal(pipeline.sample("light", n=9, seed=5, progress=False).latents, sample.latents)
    assert "Sample(n=9" in repr(sample)


def test_truncation_shrinks_latents(pipeline) -> None:
    full = pipeline.sample("dark-male", n=8, seed=1, progress=False)
    half = pipeline.sample("dark-male", n=8, seed=1, truncation_psi=0.5, progress=False)
    torch.testing.assert_close(half.latents, 0.5 * full.latents)
    assert half.truncation_psi == 0.5


def test_gaussians_raise_the_share_of_a_rare_group(world, pipeline) -> None:
    """Scored by the judge, which had no part in the fit."""
    target = pipeline.groups.parse("light")
    natural = world.generator.synthesize(world.generator.map(ffs.draw_latents(world.generator, 8, 0, 300)))
    aimed = pipeline.sample("light", n=300, seed=8, progress=False).images
    judged = [pipeline.groups.assign(world.judge(x)) for x in (natural, aimed)]
    shares = [np.isin(j.numpy(), target).mean() for j in judged]
    assert shares[1] > 2 * shares[0]


def test_verified_faces_are_confirmed_by_the_labeller(pipeline) -> None:
    sample = pipeline.sample("balanced", n=18, seed=2, verify=True, progress=False)
    assert sample.verified
    assert not sample.short
    assert pipeline.groups.count(sample.group_ids).tolist() == [3] * 6
    assert torch.equal(pipeline.assign(sample.images), sample.group_ids)
    assert bool((sample.synthesized >= 3).all())
    torch.testing.assert_close(pipeline.latents(sample.group_ids, sample.index, seed=2), sample.latents)


def test_a_group_that_cannot_be_filled_ends_with_a_report(world, pipeline) -> None:
    never = ffs.Pipeline(
        pipeline.generator,
        pipeline.labeller,
        pipeline.groups,
        pipeline.bank,
        pipeline.subspace,
        pipeline.gaussians,
        detector=lambda images: torch.zeros(len(images), dtype=torch.bool),
    )
    sample = never.sample("light-female", n=4, verify=True, max_syntheses=40, progress=False)
    assert len(sample) == 0
    assert sample.short == {0: 4}
    assert int(sample.synthesized.sum()) == 40


@pytest.mark.parametrize("method", ["lda", "normals", "pca", "identity"])
def test_every_subspace_method_chains(pipeline, method: str) -> None:
    other = ffs.Pipeline.fit(
        pipeline.generator,
        pipeline.labeller,
        attributes=["skin_tone", "gender"],
        bank=pipeline.bank,
        method=method,
    )
    assert other.sample("dark", n=4, progress=False).images.isfinite().all()


def test_mixtures_chain(pipeline) -> None:
    other = ffs.Pipeline.fit(
        pipeline.generator, pipeline.labeller, attributes=["skin_tone"], bank=pipeline.bank, components=2
    )
    sample = other.sample("light", n=6, seed=3, progress=False)
    torch.testing.assert_close(other.latents(sample.group_ids, sample.index, 3), sample.latents)


def test_groups_never_seen_are_composed_and_flagged(pipeline) -> None:
    ids = pipeline.bank.group_ids(pipeline.groups, 0.6)
    without = pipeline.bank[ids != pipeline.groups.id("light-female")]
    other = ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, attributes=["skin_tone", "gender"], bank=without)
    assert other.gaussians.composed == (pipeline.groups.id("light-female"),)
    assert "composed from the other groups: light-female" in str(other.report())
    assert other.sample("light-female", n=3, progress=False).images.isfinite().all()


def test_the_report_counts_everybody(pipeline) -> None:
    report = pipeline.report()
    assert report.natural.total == 3000
    assert int(report.natural.counts.sum()) + report.natural.unsure == 3000
    assert "as labelled" in str(report)
    assert all(name in str(report) for name in pipeline.groups.names)


def test_a_gate_that_nothing_passes_is_an_error(pipeline) -> None:
    with pytest.raises(DataError, match="100% unsure"):
        ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, bank=pipeline.bank, min_confidence=1.0)
    with pytest.raises(DataError, match="is a probability"):
        ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, bank=pipeline.bank, min_confidence=60)


def test_unknown_groups_say_what_is_near(pipeline) -> None:
    with pytest.raises(GroupError, match="did you mean 'light'"):
        pipeline.sample("lihgt", n=2)


def test_all_attributes_work_although_some_groups_have_a_sample_or_two(pipeline) -> None:
    other = ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, bank=pipeline.bank)
    counts = other.groups.count(other.bank.group_ids(other.groups, 0.6))
    assert bool(((counts > 0) & (counts < 10)).any()), "the case is there"
    assert set(other.gaussians.composed) == set(torch.nonzero(counts < 10).flatten().tolist())
    assert other.sample("balanced", n=18, progress=False).images.isfinite().all()


def test_columns_in_another_order_are_refused(pipeline) -> None:
    """Probabilities have no names: a labeller or groups with swapped values would silently swap the groups."""
    swapped = ffs.wrap_labeller(
        lambda x: {a: p.flip(1) for a, p in pipeline.labeller(x).items()},
        {a: v[::-1] for a, v in pipeline.labeller.attributes.items()},
    )
    with pytest.raises(GroupError, match="not the labeller's"):
        ffs.Pipeline.fit(pipeline.generator, swapped, bank=pipeline.bank)
    with pytest.raises(GroupError, match="not the labeller's"):
        pipeline.bank.group_ids(Groups({"gender": ["male", "female"]}))


def test_samples_save_everything_it_takes_to_make_them_again(pipeline, tmp_path) -> None:
    from safetensors import safe_open

    sample = pipeline.sample("dark", n=5, seed=6, progress=False)
    folder = sample.save(tmp_path / "set")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert files == [f"dark-female/{i:06d}.png" for i in range(3)] + [f"dark-male/{i:06d}.png" for i in range(2)]
    with safe_open(folder / "latents.safetensors", "pt") as f:
        header, ids, index = f.metadata(), f.get_tensor("group_ids"), f.get_tensor("index")
        latents = f.get_tensor("latents")
    again = pipeline.latents(ids, index, int(header["seed"]), float(header["truncation_psi"]))
    torch.testing.assert_close(again, latents)


def test_functions_are_not_mistaken_for_models(world) -> None:
    with pytest.raises(DataError, match="wrap_labeller"):
        ffs.label_latents(world.generator, lambda images: {}, 4)
    with pytest.raises(DataError, match="wrap_generator"):
        ffs.Pipeline.fit(lambda z: z, world.labeller, n=10)
    tensor = ffs.wrap_labeller(lambda images: torch.zeros(4, 2), {"gender": ("female", "male")})
    with pytest.raises(DataError, match="must give a dictionary"):
        ffs.label_latents(world.generator, tensor, 4, progress=False)


def test_images_in_0_to_255_are_noticed(world) -> None:
    loud = ffs.wrap_generator(synthesize=lambda w: 100 + w[:, 0, :3, None, None].expand(-1, 3, 8, 8), z_dim=3)
    with pytest.raises(DataError, match=r"not in \[-1, 1\]"):
        ffs.label_latents(loud, world.labeller, 4, progress=False)


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 2.5}, {"batch_size": 0}, {"truncation_psi": "0.7"}, {"seed": -1}])
def test_arguments_out_of_range(pipeline, bad: dict) -> None:
    with pytest.raises(DataError):
        pipeline.sample("dark", progress=False, **bad)


def test_ids_without_a_group_are_refused(pipeline) -> None:
    for ids in (torch.tensor([-1]), torch.tensor([6])):
        with pytest.raises(GroupError):
            pipeline.latents(ids, torch.tensor([0]))


# --- ways to sample, identities, variations -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gaussian", "screen", "reject", "evolve"])
def test_every_method_fills_the_quota_with_confirmed_faces(pipeline, method: str) -> None:
    options = {"method": method, "verify": True, "strategy": SEARCH if method == "evolve" else None, "progress": False}
    sample = pipeline.sample({"light-male": 1, "dark": 3}, n=16, seed=3, **options)
    assert not sample.short
    assert sample.verified
    assert sample.method == method
    assert pipeline.groups.count(sample.group_ids).tolist() == [0, 4, 0, 0, 6, 6]
    assert torch.equal(pipeline.assign(sample.images), sample.group_ids)
    assert bool((sample.synthesized >= pipeline.groups.count(sample.group_ids)).all())
    again = pipeline.generator.synthesize(ffs.to_layers(pipeline.generator, sample.latents))
    torch.testing.assert_close(again, sample.images, atol=1e-4, rtol=0)
    repeat = pipeline.sample({"light-male": 1, "dark": 3}, n=16, seed=3, **options)
    torch.testing.assert_close(repeat.latents, sample.latents)


SEARCH = ffs.genetic(population=24)


@pytest.mark.parametrize("method", ["screen", "reject"])
def test_natural_draws_can_be_made_again_by_their_index(pipeline, method: str) -> None:
    sample = pipeline.sample("balanced", n=12, seed=5, method=method, progress=False)
    z = ffs.normals(5, sample.index, pipeline.generator.z_dim, stream=ffs.screening.NATURAL_STREAM)
    torch.testing.assert_close(pipeline.generator.map(z)[:, 0], sample.latents)
    if method == "screen":
        guessed = pipeline.groups.assign(pipeline.screen.probabilities(sample.latents), pipeline.min_confidence)
        assert torch.equal(guessed, sample.group_ids)
        assert not sample.verified
        assert torch.equal(sample.synthesized, pipeline.groups.count(sample.group_ids))


def test_a_search_keeps_its_lineage_and_can_be_short(pipeline) -> None:
    sample = pipeline.sample(
        ["light-female", "dark-male"], n=60, seed=1, method="evolve", strategy=SEARCH, max_syntheses=96, progress=False
    )
    assert sample.archive is not None
    assert len(sample.archive) == len(sample)
    assert int(sample.synthesized.sum()) <= 96
    assert set(sample.short) <= {0, 5}
    assert sum(sample.short.values()) == 60 - len(sample)


PARTS = ("generator", "labeller", "groups", "bank", "subspace", "gaussians")


@pytest.fixture(scope="module")
def with_embedder(world, pipeline) -> ffs.Pipeline:
    return ffs.Pipeline(*(getattr(pipeline, k) for k in PARTS), embedder=world.embedder)


@pytest.mark.parametrize("method", ["gaussian", "screen", "evolve"])
def test_new_identities_only(with_embedder, method: str) -> None:
    threshold = 0.75
    options = {"method": method, "verify": True, "threshold": threshold, "progress": False}
    sample = with_embedder.sample("dark-male", n=20, seed=2, **options)
    assert not sample.short
    cosine = with_embedder.embedder(sample.images) @ with_embedder.embedder(sample.images).T
    assert float(cosine.fill_diagonal_(-1).max()) < threshold


def test_unique_keeps_the_first_of_each_identity(with_embedder) -> None:
    sample = with_embedder.sample("dark", n=30, seed=2, progress=False)
    twice = sample[torch.arange(30).repeat(2)]
    kept = with_embedder.unique(twice, threshold=0.999)
    assert torch.equal(kept.index, sample.index)
    strict = with_embedder.unique(sample)
    assert 0 < len(strict) <= len(with_embedder.unique(sample, 0.9)) <= 30


def test_the_threshold_holds_its_false_match_rate(world, with_embedder) -> None:
    threshold = with_embedder.threshold(1e-3, n=1000)
    other = ffs.Pipeline(*(getattr(with_embedder, k) for k in PARTS), embedder=world.embedder)
    assert other.threshold(1e-3, n=1000) == threshold, "the seed and nothing else decides"
    z = ffs.draw_latents(world.generator, 77, 0, 600)
    embeddings = ffs.embed(world.embedder, world.generator.synthesize(world.generator.map(z)), progress=False)
    scores = ffs.impostor_scores(embeddings).scores
    assert 1e-4 < float((scores >= float(threshold)).float().mean()) < 4e-3


def test_variations_of_a_sample(world, with_embedder) -> None:
    sample = with_embedder.sample("dark-male", n=2, seed=0, progress=False)
    axes = [ffs.Axis(world.directions["yaw"], (-1.0, 1.0))]
    varied = with_embedder.vary(sample, axes, threshold=0.5)
    assert varied.latents.shape == (2, 2, 100)
    assert varied.images.shape[-3:] == (3, 64, 64)


def test_a_bank_with_detections_is_the_pipeline_s_if_asked_for(world) -> None:
    pipeline = ffs.Pipeline.fit(
        world.generator,
        world.labeller,
        attributes="gender",
        n=200,
        detector=lambda images: images.mean((1, 2, 3)) > -0.5,
        detect=True,
        progress=False,
    )
    assert pipeline.bank.found is not None
    assert ffs.screening.FACE in pipeline.screen.attributes


def test_rejection_does_not_meet_the_bank_s_latents(pipeline) -> None:
    sample = pipeline.sample("dark", n=6, method="reject", progress=False)
    assert float(torch.cdist(sample.latents, pipeline.bank.latents).min()) > 1.0


def test_a_corrected_quota_is_a_quota(pipeline) -> None:
    quota = torch.tensor([0, 3, 0, 0, 2, 1])
    shares = quota.double() / 6
    plan = ffs.CorrectedQuota(pipeline.groups, quota, *[shares] * 5, left=0.0, reachable=True)
    sample = pipeline.sample(plan, seed=1, progress=False)
    assert torch.equal(pipeline.groups.count(sample.group_ids), quota)
    with pytest.raises(GroupError, match=r"each once(.|\n)*with n=6"):
        pipeline.sample(quota.tolist(), n=6)
    with pytest.raises(GroupError, match="each once"):
        pipeline.sample(quota, n=6)


def test_rows_of_a_sample(pipeline) -> None:
    sample = pipeline.sample("balanced", n=12, seed=1, progress=False)
    assert torch.equal(sample["dark-female"].group_ids, torch.tensor([4, 4]))
    assert torch.equal(sample[-1].images, sample.images[-1:])
    assert sum(len(face) for face in sample) == 12
    with pytest.raises(IndexError, match="sample of 12"):
        sample[12]


def test_a_set_is_not_mixed_with_an_older_one(pipeline, tmp_path) -> None:
    pipeline.sample("balanced", n=12, seed=1, progress=False).save(tmp_path / "set")
    other = pipeline.sample("dark", n=4, seed=2, progress=False)
    with pytest.raises(DataError, match="holds a set already"):
        other.save(tmp_path / "set")
    other.save(tmp_path / "set", overwrite=True)
    assert len(list((tmp_path / "set").rglob("*.png"))) == 4


@pytest.mark.parametrize("wrong", [{"detector": "mtcnn"}, {"embedder": "x"}, {"embedder": len}])
def test_models_are_checked_when_the_pipeline_is_made(pipeline, wrong: dict) -> None:
    with pytest.raises(DataError, match="this is no"):
        ffs.Pipeline(*(getattr(pipeline, k) for k in PARTS), **wrong)
    with pytest.raises(DataError, match="this is no generator"):
        ffs.Pipeline("world", *(getattr(pipeline, k) for k in PARTS[1:]))


def test_requests_that_do_not_fit_together(pipeline, with_embedder) -> None:
    with pytest.raises(DataError, match="unknown method"):
        pipeline.sample("dark", method="magic")
    with pytest.raises(DataError, match="for evolution"):
        pipeline.sample("dark", strategy=SEARCH)
    for threshold in (1.2, "0.8"):
        with pytest.raises(DataError, match="it is a cosine"):
            with_embedder.sample("dark", verify=True, threshold=threshold, progress=False)
    with pytest.raises(DataError, match="while labelling"):
        ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, detect=True)
    with pytest.raises(DataError, match="is a probability"):
        pipeline.bank.group_ids(pipeline.groups, 60)
    with pytest.raises(DataError, match="the bank's truncation"):
        pipeline.sample("dark", method="screen", truncation_psi=0.7)
    with pytest.raises(DataError, match="verify=True"):
        with_embedder.sample("dark", threshold=0.7)
    with pytest.raises(DataError, match="compared by an embedder"):
        pipeline.sample("dark", verify=True, threshold=0.7)
    with pytest.raises(DataError, match="compared by an embedder"):
        pipeline.unique(pipeline.sample("dark", n=2, progress=False), 0.7)


# --- accept / reject ----------------------------------------------------------------------------------------------


def _coin(side: int = 8) -> ffs.models.protocols.WrappedGenerator:
    """Images whose brightness is the latent: groups are known exactly."""
    return ffs.wrap_generator(
        synthesize=lambda w: w[:, 0, :1, None, None].expand(-1, 3, side, side), z_dim=2, resolution=side
    )


def _by_sign(images: torch.Tensor) -> torch.Tensor:
    value = images.mean((1, 2, 3))
    return torch.where(value.abs() < 0.1, -1, (value > 0).long())


def test_reject_keeps_the_first_of_each_group_in_order() -> None:
    generator = _coin()
    found = ffs.reject(generator, _by_sign, torch.tensor([5, 7]), seed=3, batch_size=4, progress=False)
    z = ffs.draw_latents(generator, 3, 0, 200)
    ids = _by_sign(generator.synthesize(generator.map(z)))
    for g, want in ((0, 5), (1, 7)):
        assert found.index[found.group_ids == g].tolist() == torch.nonzero(ids == g)[:want, 0].tolist()
    torch.testing.assert_close(found.latents, z[found.index])
    assert found.accepted.tolist() == [5, 7]
    assert found.short == {}


def test_reject_does_not_depend_on_the_batch_size() -> None:
    a, b = (ffs.reject(_coin(), _by_sign, torch.tensor([9, 2]), seed=1, batch_size=k, progress=False) for k in (3, 50))
    assert torch.equal(a.latents, b.latents)
    assert torch.equal(a.index, b.index)


def test_aimed_proposals_count_their_own_group() -> None:
    def propose(ids: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        hit = (index % 2 == 0).float() * 2 - 1  # every second proposal is right
        return torch.stack(((ids.float() * 2 - 1) * hit, index.float()), dim=1)

    found = ffs.reject(_coin(), _by_sign, torch.tensor([4, 10]), propose=propose, batch_size=5, progress=False)
    assert found.accepted.tolist() == [4, 10]
    for g, want in ((0, 4), (1, 10)):
        assert found.index[found.group_ids == g].tolist() == [2 * i for i in range(want)]
    assert bool((found.synthesized >= 2 * found.accepted - 1).all())


def test_reject_never_exceeds_its_budget() -> None:
    """Six short groups, but two images to make."""
    found = ffs.reject(
        _coin(),
        lambda x: torch.full((len(x),), -1),
        torch.ones(6, dtype=torch.int64),
        propose=lambda ids, index: torch.zeros(len(ids), 2),
        max_syntheses=2,
        progress=False,
    )
    assert int(found.synthesized.sum()) == 2
    assert len(found.images) == 0
    assert len(found.short) == 6
    with pytest.raises(GroupError, match="unknown group"):
        ffs.reject(_coin(), lambda x: torch.full((len(x),), 9), torch.tensor([1, 1]), progress=False)
    with pytest.raises(DataError, match="no images to make"):
        ffs.reject(_coin(), _by_sign, torch.tensor([1]), max_syntheses=0)


def test_reject_stops_at_its_budget() -> None:
    found = ffs.reject(
        _coin(), lambda x: torch.zeros(len(x)).long(), torch.tensor([2, 2]), max_syntheses=30, progress=False
    )
    assert found.short == {1: 2}
    assert found.synthesized.tolist() == [30, 30]


@pytest.mark.parametrize("quota", [[0, 0], [-1, 2], []])
def test_reject_needs_something_to_fill(quota: list[int]) -> None:
    with pytest.raises(DataError, match="nothing to fill"):
        ffs.reject(_coin(), _by_sign, torch.tensor(quota))
    with pytest.raises(GroupError, match="does not fit"):
        ffs.reject(_coin(), _by_sign, torch.tensor([1, 1, 1]), groups=Groups({"a": ["x", "y"]}))


# --- reports, figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_wilson_intervals_match_scipy(k: int, n: int) -> None:
    low, high = ffs.wilson_interval(torch.tensor(k), n)
    oracle = binomtest(k, n).proportion_ci(method="wilson")
    assert float(low) == pytest.approx(oracle.low, abs=1e-9)
    assert float(high) == pytest.approx(oracle.high, abs=1e-9)


def test_wilson_of_nothing_is_everything() -> None:
    low, high = ffs.wilson_interval(torch.tensor(0), 0)
    assert (float(low), float(high)) == (0.0, 1.0)


def test_group_shares() -> None:
    groups = Groups({"a": ["x", "y"]})
    shares = ffs.group_shares(groups, torch.tensor([0, 0, 0, 1, -1]))
    assert shares.shares.tolist() == pytest.approx([0.6, 0.2])
    assert shares.imbalance == pytest.approx(3)
    assert "unsure" in str(shares)
    assert shares.to_dict()["x"]["count"] == 3
    assert ffs.group_shares(groups, torch.tensor([0])).imbalance == float("inf")
    with pytest.raises(ShapeError):
        ffs.group_shares(groups, torch.tensor([0.5]))


def test_figures_draw(tmp_path) -> None:
    groups = Groups({"tone": ["light", "dark"], "gender": ["female", "male"]})
    ids = torch.tensor([0, 1, 2, 3, 3, -1])
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    shares = ffs.group_shares(groups, ids)
    figures = [
        plotting.face_grid(images, ids, groups, columns=3, title="t"),
        plotting.share_bars({"natural": shares, "balanced": shares}),
        plotting.rate_bars({"a": [1, 2, float("nan"), float("inf")]}, groups, ylabel="y", log=True),
    ]
    for i, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{i}.png")
        assert (tmp_path / f"{i}.png").stat().st_size > 1000
    with pytest.raises(GroupError, match="no image"):
        plotting.face_grid(images, ids * 0 - 1, groups)
    with pytest.raises(DataError, match="one group id per image"):
        plotting.face_grid(images, ids[:2], groups)
