"""Rule 2 of the design: tensor functions stay on their device, mix none, and do not make the host wait.

Fake CUDA tensors prove it without a GPU: a device mismatch raises, and so does everything that needs a value on the
host (`.item()`, `.tolist()`, `bool(tensor)`, boolean indexing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fairface_synth as ffs
from fairface_synth.divergence import js_divergence, kl_divergence
from fairface_synth.latents import philox
from fairface_synth.models.demo import CompactEmbedder, CompactLabeller, CompactNet, DCGANGenerator
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator
from fairface_synth.shrinkage import shrink
from fairface_synth.subspaces import Subspace

GROUPS = ffs.Groups({"gender": ["female", "male"], "tone": ["light", "dark"]})
N, D, M, G = 6, 16, 3, len(GROUPS)
SCHEMA = ffs.AttributeSchema(("a", "b", "c"))

# These wait for the device on purpose, once, because their result depends on values:
SYNCS_ON_PURPOSE = {
    "reject": "fills a quota: it has to count",
    "screen": "fills a quota: it has to count; what it computes is the case Screen.probabilities",
    "fit_screen": "input is checked once; L-BFGS looks at its loss",
    "evolve": "counts successes once a generation; strategies and fitness are cases below",
    "explore": "pyribs is numpy",
    "cvt_centroids": "a one-off k-means",
    "unique": "what is still in decides the next block's shape, once or more a block",
    "components": "as unique",
    "threshold_at_fmr": "makes numbers to print",
    "threshold_among": "makes numbers to print",
    "fingerprint": "makes text",
    "fingerprint_generator": "makes text",
    "fingerprint_model": "makes text",
    "export": "writes files; what it draws is test_streaming.py's case, too",
    "leakage_report": "makes numbers to print",
    "fit_direction": "scikit-learn, on the host",
    "Confusion": "input is checked once",
    "corrected_quota": "a quota lives on the host; scipy's non-negative least squares",
    "fit_subspace": "without groups=, the number of hard label values is looked up; input is checked once",
    "fit_gaussians": "input is checked once; hard ids are counted once per chunk",
    "label_latents": "checks that a labeller's rows are probabilities, once per batch",
    "group_shares": "makes numbers to print",
    "save_images": "writes files",
    "FaceDetector": "how many candidates there are decides the shapes of MTCNN's later stages",
    "Pipeline.sample": "turns a quota, which lives on the host, into group ids; its steps are cases below",
    "Artifact.save": "writes a file",
    "score_table": "makes a table, which lives on the host",
    "train_mac": "input is checked once; the best epoch is chosen, and figures are made, on the host",
    "annotate": "writes files",
    "as_annotations": "reads files",
    "count_attributes": "input is checked once a batch; AttributeCounts.update is a case below",
    "kl_table": "makes numbers to print",
    "kl_matrix": "makes numbers to print",
    "consistency": "makes numbers to print",
    "fit_cells": "scikit-learn, on the host",
    "stream": "turns a quota, which lives on the host, into a cycle; test_streaming.py checks its batches this way",
    "compare_runs": "makes numbers to print",
    "verify": "makes numbers to print",
    "fairness": "makes numbers to print",
}


def _cuda(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda")


def _ids(high: int = G) -> Tensor:
    return torch.zeros(N, dtype=torch.int64, device="cuda")


def _gaussians(covariance: str = "full", components: int = 1) -> ffs.GroupGaussians:
    diagonal = covariance == "diagonal"
    lead = 1 if covariance == "tied" else G
    return ffs.GroupGaussians(
        weights=_cuda(G, components),
        component_means=_cuda(G, components, D),
        factors=_cuda(*((G, components, D) if diagonal else (lead, components, D, D))),
        counts=_cuda(G),
        shrinkage=_cuda(lead, components),
        covariance=covariance,
        groups=GROUPS,
    )


def _subspace() -> Subspace:
    return Subspace(_cuda(D), _cuda(D, M), _cuda(D, M), _cuda(D, M), _cuda(D, D), "lda", shape=(D,))


def _generator() -> DCGANGenerator:
    with torch.device("cuda"):
        return DCGANGenerator(D, (8, 8, 8, 8))


def _labeller() -> CompactLabeller:
    return CompactLabeller(_net({"gender": 2, "tone": 2}), GROUPS.attributes)


def _net(heads: dict[str, int]) -> CompactNet:
    with torch.device("cuda"):
        return CompactNet(heads, width=4).eval()


def _probabilities() -> dict[str, Tensor]:
    return {a: _cuda(N, 2) for a in GROUPS.attributes}


def _moments() -> ffs.GroupMoments:
    return ffs.GroupMoments.empty(G, _cuda(D)).update(_cuda(N, D), _ids())


def _pipeline() -> ffs.Pipeline:
    bank = ffs.LatentBank(_cuda(N, D), _probabilities(), GROUPS.attributes, _ids())
    subspace = _subspace()
    gaussians = _gaussians()
    gaussians = ffs.GroupGaussians(
        gaussians.weights,
        _cuda(G, 1, M),
        _cuda(G, 1, M, M),
        gaussians.counts,
        gaussians.shrinkage,
        groups=GROUPS,
    )
    return ffs.Pipeline(_generator(), _labeller(), GROUPS, bank, subspace, gaussians)


CASES: dict[str, Callable[[], Any]] = {
    "philox": lambda: philox((_ids(), _ids(), _ids(), _ids()), (1, 2)),
    "normals": lambda: ffs.normals(3, _ids(), D, stream=_ids()),
    "draw_latents": lambda: ffs.draw_latents(_generator(), 0, 5, N),
    "truncate": lambda: ffs.truncate(_cuda(N, 2, D), _cuda(D), 0.7, 1),
    "to_layers": lambda: ffs.to_layers(_generator(), _cuda(N, D)),
    "Groups.assign": lambda: GROUPS.assign(_probabilities(), 0.6),
    "Groups.joint": lambda: GROUPS.joint(_probabilities()),
    "Groups.marginal": lambda: GROUPS.marginal(_cuda(N, G), "tone"),
    "Groups.value_ids": lambda: GROUPS.value_ids(_ids(), "tone"),
    "Groups.count": lambda: GROUPS.count(_ids()),
    "fit_subspace(lda)": lambda: ffs.fit_subspace(_cuda(N, D), _cuda(N, G)).components,
    "fit_subspace(hard)": lambda: ffs.fit_subspace(_cuda(N, D), _ids(), groups=GROUPS).components,
    "fit_subspace(normals)": lambda: ffs.fit_subspace(_cuda(N, D), _probabilities(), "normals").components,
    "fit_subspace(pca)": lambda: ffs.fit_subspace(_cuda(N, 2, D), None, "pca", dim=2).components,
    "project": lambda: ffs.project(_subspace(), _cuda(2, N, D)),
    "lift(mean)": lambda: ffs.lift(_subspace(), _cuda(2, N, M)),
    "lift(resample)": lambda: ffs.lift(_subspace(), _cuda(N, M), "resample"),
    "lift(given)": lambda: ffs.lift(_subspace(), _cuda(N, M), _cuda(N, D)),
    "fit_gaussians(hard)": lambda: ffs.fit_gaussians(_cuda(N, D), _ids(), num_groups=G).factors,
    "fit_gaussians(soft)": lambda: ffs.fit_gaussians(_cuda(N, D), _cuda(N, G), _cuda(N), "ledoit_wolf").factors,
    "fit_gaussians(mixture)": lambda: (
        ffs.fit_gaussians(_cuda(N, D), _cuda(N, G), components=2, iterations=2).component_means
    ),
    "GroupMoments.merge": lambda: _moments().merge(_moments()).second,
    "GroupMoments.compute": lambda: _moments().compute("oas").factors,
    "GroupGaussians.covariances": lambda: _gaussians().covariances,
    "sample_gaussians(full)": lambda: ffs.sample_gaussians(_gaussians(), _ids()),
    "sample_gaussians(tied)": lambda: ffs.sample_gaussians(_gaussians("tied"), _ids()),
    "sample_gaussians(diagonal)": lambda: ffs.sample_gaussians(_gaussians("diagonal"), _ids()),
    "sample_gaussians(mixture)": lambda: ffs.sample_gaussians(_gaussians(components=2), _ids()),
    "log_prob(full)": lambda: ffs.log_prob(_gaussians(), _cuda(2, N, D)),
    "log_prob(diagonal)": lambda: ffs.log_prob(_gaussians("diagonal"), _cuda(N, D)),
    "compose": lambda: ffs.compose(_gaussians(), ids=[3]).component_means,
    "shrink": lambda: shrink(_cuda(G, D, D), _cuda(G)),
    "wilson_interval": lambda: ffs.wilson_interval(_ids(), 10),
    "rgb_to_lab": lambda: ffs.rgb_to_lab(_cuda(N, 3, 8, 8)),
    "ita": lambda: ffs.ita_band(ffs.ita(_cuda(N), _cuda(N))),
    "to_uint8": lambda: ffs.from_uint8(ffs.to_uint8(_cuda(N, 3, 8, 8))),
    "align_faces": lambda: ffs.align_faces(_cuda(N, 3, 64, 64), _cuda(N, 5, 2)),
    "demo generator": lambda: _generator().synthesize(_generator().map(_cuda(N, D), truncation_psi=0.5)),
    "demo labeller": lambda: tuple(_labeller()(_cuda(N, 3, 48, 48)).values()),
    "demo embedder": lambda: CompactEmbedder(_net({"embedding": 8}))(_cuda(N, 3, 64, 64)),
    "wrap_embedder": lambda: ffs.wrap_embedder(lambda x: x.flatten(1), 3 * 8 * 8)(_cuda(N, 3, 8, 8)),
    "wrap_generator": lambda: _wrapped().synthesize(_wrapped().map(_cuda(N, D), truncation_psi=0.5)),
    "Pipeline.latents": lambda: _pipeline().latents(_ids(), _ids(), 1, 0.7),
    "Pipeline.assign": lambda: _pipeline().assign(_cuda(N, 3, 64, 64)),
}


CASES |= {
    "Screen.probabilities": lambda: tuple(_screen().probabilities(_cuda(N, D)).values()),
    "face_fitness(z)": lambda: tuple(_face_fitness("z")(_cuda(N, D), _ids(), _archive())),
    "face_fitness(w)": lambda: tuple(_face_fitness("w")(_cuda(N, D), _ids(), _archive())),
    "face_fitness(w+)": lambda: tuple(_face_fitness("w+")(_cuda(N, 1, D), _ids(), None)),
    "FaceFitness.prior": lambda: _face_fitness("z").prior(1)(_ids(), _ids()),
    "FaceFitness.distance": lambda: _face_fitness("w").distance(_cuda(N, D)),
    "kid": lambda: ffs.kid(_cuda(N, D), _cuda(N, D), subsets=2, subset_size=4).low,
    "prdc": lambda: ffs.prdc(_cuda(N, D), _cuda(N, D), k=1, resamples=2).coverage,
    "fit_confusion": lambda: ffs.fit_confusion(GROUPS, _ids(), _ids()).rates(),
    "Confusion.draw": lambda: ffs.fit_confusion(GROUPS, _ids(), _ids(), joint=True).draw(3),
    "true_shares(em)": lambda: ffs.true_shares(_confusion(), _ids()[:G], draws=3).low,
    "branching_walk": lambda: _generation(ffs.branching_walk(population=N, lineages=2, crossover=0.5, pull=0.1)),
    "branching_walk(w+)": lambda: _generation(ffs.branching_walk("w+", population=N)),
    "genetic": lambda: _generation(ffs.genetic(N, crossover="spherical")),
    "genetic(gaussian)": lambda: _generation(ffs.genetic(N, mutation="gaussian")),
    "snes": lambda: _generation(ffs.snes(N)),
    "cem": lambda: _generation(ffs.cem(N)),
    "map_elites": lambda: _generation(ffs.map_elites(N, cells=(3, 3), low=(-3, -3), high=(3, 3))),
    "map_elites(centroids)": lambda: _generation(ffs.map_elites(N, centroids=_cuda(9, 2), low=(-3, -3), high=(3, 3))),
    "embed": lambda: ffs.embed(
        CompactEmbedder(_net({"embedding": 8})), _cuda(N, 3, 64, 64), batch_size=4, progress=False
    ),
    "novelty": lambda: ffs.novelty(_cuda(N, D), _cuda(N + 1, D)),
    "novelty(k)": lambda: ffs.novelty(_cuda(N, D), _cuda(N + 1, D), k=2, block=4),
    "impostor_scores": lambda: ffs.impostor_scores(_cuda(N, D)),
    "impostor_scores(sampled)": lambda: ffs.impostor_scores(_cuda(N, D), n_pairs=5),
    "edit": lambda: ffs.edit(_cuda(N, 3, D), _direction(), _cuda(N)),
    "edit(to)": lambda: ffs.edit(_cuda(N, 3, D), _direction(3, D), to=_cuda(N), units="class"),
    "neutralise": lambda: ffs.neutralise(_cuda(N, D), [_direction(), _direction()]),
    "signed_distance": lambda: ffs.signed_distance(_cuda(2, N, D), _direction()),
    "published_axes": lambda: ffs.vary(_cuda(N, D), ffs.published_axes(_published())).latents,
    "vary": lambda: ffs.vary(_cuda(N, 3, D), [ffs.Axis.between(_direction(), 5)], neutral=_direction()).latents,
    "true_shares(bayes)": lambda: ffs.true_shares(_confusion(), _ids()[:G], "bayes", draws=3).shares,
}


CASES |= {
    "score": lambda: ffs.score(_discriminator(), _cuda(N, 3, 24, 24), batch_size=4),
    "score(raw)": lambda: ffs.score(lambda x: x.mean((1, 2, 3)), _cuda(N, 3, 24, 24), "uint8_raw"),
    "score(group)": lambda: ffs.score(_discriminator(), _cuda(N, 3, 16, 16), group_size=2),
    "covariates": lambda: tuple(ffs.covariates(_cuda(N, 3, 8, 8), _cuda(N, 8, 8) > 0).values()),
    "face_regions": lambda: tuple(ffs.face_regions(_cuda(N, 5, 2), 8).values()),
    "face_regions(68)": lambda: tuple(ffs.face_regions(_cuda(N, 68, 2), 8).values()),
    "shuffle_pixels": lambda: ffs.shuffle_pixels(_cuda(N, 3, 8, 8), 1),
    "sweep": lambda: _sweep("hue").scores,
    "sweep(raw)": lambda: _sweep("red_gain", [0.5, 1.0], input_range="uint8_raw").derivative,
    "MAC": lambda: _mac()(_cuda(N, D)),
    "MAC.predict": lambda: _mac().predict(_cuda(N, D), passes=3),
    "MAC.thresholds": lambda: _mac().thresholds,
    "Annotations.labels": lambda: ffs.Annotations(SCHEMA, _cuda(N, 3), _cuda(N, 3)).labels(min_reliability=0.2),
    "Annotations.from_labels": lambda: (
        ffs.Annotations.from_labels(_cuda(N, 3).sign().to(torch.int8), SCHEMA).probabilities
    ),
    "AttributeCounts.update": lambda: _counts().positives,
    "attribute_rates": lambda: _counts().compute().low,
    "Cells.assign": lambda: ffs.Cells(("a", "b", "c"), torch.rand(3, 3, device="cuda")).assign(
        torch.zeros(N, 3, dtype=torch.int8, device="cuda"), torch.rand(N, 3, device="cuda")
    ),
    "kl_divergence": lambda: kl_divergence(_cuda(N, 3).softmax(1), _cuda(N, 3).softmax(1)),
    "js_divergence": lambda: js_divergence(_cuda(N, 3).softmax(1), _cuda(N, 3).softmax(1)),
    "group_gap_loss": lambda: ffs.group_gap_loss(_cuda(N, D), _ids(), _ids()),
    "group_gap_loss(range)": lambda: ffs.group_gap_loss(_cuda(N, D), _ids(), _ids(), spread="range", num_groups=G),
    "score_alignment_loss": lambda: ffs.score_alignment_loss(_cuda(N, D), _ids(), _ids()),
    "score_alignment_loss(quantile)": lambda: ffs.score_alignment_loss(_cuda(N, D), _ids(), _ids(), kind="quantile"),
    "consistency_loss": lambda: ffs.consistency_loss(_cuda(N, D), _ids(), _ids(), num_groups=G),
    "worst_group_loss": lambda: ffs.worst_group_loss(_cuda(N), _ids(), ffs.group_dro(G, device="cuda"))[0],
    "group_dro": lambda: ffs.group_dro(G, adjustment=1.0, group_counts=_cuda(G)).weights,
    "to_recognition_format": lambda: ffs.to_recognition_format(_cuda(N, 3, 64, 64)),
    "augment": lambda: ffs.augment(_cuda(N, 3, 8, 8), _ids()),
    "cross_scores": lambda: ffs.cross_scores(_cuda(N, D), _ids(), _ids(), groups=GROUPS, bins=16, block=4).counts,
    "ScoreHistogram.update": lambda: (
        ffs.ScoreHistogram.empty(GROUPS, 16, "cuda").update(_cuda(N), _cuda(N) > 0, _ids()).counts
    ),
}


def _generation(strategy: ffs.Strategy) -> Any:
    proposal, state = strategy.ask(strategy.init(_cuda(G, N, D), 0))
    yes = torch.ones(G, N, dtype=torch.bool, device="cuda")
    return tuple(strategy.tell(state, proposal, ffs.Evaluation(_cuda(G, N), yes, yes, yes, _cuda(G, N, 2))))


def _direction(*shape: int) -> ffs.Direction:
    return ffs.Direction(_cuda(*(shape or (D,))), *torch.ones(3, device="cuda").unbind(), name="x")


def _published() -> dict[str, ffs.Direction]:
    names = ("smile", "scream", "disgust", "squint", "surprise", "pose", "illumination")
    return dict.fromkeys(names, _direction())


def _screen() -> ffs.Screen:
    shapes = {"in": (2, D, 5), "mid": (2, 5, 5), "out": (2, 5, 4)}
    weights = {k: _cuda(*s) for k, s in shapes.items()} | {f"{k}_bias": _cuda(2, 1, s[2]) for k, s in shapes.items()}
    weights |= {f"scale.{a}": _cuda() for a in GROUPS.attributes} | {f"bias.{a}": _cuda(2) for a in GROUPS.attributes}
    return ffs.Screen(_cuda(D), _cuda(D), weights, GROUPS.attributes, {}, {}, (D,))


def _confusion() -> ffs.Confusion:
    return ffs.fit_confusion(GROUPS, _ids(), _ids())


def _archive() -> ffs.Archive:
    n = _ids()
    return ffs.Archive(_cuda(N, D), n, n, n, n, n, _cuda(N), _cuda(N), _cuda(N), _cuda(N, 8), n, n, {})


def _face_fitness(space: Any) -> ffs.FaceFitness:
    found = ffs.Detections(_cuda(N), _cuda(N, 4), _cuda(N, 5, 2))
    return ffs.face_fitness(
        _generator(),
        _labeller(),
        GROUPS,
        ["female", {"dark": 1.0}],
        space=space,
        terms=dict.fromkeys((ffs.log_target, ffs.typicality, ffs.identity_novelty, ffs.face_quality), 1.0),
        embedder=CompactEmbedder(_net({"embedding": 8})),
        detector=lambda images: found,
        measures=["tone", "yaw"],
    )


def _discriminator() -> StyleGAN2Discriminator:
    config = {"c_dim": 0, "img_resolution": 16, "img_channels": 3, "channel_base": 64}
    with torch.device("cuda"):
        return StyleGAN2Discriminator(config)


def _sweep(*args: Any, **options: Any) -> ffs.Sweep:
    images = _cuda(N, 3, 24, 24)
    return ffs.sweep(_discriminator(), images, *args, group_ids=_ids(), groups=GROUPS, progress=False, **options)


def _mac() -> ffs.MAC:
    weights = {"out.weight": _cuda(3, 4), "out.bias": _cuda(3)}
    for name, width, shape in (("trunk0", D, (8,)), ("trunk1", 8, (8,)), ("branch", 8, (3, 4))):
        weights |= {f"{name}.weight": _cuda(width, *shape)}
        weights |= {f"{name}.{k}": _cuda(*shape) for k in ("bias", "scale", "shift")}
    return ffs.MAC(_cuda(D), _cuda(D), weights, _cuda(3), _cuda(3), SCHEMA.names, {}, "", 0.5, {}, {}, {})


def _counts() -> ffs.AttributeCounts:
    labels, p = torch.zeros(N, 3, dtype=torch.int8, device="cuda"), torch.rand(N, 3, device="cuda")
    empty = ffs.AttributeCounts.empty(SCHEMA.names, bins=4, cells=3, device="cuda")
    return empty.update(labels, _ids(), unit=_ids(), probabilities=p, cells=_ids())


def _wrapped() -> Any:
    return ffs.wrap_generator(
        map=lambda z: z * 2,
        synthesize=lambda w: w[:, 0, :3, None, None].expand(-1, -1, 8, 8),
        z_dim=D,
        resolution=8,
        device="cuda",
    )


@pytest.mark.parametrize("name", CASES)
def test_stays_on_the_device_without_waiting(name: str) -> None:
    with FakeTensorMode():
        result = CASES[name]()
    tensors = result if isinstance(result, tuple) else (result,)
    assert tensors
    for tensor in tensors:
        assert tensor.device.type == "cuda", f"{name} moved its result to {tensor.device}"


def test_the_check_itself_catches_what_it_should() -> None:
    for offence in (
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x + torch.zeros(N, D),
        lambda x: x.tolist(),
    ):
        with pytest.raises(Exception), FakeTensorMode():  # noqa: B017, PT011
            offence(_cuda(N, D))


def test_every_public_tensor_function_is_listed() -> None:
    """A new public function has to be added to the cases, or to the list of those that wait on purpose."""
    without_tensors = {
        "parse",
        "balanced_quota",
        "markdown_table",
        "read_state_dict",
        "save_generator",
        "wrap_labeller",
        "expected_coverage",
        "expected_value",
    }
    known = {name.split("(")[0] for name in (*CASES, *SYNCS_ON_PURPOSE)} | without_tensors
    known |= {"from_uint8", "ita_band"}  # inside the cases "to_uint8" and "ita"
    known |= {"demo_axes"}  # axes only
    known |= {"audit", "group_table", "correlations", "ols", "anova", "top_bottom", "multinomial_logit"}  # tables only
    known |= {"bayes_linreg", "tree_report", "read_table", "write_table", "to_frame"}
    known |= {"product_cells"}  # names only
    known |= {"read_faces", "read_maad_labels", "read_pairs"}  # files only
    known |= {"plan_dataset", "open_dataset", "verify_dataset", "regenerate"}  # files, and numbers of images
    known |= {"log_target", "typicality", "identity_novelty", "face_quality", "yaw"}  # inside "face_fitness"
    functions = {
        name for name in ffs.__all__ if name.islower() and callable(getattr(ffs, name)) and not name.startswith("load_")
    }
    missing = {f for f in functions if f not in known}
    assert not missing, f"not covered by the device contract: {sorted(missing)}"
