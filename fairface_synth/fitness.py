"""The fitness of faces for `evolve`: synthesise, label, detect, embed; then a weighted sum of terms.

A term is a function of `Faces` → [n]: write your own beside those here. A search exploits whatever labels it: score
what it found with another network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, GroupError
from .evolution import Archive, Prior, Scores
from .gaussian_fitting import fit_gaussians
from .groups import Groups
from .identities import novelty
from .images import check_range
from .latents import check_attributes, check_models, normals, to_layers
from .models.facenet import Detections, faces_found
from .models.protocols import Embedder, Generator, Labeller

Space = Literal["z", "w", "w+"]
Detect = Literal["all", "successes"]
Spec = str | int | Iterable[str | int] | Mapping[str, float]

_STREAM = 1 << 20  # keeps the search's draws apart from the bank's (stream 0) and the Pipeline's (1 … G)
_TINY = 1e-30


class Faces(NamedTuple):
    """n candidates as terms and measures see them.

    Attributes:
        latents: [n, *shape]; w: [n, num_ws, w_dim]; images: [n, 3, H, W].
        rows: the target of each, int64 [n].
        weights: [n, n_groups], the target: 1 for each member of a union, or a distribution where `soft` [n] is True.
        soft: bool [n].
        probabilities: {attribute: [n, k]}.
        joint: P(group) [n, n_groups], the attributes taken as independent given the image.
        found: bool [n]; detection: `Detections` of all n, or None.
        embeddings: unit rows [n, e]; e is 0 without an embedder.
        distance: [n] from the prior, and `spread` [], the standard deviation of natural draws' distance.
        known: what was found so far, or None.
    """

    latents: Tensor
    w: Tensor
    images: Tensor
    rows: Tensor
    weights: Tensor
    soft: Tensor
    probabilities: Mapping[str, Tensor]
    joint: Tensor
    found: Tensor
    detection: Detections | None
    embeddings: Tensor
    distance: Tensor
    spread: Tensor
    known: Archive | None


Term = Callable[[Faces], Tensor]


def log_target(faces: Faces) -> Tensor:
    """log P(target) [n] ≤ 0 in nats: log Σ p over a union of groups; −KL(target ‖ p) for a soft target."""
    t, p = faces.weights, faces.joint.clamp_min(_TINY)
    union = (t * faces.joint).sum(1).clamp_min(_TINY).log()
    return torch.where(faces.soft, (torch.xlogy(t, p) - torch.xlogy(t, t)).sum(1), union)


def typicality(faces: Faces) -> Tensor:
    """−|distance − 1| / spread [n]: how many standard deviations of natural draws off the prior's typical set."""
    return -(faces.distance - 1).abs() / faces.spread


def identity_novelty(faces: Faces) -> Tensor:
    """1 − largest cosine to the archive's identities [n]; 0 while the archive is empty."""
    if faces.embeddings.shape[1] == 0:
        raise DataError("novelty compares identities", expected="embeddings", got="none", fix="pass embedder=")
    if faces.known is None or faces.known.embeddings is None or len(faces.known) == 0:
        return torch.zeros_like(faces.distance)
    return 1 - novelty(faces.embeddings, faces.known.embeddings).similarity


def face_quality(faces: Faces) -> Tensor:
    """The detector's probability of a face [n], 0 where it finds none."""
    return _detection(faces).probability


def yaw(faces: Faces) -> Tensor:
    """The nose's offset from between the eyes in eye distances [n]; about 0 frontal, also 0 where no face was found."""
    left, right, nose = _detection(faces).landmarks[:, :3].unbind(1)
    eyes = torch.linalg.vector_norm(right - left, dim=1)
    return ((nose - (left + right) / 2)[:, 0] / eyes).nan_to_num(0.0, 0.0, 0.0)


def expected_value(attribute: str) -> Term:
    """A measure: the mean of an ordered attribute's value indices under its probabilities, as [0, 1]: [n]."""

    def measure(faces: Faces) -> Tensor:
        p = faces.probabilities[attribute]
        return p @ torch.linspace(0, 1, p.shape[1], dtype=p.dtype, device=p.device)

    return measure


def _detection(faces: Faces) -> Detections:
    if faces.detection is None:
        raise DataError(
            "this needs the detections of all candidates",
            fix='pass detector=ffs.load_detector() and detect="all"',
        )
    return faces.detection


def face_fitness(
    generator: Generator,
    labeller: Labeller,
    groups: Groups,
    targets: Sequence[Spec] | None = None,
    *,
    terms: Mapping[Term, float] | Sequence[tuple[float, Term]] | None = None,
    space: Space = "z",
    detector: Callable[[Tensor], Detections | Tensor] | None = None,
    detect: Detect = "all",
    embedder: Embedder | None = None,
    measures: Sequence[Term | str] = (),
    min_confidence: float = 0.6,
    tolerance: float = 0.1,
    truncation_psi: float = 1.0,
) -> FaceFitness:
    """The fitness of faces for `evolve`: synthesise, label, detect, embed; fitness is a weighted sum of terms.

    A union succeeds where the labeller's most probable group belongs to it and, for each attribute, the values that
    would keep that group inside the union have a probability of `min_confidence` together. For a single group that is
    `groups.assign(probabilities, min_confidence) == group`.

    Distance. In "z": ‖z‖ / √d. If the mapping ignores the length of z, as StyleGAN's does, z is brought to length √d
    for the archive, and the distance is 1. In "w": √(mean of the squared whitened coordinates), whitened by mean and
    covariance (Ledoit-Wolf) of natural draws, scaled so that other natural draws have 1 on average (root mean square);
    in "w+" the mean of that over the layers, which does not see how far the layers differ from one another.

    Args:
        generator, labeller: the models. The labeller selects, so it must not score the result.
        groups: over some of the labeller's attributes, as `bank.groups(…)` makes them.
        targets: one for each entry of the quota: any specification of `Groups.parse`, where several groups are a union
            ("light"; ["younger", "middle"]), or {specification: weight}, a target distribution over the groups, shared
            equally within a specification. None: every group.
        terms: {term: weight} or [(weight, term), …], each term a function of `Faces` → [n]. None: {log_target: 1}.
        space: what the latents are: z [n, z_dim], w [n, w_dim] or w+ [n, num_ws, w_dim].
        detector: images → `Detections`, bool [n], or probabilities of a face [n], of which 0.95 counts as one (see
            `faces_found`); None: every image counts as a face.
        detect: "all" candidates, or only those in the target group: cheaper, but the published walk then does not see
            failed detections of the others. MTCNN is slower than the bundled generator.
        embedder: for `threshold` and `identity_novelty`.
        measures: for MAP-Elites: functions of `Faces` → [n], "yaw", or the name of an ordered attribute.
        min_confidence: gate on each attribute's probability.
        tolerance: a soft target succeeds at a total variation ½Σ|p − target| up to this.
        truncation_psi: of the mapping; in W and W+ only of the prior's draws, as published.

    Raises:
        DataError, GroupError: not a model, unknown groups or values, impossible settings.
    """
    check_models(generator, labeller)
    check_attributes(groups, labeller.attributes)
    if space not in get_args(Space) or detect not in get_args(Detect):
        raise DataError("unknown choice", expected=f"{get_args(Space)}, {get_args(Detect)}", got=f"{space}, {detect}")
    if not (0 <= min_confidence <= 1 and 0 <= tolerance <= 1):
        raise DataError("shares lie in 0 … 1", got=f"min_confidence={min_confidence}, tolerance={tolerance}")
    pairs = [(1.0, log_target)] if terms is None else terms
    pairs = [(weight, term) for term, weight in pairs.items()] if isinstance(pairs, Mapping) else list(pairs)
    if not pairs or not all(callable(term) and math.isfinite(weight) for weight, term in pairs):
        raise DataError("terms are functions with finite weights", expected="{log_target: 1.0, …}", got=terms)
    weights, soft, names = _parse_targets(groups, groups.names if targets is None else targets)
    device = generator.w_avg.device
    return FaceFitness(
        generator=generator,
        labeller=labeller,
        groups=groups,
        targets=weights.to(device),
        soft=soft.to(device),
        names=names,
        terms=tuple(pairs),
        space=space,
        detector=detector,
        detect=detect,
        embedder=embedder,
        measures=tuple(_as_measure(m, labeller) for m in measures),
        min_confidence=min_confidence,
        tolerance=tolerance,
        truncation_psi=truncation_psi,
        natural=_natural(generator, space, truncation_psi),
    )


class _Natural(NamedTuple):
    """Natural latents: mean [L, d] and Cholesky factor [L, d, d] in W, root mean square and spread of their distance,
    and whether the mapping ignores the length of z."""

    mean: Tensor
    factor: Tensor
    scale: Tensor
    spread: Tensor
    scale_free: bool


@dataclass(frozen=True, repr=False, eq=False)
class FaceFitness:
    """Made by `face_fitness`; its arguments, with the targets as weights [T, n_groups], `soft` [T] and `names`."""

    generator: Generator
    labeller: Labeller
    groups: Groups
    targets: Tensor
    soft: Tensor
    names: tuple[str, ...]
    terms: tuple[tuple[float, Term], ...]
    space: Space
    detector: Callable[[Tensor], Detections | Tensor] | None
    detect: Detect
    embedder: Embedder | None
    measures: tuple[Term, ...]
    min_confidence: float
    tolerance: float
    truncation_psi: float
    natural: _Natural

    def __repr__(self) -> str:
        terms = " + ".join(f"{weight:g}·{getattr(term, '__name__', 'term')}" for weight, term in self.terms)
        return f"FaceFitness({', '.join(self.names)}; {terms}; {self.space})"

    def prior(self, seed: int = 0) -> Prior:
        """Natural draws for `evolve`: row i depends on (seed, stream, index) alone."""

        def draw(index: Tensor, stream: Tensor) -> Tensor:
            device = self.generator.w_avg.device
            z = normals(seed, index.to(device), self.generator.z_dim, stream=stream.to(device) + _STREAM)
            return _to_space(self.generator, z, self.space, self.truncation_psi)

        return draw

    def w(self, latents: Tensor) -> Tensor:
        """Latents of the search (or of its archive) [n, *shape] as w [n, num_ws, w_dim], ready to synthesize."""
        if self.space == "z":
            return self.generator.map(latents, truncation_psi=self.truncation_psi)
        return to_layers(self.generator, latents)

    def canonical(self, latents: Tensor) -> Tensor:
        """The latents as they are archived: z at length √d if the mapping ignores lengths, otherwise unchanged."""
        if not self.natural.scale_free:
            return latents
        return F.normalize(latents, dim=1) * math.sqrt(latents.shape[1])

    def distance(self, latents: Tensor) -> Tensor:
        """Distance of latents [n, *shape] from the prior, [n]; see `face_fitness`."""
        if self.space == "z":
            z = self.canonical(latents)
            return torch.linalg.vector_norm(z, dim=1) / math.sqrt(z.shape[1])
        w = latents.unsqueeze(1) if self.space == "w" else latents
        return _layer_distances(self.natural, w).mean(1) / self.natural.scale

    @torch.no_grad()
    def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None = None) -> Scores:
        """latents [n, *shape] for targets rows [n] → `Scores`. Makes n images.

        `probability` is P(target); for a soft target the overlap Σ min(p, target).
        """
        w = self.w(latents)
        images = self.generator.synthesize(w)
        check_range(images)
        labels = self.labeller(images)
        probabilities = {a: labels[a] for a in self.groups.attributes}
        joint = self.groups.joint(probabilities).float()
        weights, soft = self.targets[rows], self.soft[rows]
        overlap = torch.where(soft.unsqueeze(1), torch.minimum(joint, weights), joint * weights).sum(1)
        near = (joint - weights).abs().sum(1) / 2 <= self.tolerance
        success = torch.where(soft, near, _confirmed(self.groups, probabilities, weights > 0, self.min_confidence))
        found, detection = self._detect(images, success)
        none = joint[:, :0]
        faces = Faces(
            latents=latents,
            w=w,
            images=images,
            rows=rows,
            weights=weights,
            soft=soft,
            probabilities=labels,
            joint=joint,
            found=found,
            detection=detection,
            embeddings=none if self.embedder is None else self.embedder(images),
            distance=self.distance(latents).float(),
            spread=self.natural.spread,
            known=known,
        )
        return Scores(
            fitness=torch.stack([weight * term(faces).float() for weight, term in self.terms]).sum(0),
            success=success,
            found=found,
            probability=overlap,
            distance=faces.distance,
            measures=torch.stack([m(faces).float() for m in self.measures], 1) if self.measures else none,
            embeddings=faces.embeddings,
            latents=self.canonical(latents),
        )

    def _detect(self, images: Tensor, success: Tensor) -> tuple[Tensor, Detections | None]:
        found = torch.ones_like(success)
        if self.detector is None:
            return found, None
        rows = success.nonzero().squeeze(1) if self.detect == "successes" else None
        if rows is not None and len(rows) == 0:
            return found, None
        result = self.detector(images if rows is None else images[rows])
        answer = faces_found(result)
        if rows is not None:
            return found.index_copy(0, rows, answer), None
        return answer, result if isinstance(result, Detections) else None


def _confirmed(groups: Groups, probabilities: Mapping[str, Tensor], members: Tensor, gate: float) -> Tensor:
    """bool [n]: is the most probable group among the members [n, n_groups], and surely so? See `face_fitness`."""
    best = groups.assign(probabilities)
    sure = members.gather(1, best.unsqueeze(1)).squeeze(1)
    stride = len(groups)
    for attribute, values in groups.attributes.items():
        stride //= len(values)
        shift = torch.arange(len(values), device=best.device) - groups.value_ids(best, attribute).unsqueeze(1)
        allowed = members.gather(1, best.unsqueeze(1) + shift * stride)
        together = (probabilities[attribute] * allowed).sum(1)
        sure = sure & ((together >= gate) | allowed.all(1))
    return sure


def _parse_targets(groups: Groups, targets: Sequence[Spec]) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Weights [T, n_groups], soft [T] and names of target specifications."""
    if isinstance(targets, (str, Mapping)) or len(targets) == 0:
        raise GroupError("targets is a list, one for each entry of the quota", expected='["dark-female"]', got=targets)
    rows, names = [], []
    for spec in targets:
        row = [0.0] * len(groups)
        if isinstance(spec, Mapping):
            for key, share in spec.items():
                ids = groups.parse(key)
                if not (math.isfinite(share) and share >= 0):
                    raise GroupError("shares must be finite and non-negative", got=f"{key!r}: {share}")
                for g in ids:
                    row[g] += share / len(ids)
            if not sum(row) > 0:
                raise GroupError("no group has a share", expected="some share above 0", got=dict(spec))
            row = [share / sum(row) for share in row]
            names.append(" + ".join(f"{share:g} {key}" for key, share in spec.items()))
        else:
            listed = [spec] if isinstance(spec, (str, int)) else list(spec)
            for g in groups.parse(listed):
                row[g] = 1.0
            names.append(" or ".join(_spec_name(groups, s) for s in listed))
        rows.append(row)
    soft = [isinstance(spec, Mapping) for spec in targets]
    return torch.tensor(rows), torch.tensor(soft), tuple(names)


def _spec_name(groups: Groups, spec: str | int) -> str:
    return spec if isinstance(spec, str) else groups.name(int(spec))


def _as_measure(measure: Term | str, labeller: Labeller) -> Term:
    if not isinstance(measure, str):
        return measure
    if measure == "yaw":
        return yaw
    if measure not in labeller.attributes:
        raise DataError("unknown measure", expected=f"a function, yaw, {', '.join(labeller.attributes)}", got=measure)
    return expected_value(measure)


def _to_space(generator: Generator, z: Tensor, space: Space, truncation_psi: float) -> Tensor:
    if space == "z":
        return z
    w = generator.map(z, truncation_psi=truncation_psi)
    return w[:, 0] if space == "w" else w


@torch.no_grad()
def _natural(generator: Generator, space: Space, truncation_psi: float) -> _Natural:
    """What natural draws look like in the search's space."""
    device, d = generator.w_avg.device, generator.z_dim
    count = 8 if space == "z" else max(4096, 8 * generator.w_dim) + 1024
    z = normals(0, torch.arange(count, device=device), d, stream=_STREAM - 1)
    empty, one = z.new_zeros(0), z.new_ones(())
    if space == "z":
        w, scaled = generator.map(z), generator.map(2 * z)
        scale_free = has_values(w) and torch.allclose(w, scaled, rtol=1e-3, atol=1e-3 * float(w.abs().mean()))
        return _Natural(empty, empty, one, one / math.sqrt(2 * d), scale_free)
    w = generator.map(z, truncation_psi=truncation_psi).float()
    if has_values(w) and torch.equal(w, w[:, :1].expand_as(w)):
        w = w[:, :1]
    elif space == "w" and generator.num_ws > 1:
        raise DataError("the layers of this mapping differ", expected="one w for all layers", fix='use space="w+"')
    layers = torch.arange(w.shape[1], device=device).expand(len(w) - 1024, -1)
    fit = fit_gaussians(w[1024:].flatten(0, 1), layers.flatten(), covariance="ledoit_wolf", num_groups=w.shape[1])
    natural = _Natural(fit.component_means[:, 0], fit.factors[:, 0], one, one, False)
    distance = _layer_distances(natural, w[:1024]).mean(1)
    scale = distance.square().mean().sqrt()
    return natural._replace(scale=scale, spread=(distance / scale).std())


def _layer_distances(natural: _Natural, w: Tensor) -> Tensor:
    """Root mean square of whitened coordinates of w [n, L, d] under each layer's distribution: [n, L]."""
    centred = (w - natural.mean).float().transpose(0, 1).mT
    white = torch.linalg.solve_triangular(natural.factor, centred, upper=False)
    return white.square().mean(1).sqrt().T
