"""The massive attribute classifier (MAC): many binary attributes of a face from its identity embedding.

After the classifier that MAAD-Face was labelled with (Terhörst et al. 2021): a shared trunk of two layers, then a
branch of its own for every attribute. Which one Neto et al. 2024 annotated their sets with was not found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .annotation import texts
from .artifacts import Artifact
from .attribute_schema import MAAD_FACE, AttributeSchema, check_labels, check_negatives
from .embeddings import check_embeddings
from .errors import DataError, GroupError, ShapeError
from .reports import markdown_table
from .tables import to_frame

PASSES = 100  # stochastic forward passes behind a reliability, and their trade-off, as published
ALPHA = 0.5
_LAYERS = ("trunk0", "trunk1", "branch")
_CHUNK = 4096  # faces at a time
_BINS = 10
_MOMENTUM, _EPS = 0.1, 1e-5  # of batch normalisation, torch's own


@dataclass(frozen=True)
class MACReport:
    """How good a classifier is, attribute by attribute, against labels it was neither trained nor calibrated on.

    Attributes:
        schema: the attributes.
        positive, negative: faces with these labels, int64 [K]; undefined ones count nowhere.
        balanced_accuracy: mean of the shares of positives and of negatives that are right at P ≥ 0.5 [K].
        weighted_accuracy: the same where the class-weighted network is undecided (`MAC.thresholds`): for rare
            attributes, which seldom reach 0.5, the better yardstick [K].
        f1: 2·TP / (2·TP + FP + FN) at P ≥ 0.5 [K].
        auc: area under the ROC curve [K].
        ece: expected calibration error of P [K]: mean |P − share of positives| over ten bins of P, weighted by their
            faces (Guo et al. 2017). `ece_before`: of the class-weighted network, before calibration.
        notes: {attribute: why a figure is NaN, or what else to know}; printed beside "flagged", for `schema.noisy`.
    """

    schema: AttributeSchema
    positive: Tensor
    negative: Tensor
    balanced_accuracy: Tensor
    weighted_accuracy: Tensor
    f1: Tensor
    auc: Tensor
    ece: Tensor
    ece_before: Tensor
    notes: Mapping[str, str]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{attribute: {figure: number, "note": text}}."""
        figures = {f: getattr(self, f).tolist() for f in _FIGURES}
        return {
            name: {f: values[k] for f, values in figures.items()} | {"note": self.notes.get(name, "")}
            for k, name in enumerate(self.schema.names)
        }

    def to_frame(self) -> Any:
        """A pandas DataFrame, one row an attribute."""
        rows = self.to_dict()
        columns = {f: [row[f] for row in rows.values()] for f in (*_FIGURES, "note")}
        return to_frame({"attribute": list(rows), **columns})

    def __str__(self) -> str:
        header = ["attribute", "+", "−", "balanced accuracy", "weighted", "F1", "AUC", "ECE", "before", "note"]
        rows = []
        for name, row in self.to_dict().items():
            known = "flagged" if name in self.schema.noisy else ""
            note = "; ".join(filter(None, (known, row["note"])))
            numbers = ["–" if math.isnan(row[f]) else f"{row[f]:.3f}" for f in _FIGURES[2:]]
            rows.append([name, str(row["positive"]), str(row["negative"]), *numbers, note])
        return markdown_table(header, rows)


_FIGURES = ("positive", "negative", "balanced_accuracy", "weighted_accuracy", "f1", "auc", "ece", "ece_before")


@dataclass(frozen=True, repr=False, eq=False)
class MAC(Artifact):
    """A massive attribute classifier: unit embeddings [n, d] → P(attribute present) [n, K], calibrated.

    Attributes:
        mean, scale: standardise embeddings [d].
        weights: of two shared layers and of all branches, stacked: FC, ReLU and batch normalisation (`scale`, `shift`)
            each, then one logit an attribute: FC2 and softmax over present/absent are the sigmoid of a difference.
        slope, offset: Platt's calibration of each attribute's logit [K].
        names, noisy, source: the schema.
        dropout: rate after each layer, in training and in the stochastic passes behind reliabilities.
        metrics: {figure: [K]} of `MACReport`, on the identities held out from training and calibration.
        notes: {attribute: what to know}.
        training: how it was trained: counts, settings, the epoch that was kept.
    """

    kind: ClassVar[str] = "mac"

    mean: Tensor
    scale: Tensor
    weights: Mapping[str, Tensor]
    slope: Tensor
    offset: Tensor
    names: tuple[str, ...]
    noisy: Mapping[str, str]
    source: str
    dropout: float
    metrics: Mapping[str, Tensor]
    notes: Mapping[str, str]
    training: Mapping[str, Any]

    @property
    def schema(self) -> AttributeSchema:
        """The attributes, in the order of the columns."""
        return AttributeSchema(self.names, self.noisy, self.source)

    @property
    def thresholds(self) -> Tensor:
        """P at which the class-weighted network is undecided [K]: about the attribute's share in training.

        For hard labels of rare attributes: `annotations.labels(mac.thresholds)`.
        """
        return self.offset.sigmoid()

    @property
    def fingerprint(self) -> str:
        """A digest of names and weights."""
        digest = hashlib.blake2b(json.dumps([self.names, self.dropout]).encode(), digest_size=16)
        tensors = {"mean": self.mean, "scale": self.scale, "slope": self.slope, "offset": self.offset, **self.weights}
        for key in sorted(tensors):
            digest.update(f"{key} {list(tensors[key].shape)}".encode())
            digest.update(tensors[key].detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        auc = self.metrics["auc"]
        return f"MAC(dim={len(self.mean)}, {len(self.names)} attributes, median AUC {float(auc.nanmedian()):.3f})"

    def __call__(self, embeddings: Tensor) -> Tensor:
        """P(attribute present), float32 [n, K].

        Args:
            embeddings: unit vectors [n, d] of the embedder that the classifier was trained on.

        Raises:
            ShapeError, DataError: another width; rows that are not finite and of length 1.
        """
        return self._probabilities(self._standard(embeddings))

    def predict(
        self, embeddings: Tensor, passes: int = PASSES, seed: int = 0, alpha: float = ALPHA
    ) -> tuple[Tensor, Tensor]:
        """Probabilities and the reliability of each prediction, both [n, K].

        Reliability (Terhörst et al., "Reliable age and gender estimation from face images: stating the confidence of
        model predictions", BTAS 2019), from m passes with dropout in place, x_i the output of the predicted class:

            (1 − α)/m · Σ_i x_i  −  α/m² · Σ_i Σ_j |x_i − x_j|

        Large where the passes are both sure and agree: at most 1 − α, so 0.5 by default. The formula, α = 0.5 and
        m = 100 are as the literature on MAAD-Face gives them; the paper's own text was not at hand to check them. Ours:
        x is calibrated (an increasing function of the softmax output), the predicted class is that of the pass without
        dropout, and all faces share the m dropout masks, drawn from the seed: a face's reliability does not depend on
        the faces beside it. Compare reliabilities within an attribute, not between attributes.

        Args:
            embeddings: as for calling.
            passes: m ≥ 2. Cost: m times that of the probabilities.
            seed: of the dropout masks.
            alpha: α, the weight of the disagreement, 0 … 1.
        """
        if passes < 2 or not 0 <= alpha <= 1:
            got = f"passes={passes}, alpha={alpha}"
            raise DataError("no reliability from this", expected="passes ≥ 2, 0 ≤ alpha ≤ 1", got=got)
        if not self.dropout:
            raise DataError("without dropout all passes agree", expected="a MAC trained with dropout > 0", got=0)
        rng = torch.Generator().manual_seed(seed)  # on the host: the same masks on every device
        shapes = [self.weights[f"{layer}.bias"].shape for layer in _LAYERS]
        masks = [[_dropout_mask(s, self.dropout, rng).to(self.mean) for s in shapes] for _ in range(passes)]
        parts = []
        for x in self._standard(embeddings).split(_CHUNK):
            p = self._probabilities(x)
            outputs = torch.stack([self._probabilities(x, mask) for mask in masks])
            parts.append((p, _reliability(torch.where(p >= 0.5, outputs, 1 - outputs), alpha)))
        return torch.cat([p for p, _ in parts]), torch.cat([r for _, r in parts])

    def _probabilities(self, x: Tensor, masks: Sequence[Tensor | None] = (None, None, None)) -> Tensor:
        return (_logits(self.weights, x, masks) * self.slope + self.offset).sigmoid().float()

    def evaluate(self, embeddings: Tensor, labels: Tensor) -> MACReport:
        """Figures on faces with labels; use faces of identities that the training never saw.

        Args:
            embeddings: [n, d].
            labels: [n, K], 1 present, −1 absent, 0 undefined.
        """
        check_negatives(check_labels(labels, self.schema), self.schema)
        if len(labels) != len(embeddings):
            raise ShapeError("one row of labels a face", expected=len(embeddings), got=len(labels))
        parts = self._standard(embeddings).split(_CHUNK)
        return _report(self, torch.cat([_logits(self.weights, x) for x in parts]).float().cpu(), labels.cpu())

    def report(self) -> MACReport:
        """The figures of the training's own held-out identities."""
        figures = {f: self.metrics[f].cpu() for f in _FIGURES}
        return MACReport(self.schema, **figures, notes=self.notes)

    def _standard(self, embeddings: Tensor) -> Tensor:
        _check_embeddings(embeddings, "what the classifier was given")
        if embeddings.shape[1] != len(self.mean):
            expected, got = f"[n, {len(self.mean)}]", list(embeddings.shape)
            fix = "use the embedder that the classifier was trained on"
            raise ShapeError("these embeddings do not fit the classifier", expected=expected, got=got, fix=fix)
        return (embeddings.to(self.mean.dtype) - self.mean) / self.scale


def train_mac(
    embeddings: Tensor,
    labels: Tensor,
    identities: Sequence[Any] | np.ndarray | Tensor,
    *,
    schema: AttributeSchema = MAAD_FACE,
    hidden: int = 512,
    branch: int = 128,
    dropout: float = 0.5,
    epochs: int = 20,
    batch_size: int = 1024,
    lr: float = 2e-3,
    weight_decay: float = 1e-2,
    validation: float = 0.2,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> MAC:
    """Train a massive attribute classifier on embeddings, calibrate it, and measure it on identities it has not seen.

    Two layers of FC–ReLU–batch normalisation–dropout, then for each attribute a branch of FC–ReLU–batch
    normalisation–dropout–FC. Cross-entropy on logits, undefined labels left out, classes of an attribute weighted to
    count alike, and the plain mean over attributes. Widths, dropout and weighting are those of a third party's
    implementation of MAAD-Face's classifier. Standardised inputs, the optimiser (AdamW; a fifth of the steps to warm
    up, then half a cosine) with its settings, and all that follows are ours.

    Identities, not faces, are split: `validation` of the faces, half of it to choose the epoch and to calibrate, half
    for the figures in `MAC.metrics`. Calibration is Platt's (1999), slope and offset for each attribute; it also takes
    back the shift that class weighting puts on the probabilities.

    Args:
        embeddings: unit vectors [n, d].
        labels: [n, K], 1 present, −1 absent, 0 undefined.
        identities: whose face each is [n]: integers or strings.
        schema: of the columns of labels.
        hidden, branch: widths of the shared layers and of each attribute's own.
        dropout: rate, 0 … 1; needed for reliabilities.
        epochs: passes over the training part; the one with the smallest loss on the calibration part is kept.
        batch_size, lr, weight_decay: of the optimiser.
        validation: share of the faces held out.
        seed: of split, initial weights, order and dropout.
        device: where to train and where the classifier then is; that of the embeddings by default.
        progress: show a bar.

    Raises:
        ShapeError, DataError: shapes that do not fit, embeddings that are not unit vectors, unknown label values, fewer
            than ten identities, attributes without a face of both classes to train on, settings out of range.
    """
    _check_embeddings(embeddings, "embeddings")
    if not isinstance(schema, AttributeSchema):
        got = type(schema).__name__
        raise GroupError("the columns of labels need a schema", expected="AttributeSchema(('Male', …))", got=got)
    check_negatives(check_labels(labels, schema), schema)
    rows, people = _split(embeddings, labels, identities, validation, seed)
    whole = {"hidden": hidden, "branch": branch, "epochs": epochs, "batch_size": batch_size}
    integers = all(isinstance(x, Integral) and x > 0 for x in whole.values()) and batch_size > 1
    if not integers or not lr > 0 or not 0 <= dropout < 1 or not weight_decay >= 0:
        got = {**whole, "lr": lr, "dropout": dropout, "weight_decay": weight_decay}
        expected = "whole numbers ≥ 1, batch_size ≥ 2, lr > 0, 0 ≤ dropout < 1"
        raise DataError("settings out of range", expected=expected, got=got)
    device = embeddings.device if device is None else torch.device(device)
    train, calibrate, test = (part.to(embeddings.device) for part in rows)
    counts = torch.stack([(labels[train.to(labels.device)] == sign).sum(0) for sign in (1, -1)]).cpu()
    lacking = [n for n, c in zip(schema.names, counts.T.tolist(), strict=True) if not all(c)]
    if lacking:
        raise DataError(
            "attributes without a face of both classes to train on",
            expected="labels 1 and −1 in the training part",
            got=", ".join(lacking),
            fix="leave them out: schema.subset([…]) and those columns of the labels",
        )
    x = embeddings[train].float()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    data = _Data(embeddings, labels.to(torch.int8), mean, scale, device)
    settings = _Settings(hidden, branch, dropout, epochs, min(batch_size, len(train)), lr, weight_decay, seed)
    weights, epoch = _train(data, train, calibrate, counts.to(device), settings, progress)
    slope, offset, notes = _calibrate(_run(weights, data, calibrate), data.labels_of(calibrate), counts, schema)
    how = {
        "epoch": epoch,
        **dataclasses.asdict(settings),
        **{f"{part}_faces": len(r) for part, r in zip(_PARTS, rows, strict=True)},
        **{f"{part}_identities": len(p) for part, p in zip(_PARTS, people, strict=True)},
    }
    fields = (mean.to(device), scale.to(device), weights, slope.to(device), offset.to(device))
    plain = (schema.names, dict(schema.noisy), schema.source, float(dropout))
    mac = MAC(*fields, *plain, metrics={}, notes=notes, training=how)
    report = _report(mac, _run(weights, data, test).cpu(), data.labels_of(test).cpu())
    metrics = {f: getattr(report, f).to(device) for f in _FIGURES}
    return dataclasses.replace(mac, metrics=metrics, notes=dict(report.notes))


def _check_embeddings(embeddings: Tensor, what: str) -> None:
    if not isinstance(embeddings, Tensor):
        got = type(embeddings).__name__
        raise ShapeError(f"{what}: not embeddings", expected="a tensor [n, d]", got=got, fix="torch.as_tensor(…)")
    check_embeddings(embeddings, what)


# --- the network ----------------------------------------------------------------------------------------------------


def _layer(weights: Mapping[str, Tensor], name: str, h: Tensor, mask: Tensor | None) -> Tensor:
    """FC, ReLU, batch normalisation (already a scale and a shift), dropout."""
    shape = weights[f"{name}.bias"].shape
    h = F.relu((h @ weights[f"{name}.weight"].flatten(1)).unflatten(1, shape) + weights[f"{name}.bias"])
    h = h * weights[f"{name}.scale"] + weights[f"{name}.shift"]
    return h if mask is None else h * mask


def _logits(weights: Mapping[str, Tensor], x: Tensor, masks: Sequence[Tensor | None] = (None, None, None)) -> Tensor:
    """Logits of "present", class-weighted and not calibrated [n, K], of standardised embeddings [n, d]."""
    for name, mask in zip(_LAYERS, masks, strict=True):
        x = _layer(weights, name, x, mask)
    return (x * weights["out.weight"]).sum(2) + weights["out.bias"]


def _dropout_mask(
    shape: Sequence[int], rate: float, rng: torch.Generator, device: torch.device | str = "cpu"
) -> Tensor:
    """0 with probability `rate`, else 1/(1 − rate)."""
    return (torch.rand(shape, generator=rng, device=device) >= rate).float() / (1 - rate)


def _reliability(x: Tensor, alpha: float) -> Tensor:
    """(1 − α)·mean − α·mean absolute difference of all pairs, of x [m, …] over m; sorted, so O(m log m)."""
    m = len(x)
    rank = torch.arange(1, m + 1, dtype=x.dtype, device=x.device).view(-1, *(1,) * (x.ndim - 1))
    differences = 2 * ((2 * rank - m - 1) * x.sort(0).values).sum(0) / m**2
    return (1 - alpha) * x.mean(0) - alpha * differences


# --- training -------------------------------------------------------------------------------------------------------

_PARTS = ("training", "calibration", "test")


@dataclass(frozen=True)
class _Settings:
    hidden: int
    branch: int
    dropout: float
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class _Data:
    """Embeddings and labels where they are; batches of them on the device that trains."""

    embeddings: Tensor
    labels: Tensor
    mean: Tensor
    scale: Tensor
    device: torch.device

    def standard(self, rows: Tensor) -> Tensor:
        return ((self.embeddings[rows].float() - self.mean) / self.scale).to(self.device)

    def labels_of(self, rows: Tensor) -> Tensor:
        return self.labels[rows.to(self.labels.device)].to(self.device)


def _split(
    embeddings: Tensor, labels: Tensor, identities: Any, validation: float, seed: int
) -> tuple[tuple[Tensor, ...], tuple[np.ndarray, ...]]:
    """Rows and people of the training, calibration and test parts; every identity is in one of them alone."""
    n = len(embeddings)
    if len(labels) != n:
        raise ShapeError("one row of labels a face", expected=n, got=len(labels))
    whose = texts(identities, "identities", n)
    if whose is None:
        fix = "faces of one person must not be on both sides; if each face is another person: range(n)"
        raise DataError("identities are needed", expected="one for each face", got=None, fix=fix)
    people, person = np.unique(whose, return_inverse=True)
    if not 0 < validation < 1 or len(people) < 10:
        got = f"{len(people)} identities, validation={validation}"
        raise DataError("this cannot be split", expected="ten identities or more, 0 < validation < 1", got=got)
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed)).numpy()
    before = np.cumsum(np.bincount(person)[order]) / n  # share of the faces up to and with each identity
    part = np.empty(len(people), np.int64)
    part[order] = np.where(before <= validation / 2, 2, np.where(before <= validation, 1, 0))
    part[order[0]], part[order[1]], part[order[-1]] = 2, 1, 0  # none is empty, however uneven the identities
    rows = tuple(torch.from_numpy(np.flatnonzero(part[person] == i)) for i in range(3))
    return rows, tuple(people[part == i] for i in range(3))


def _train(
    data: _Data, rows: Tensor, held_out: Tensor, counts: Tensor, s: _Settings, progress: bool
) -> tuple[dict[str, Tensor], int]:
    """The weights of the epoch with the smallest loss on the held-out rows, and its number from 1."""
    from tqdm.auto import tqdm

    rng = torch.Generator().manual_seed(s.seed)
    noise = torch.Generator(device=data.device).manual_seed(s.seed)
    weights, running = _start(data.embeddings.shape[1], data.labels.shape[1], s, rng, data.device)
    decayed = [v for k, v in weights.items() if k.endswith("weight")]
    rest = [v for k, v in weights.items() if not k.endswith("weight")]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, s.lr, weight_decay=s.weight_decay)
    steps = max(1, len(rows) // s.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, s.epochs * steps))
    balance = _class_weights(counts)
    labelled = counts.sum(0) / len(rows)
    best: tuple[float, dict[str, Tensor], int] = (math.inf, {}, 0)
    for epoch in tqdm(range(s.epochs), desc="training attributes", unit="epoch", disable=not progress):
        order = rows[torch.randperm(len(rows), generator=rng).to(rows.device)]
        for batch in order.split(s.batch_size)[:steps]:
            with torch.enable_grad():
                logits = _training_logits(weights, running, data.standard(batch), s.dropout, noise)
                loss = (_losses(logits, data.labels_of(batch), balance).sum(0) / (len(batch) * labelled)).mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            schedule.step()
        kept = _folded(weights, running)
        value = _held_out_loss(_run(kept, data, held_out), data.labels_of(held_out), balance)
        if not math.isfinite(value):
            raise DataError("the training diverged", expected="a finite loss", got=value, fix="a smaller lr")
        if value < best[0]:
            best = value, kept, epoch + 1
    return best[1], best[2]


def _rate(step: int, total: int) -> float:
    """Share of the learning rate: a linear rise over a fifth of the steps, then half a cosine down to 0."""
    rise = max(1, total // 5)
    if step < rise:
        return (step + 1) / rise
    return (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def _start(
    d: int, attributes: int, s: _Settings, rng: torch.Generator, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Initial parameters (He et al. 2015) and running statistics."""
    sides: dict[str, tuple[int, tuple[int, ...]]] = {
        "trunk0": (d, (s.hidden,)),
        "trunk1": (s.hidden, (s.hidden,)),
        "branch": (s.hidden, (attributes, s.branch)),
    }
    weights: dict[str, Tensor] = {}
    running: dict[str, Tensor] = {}
    for name, (width, out) in sides.items():
        weights[f"{name}.weight"] = torch.randn((width, *out), generator=rng) * math.sqrt(2 / width)
        weights |= {f"{name}.{k}": torch.full(out, v) for k, v in (("bias", 0.0), ("scale", 1.0), ("shift", 0.0))}
        running |= {f"{name}.mean": torch.zeros(math.prod(out)), f"{name}.var": torch.ones(math.prod(out))}
    weights["out.weight"] = torch.randn((attributes, s.branch), generator=rng) / math.sqrt(s.branch)
    weights["out.bias"] = torch.zeros(attributes)
    weights = {k: v.to(device).requires_grad_() for k, v in weights.items()}
    return weights, {k: v.to(device) for k, v in running.items()}


def _training_logits(
    weights: Mapping[str, Tensor], running: Mapping[str, Tensor], x: Tensor, dropout: float, rng: torch.Generator
) -> Tensor:
    """`_logits` with the batch's own statistics, which also move the running ones, and dropout for each face."""
    for name in _LAYERS:
        shape = weights[f"{name}.bias"].shape
        h = F.relu(x @ weights[f"{name}.weight"].flatten(1) + weights[f"{name}.bias"].flatten())
        norm = (weights[f"{name}.scale"].flatten(), weights[f"{name}.shift"].flatten())
        h = F.batch_norm(h, running[f"{name}.mean"], running[f"{name}.var"], *norm, True, _MOMENTUM, _EPS)
        x = (h * _dropout_mask(h.shape, dropout, rng, h.device)).unflatten(1, shape)
    return (x * weights["out.weight"]).sum(2) + weights["out.bias"]


def _folded(weights: Mapping[str, Tensor], running: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of the weights whose scale and shift hold batch normalisation with its running statistics."""
    copy = {k: v.detach().clone() for k, v in weights.items()}
    for name in _LAYERS:
        shape = copy[f"{name}.scale"].shape
        copy[f"{name}.scale"] *= (running[f"{name}.var"].view(shape) + _EPS).rsqrt()
        copy[f"{name}.shift"] -= running[f"{name}.mean"].view(shape) * copy[f"{name}.scale"]
    return copy


@torch.no_grad()
def _run(weights: Mapping[str, Tensor], data: _Data, rows: Tensor) -> Tensor:
    return torch.cat([_logits(weights, data.standard(part)) for part in rows.split(_CHUNK)])


def _class_weights(counts: Tensor) -> Tensor:
    """[2, K] for present and absent, so that both count alike and the mean over the labelled is 1."""
    return counts.sum(0) / (2 * counts.clamp_min(1))


def _losses(logits: Tensor, labels: Tensor, balance: Tensor) -> Tensor:
    """Class-weighted cross-entropy [n, K]; 0 where the label is undefined."""
    weight = torch.where(labels > 0, balance[0], torch.where(labels < 0, balance[1], 0))
    return F.binary_cross_entropy_with_logits(logits, (labels > 0).float(), reduction="none") * weight


def _held_out_loss(logits: Tensor, labels: Tensor, balance: Tensor) -> float:
    """Mean over the attributes that have a label at all."""
    labelled = (labels != 0).sum(0)
    return float((_losses(logits, labels, balance).sum(0) / labelled)[labelled > 0].mean())


# --- calibration and figures ----------------------------------------------------------------------------------------


def _calibrate(
    logits: Tensor, labels: Tensor, counts: Tensor, schema: AttributeSchema
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Slope and offset [K] of P = sigmoid(slope · logit + offset), and what to know of them.

    Where the calibration part lacks a class, the offset only takes back the class weighting: weights n/(2 n₊) and
    n/(2 n₋) multiply the odds by n₋/n₊ (Elkan 2001). Where the logit does not rank at all (slope ≤ 0), P is the
    attribute's share.
    """
    logits, labels = logits.cpu().double(), labels.cpu()
    slope, offset = _platt(logits, labels)
    share = (counts[0].double() / counts[1].double()).log()
    both = (labels > 0).any(0) & (labels < 0).any(0)
    useless = both & (slope <= 0)
    slope = torch.where(both, torch.where(useless, 0, slope), 1)
    offset = torch.where(both & ~useless, offset, share)
    notes = {n: "calibrated by class shares alone" for n, ok in zip(schema.names, both.tolist(), strict=True) if not ok}
    flat = zip(schema.names, useless.tolist(), strict=True)
    notes |= {n: "not predictable: P is the share in training" for n, yes in flat if yes}
    return slope.float(), offset.float(), notes


def _platt(logits: Tensor, labels: Tensor, steps: int = 50) -> tuple[Tensor, Tensor]:
    """Platt's scaling (1999), with his smoothed targets, of all columns at once: Newton's method, step halved at need.

    Args:
        logits: float64 [n, K].
        labels: [n, K] in {−1, 0, 1}.
    """
    known = (labels != 0).double()
    positive, negative = (labels > 0).sum(0).double(), (labels < 0).sum(0).double()
    target = torch.where(labels > 0, (positive + 1) / (positive + 2), 1 / (negative + 2))
    theta = torch.stack((torch.zeros_like(positive), ((positive + 1) / (negative + 1)).log()))  # slope, offset
    fractions = 0.5 ** torch.arange(8, dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        z = theta[..., 0, None, :] * logits + theta[..., 1, None, :]
        return (F.softplus(z) - target * z).mul(known).sum(-2)

    for _ in range(steps):
        p = (theta[0] * logits + theta[1]).sigmoid()
        residual, curvature = (p - target) * known, p * (1 - p) * known
        gradient = torch.stack(((residual * logits).sum(0), residual.sum(0)), -1)
        cross = (curvature * logits).sum(0)
        rows = ((curvature * logits**2).sum(0), cross, cross, curvature.sum(0))
        hessian = torch.stack(rows, -1).unflatten(-1, (2, 2)) + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient[..., None])[..., 0].T
        candidates = theta - fractions[:, None, None] * step
        values = torch.stack([loss(candidate) for candidate in candidates])
        chosen = values.argmin(0)
        better = values.amin(0) < loss(theta)
        moved = candidates.gather(0, chosen.expand(1, 2, -1))[0]
        theta = torch.where(better, moved, theta)
        if not bool(better.any()):
            break
    return theta[0], theta[1]


def _report(mac: MAC, logits: Tensor, labels: Tensor) -> MACReport:
    """Figures of logits [n, K] (class-weighted, not calibrated) against labels [n, K], on the host."""
    p = (logits * mac.slope.cpu().float() + mac.offset.cpu().float()).sigmoid()
    positive, negative = (labels > 0).sum(0), (labels < 0).sum(0)
    both = (positive > 0) & (negative > 0)
    said, weighted = p >= 0.5, p >= mac.thresholds.cpu().float()
    true, false = (said & (labels > 0)).sum(0), (said & (labels < 0)).sum(0)
    notes = dict(mac.notes) | {
        n: f"no {'positive' if not plus else 'negative'} face held out"
        for n, plus, minus in zip(mac.names, positive.tolist(), negative.tolist(), strict=True)
        if not (plus and minus)
    }
    return MACReport(
        mac.schema,
        positive,
        negative,
        balanced_accuracy=_balanced(said, labels),
        weighted_accuracy=_balanced(weighted, labels),
        f1=torch.where(both, 2 * true / (true + false + positive), torch.nan),
        auc=_auc(p, labels, both),
        ece=torch.where(both, _calibration_error(p, labels), torch.nan),
        ece_before=torch.where(both, _calibration_error(logits.sigmoid(), labels), torch.nan),
        notes=notes,
    )


def _balanced(said: Tensor, labels: Tensor) -> Tensor:
    """Mean of sensitivity and specificity [K]; NaN where a class is lacking."""
    hit = (said & (labels > 0)).sum(0) / (labels > 0).sum(0)
    return (hit + (~said & (labels < 0)).sum(0) / (labels < 0).sum(0)) / 2


def _auc(scores: Tensor, labels: Tensor, both: Tensor) -> Tensor:
    from sklearn.metrics import roc_auc_score

    values = []
    for k, ok in enumerate(both.tolist()):
        known = labels[:, k] != 0
        truth, score = (labels[known, k] > 0).numpy(), scores[known, k].numpy()
        values.append(float(roc_auc_score(truth, score)) if ok else math.nan)
    return torch.tensor(values)


def _calibration_error(p: Tensor, labels: Tensor) -> Tensor:
    """Expected calibration error [K] over ten equal bins of P."""
    known = labels != 0
    gap = torch.where(known, p - (labels > 0).float(), 0)
    bins = (p * _BINS).long().clamp_max(_BINS - 1)
    sums = torch.zeros(_BINS, p.shape[1]).scatter_add_(0, bins, gap)
    return sums.abs().sum(0) / known.sum(0)
