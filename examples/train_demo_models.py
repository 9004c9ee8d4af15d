"""Make every network of ours in the bundled world: labeller, judge, embedder. Deterministic; about 40 minutes.

    python examples/train_demo_models.py --data DIR [--out fairface_synth/models/weights] [--only judge]

DIR holds `generator.safetensors` and `teacher_labels.safetensors` (docs/demo_world.md says what they are). The script
prints held-out accuracy, AUC, calibration error and confusion matrices: the figures of docs/demo_world.md.

Labeller and judge must not share mistakes, so they differ in everything that could be made to differ:

|           | gender teacher       | skin tone measured on                   | age teacher | training split and seed |
|-----------|----------------------|-----------------------------------------|-------------|-------------------------|
| labeller  | A (faceres, -deep)   | the 68-point face polygon (face-api)    | A           | 1                       |
| judge     | B (face-api)         | cheek patches around MTCNN's landmarks  | B           | 2                       |
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

import fairface_synth as ffs
from fairface_synth.images import ita, ita_band, rgb_to_lab
from fairface_synth.models.demo import (
    ATTRIBUTES,
    SKIN_TONE_EDGES,
    CompactEmbedder,
    CompactLabeller,
    CompactNet,
    DCGANGenerator,
)

TEST = 4000  # the last latents: no network sees them before the final figures
CALIBRATION = 3000
EPOCHS = {"labeller": 12, "judge": 12, "embedder": 14}
WIDTH = {"labeller": 16, "judge": 16, "embedder": 20}
SEED = {"labeller": 1, "judge": 2, "embedder": 3}


# --- what the teachers say ------------------------------------------------------------------------------------


@dataclass
class LatentClass:
    """Two classes seen by teachers A (two correlated logits) and B, which err independently given the class.

    The teachers rank well but their thresholds are off (A calls 13 to 15 % female, B 30 %). That independence is what
    identifies the share of each class and each teacher's own threshold (Dawid & Skene 1979, with Gaussians).
    """

    share: float
    mean: Tensor  # [2, 3]
    covariance: Tensor  # [2, 3, 3], zero between A and B

    @classmethod
    def fit(cls, x: Tensor, iterations: int = 500) -> LatentClass:
        standard = ((x - x.mean(0)) / x.std(0)).sum(1)
        female = torch.sigmoid(3 * (standard - standard.quantile(0.65)))
        for _ in range(iterations):
            weights = torch.stack((1 - female, female))
            total = weights.sum(1)
            mean = weights @ x / total[:, None]
            centred = x - mean[:, None]
            covariance = torch.einsum("cn,cni,cnj->cij", weights, centred, centred) / total[:, None, None]
            covariance[:, :2, 2] = covariance[:, 2, :2] = 0
            model = cls(float(female.mean()), mean, covariance)
            female = model.posterior(x)
        return model

    def posterior(self, x: Tensor, teachers: slice = slice(0, 3)) -> Tensor:
        """P(female | the named teachers' scores) [n]."""
        x = x[:, teachers]
        log_p = [
            torch.distributions.MultivariateNormal(
                self.mean[c, teachers], self.covariance[c, teachers, teachers]
            ).log_prob(x)
            for c in (0, 1)
        ]
        prior = float(np.log(self.share / (1 - self.share)))
        return torch.sigmoid(log_p[1] - log_p[0] + prior)


def polygon_ita(images: Tensor, landmarks: Tensor) -> Tensor:
    """ITA of the median skin colour inside jaw and brows, without eyes, brows and mouth (68 points, 0..1)."""
    side = images.shape[-1]
    masks = np.zeros((len(images), side, side), bool)
    for i, points in enumerate((landmarks * side).tolist()):
        p = [tuple(point) for point in points]
        canvas = Image.new("1", (side, side))
        draw = ImageDraw.Draw(canvas)
        draw.polygon(p[0:17] + p[26:16:-1], fill=1)
        for part in (p[36:42], p[42:48], p[48:60], p[17:22], p[22:27]):
            draw.polygon(part, fill=0, outline=0)
        masks[i] = np.array(canvas)
    return torch.cat(
        [
            _median_ita(rgb_to_lab(x).flatten(2).masked_fill(~m.flatten(1)[:, None], float("nan")))
            for x, m in zip(images.split(1000), torch.from_numpy(masks).split(1000), strict=True)
        ]
    )


def cheek_ita(images: Tensor, landmarks: Tensor, radius: int = 3) -> Tensor:
    """ITA of the median colour of two cheek patches, halfway between eye and mouth corner (MTCNN's five points)."""
    side = images.shape[-1]
    centres = torch.stack(((landmarks[:, 0] + landmarks[:, 3]) / 2, (landmarks[:, 1] + landmarks[:, 4]) / 2), dim=1)
    offset = torch.arange(-radius, radius + 1)
    grid = torch.stack(torch.meshgrid(offset, offset, indexing="xy"), -1).reshape(-1, 2)
    pixels = (centres.nan_to_num(0).round().long()[:, :, None] + grid).clamp(0, side - 1).flatten(1, 2)
    lab = rgb_to_lab(images).flatten(2)
    patch = lab.gather(2, (pixels[..., 1] * side + pixels[..., 0])[:, None].expand(-1, 3, -1))
    return _median_ita(patch)


def _median_ita(lab: Tensor) -> Tensor:
    median = lab.nanmedian(2).values
    return ita(median[:, 0], median[:, 2])


def tone_target(angle: Tensor) -> Tensor:
    """One-hot light / medium / dark [n, 3]."""
    return F.one_hot(2 - ita_band(angle, SKIN_TONE_EDGES), 3).float()


def age_target(years: Tensor) -> tuple[Tensor, list[float]]:
    """One-hot thirds of the teacher's (compressed) years, and the two cuts."""
    cuts = years.quantile(torch.tensor([1 / 3, 2 / 3]))
    return F.one_hot(torch.bucketize(years, cuts), 3).float(), [round(float(c), 1) for c in cuts]


# --- training -------------------------------------------------------------------------------------------------


def train(net: CompactNet, images: Tensor, loss_of, rows: Tensor, epochs: int, seed: int, batch: int = 128) -> None:
    """AdamW, one cycle, mirrored and shifted faces; no colour augmentation, since tone is a label."""
    rng = torch.Generator().manual_seed(seed)
    net.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * (len(rows) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        total, start = 0.0, time.time()
        order = rows[torch.randperm(len(rows), generator=rng)]
        for rows_of_batch in order[: len(order) // batch * batch].split(batch):
            x = images[rows_of_batch].float()
            flip = torch.rand(batch, 1, 1, 1, generator=rng) < 0.5
            x = torch.where(flip, x.flip(3), x)
            dy, dx = torch.randint(0, 5, (2,), generator=rng).tolist()
            x = F.pad(x, (2, 2, 2, 2), mode="reflect")[..., dy : dy + 64, dx : dx + 64]
            loss = loss_of(net(x.contiguous(memory_format=torch.channels_last)), rows_of_batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        print(
            f"  epoch {epoch + 1}/{epochs}: loss {total * batch / len(rows):.4f} ({time.time() - start:.0f} s)",
            flush=True,
        )
    net.eval()


@torch.no_grad()
def run(model, images: Tensor) -> Tensor | dict[str, Tensor]:
    parts = [model(x.float()) for x in images.split(500)]
    if isinstance(parts[0], dict):
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}
    return torch.cat(parts)


def calibrate(net: CompactNet, images: Tensor, targets: dict[str, Tensor], rows: Tensor) -> None:
    """Vector scaling (Guo et al. 2017) on rows the network was not trained on, folded into its heads."""
    logits = run(net, images[rows])
    for name, target in targets.items():
        known = target[rows].sum(1) > 0
        x, y = logits[name][known], target[rows][known]
        scale, bias = torch.ones(1, requires_grad=True), torch.zeros(y.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([scale, bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure(x=x, y=y, scale=scale, bias=bias, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(x * scale + bias, y)
            loss.backward()
            return loss

        optimizer.step(closure)
        head = net.heads[name]
        with torch.no_grad():
            head.weight.mul_(scale)
            head.bias.mul_(scale).add_(bias - bias.mean())
        print(f"  {name}: temperature {1 / float(scale):.2f}")


# --- figures --------------------------------------------------------------------------------------------------


def report_labels(name: str, probabilities: dict[str, Tensor], targets: dict[str, Tensor], gate: float) -> None:
    print(f"\n### {name}: on the {TEST:,} held-out latents, against its own teacher\n")
    for attribute, p in probabilities.items():
        values = ATTRIBUTES[attribute]
        known = targets[attribute].sum(1) > 0
        p, target = p[known], targets[attribute][known]
        truth, guess = target.argmax(1), p.argmax(1)
        one_vs_rest = [roc_auc_score(truth == k, p[:, k]) for k in range(len(values))]
        confident, right = p.amax(1), (guess == truth).float()
        expected = target.gather(1, guess[:, None])[:, 0]
        bins = (confident * 10).long().clamp_max(9)
        ece = sum(
            float((bins == b).float().mean() * (expected[bins == b].mean() - confident[bins == b].mean()).abs())
            for b in bins.unique()
        )
        sure = confident >= gate
        print(
            f"**{attribute}**: accuracy {right.mean():.3f}, AUC "
            + ", ".join(f"{v} {a:.3f}" for v, a in zip(values, one_vs_rest, strict=True))
            + f"; calibration error {ece:.3f}; unsure (below {gate}) {1 - sure.float().mean():.1%}, "
            f"accuracy of the rest {right[sure].mean():.3f}\n"
        )
        print_confusion("teacher", values, "network", values, truth, guess)


def print_confusion(
    row_title: str,
    row_names: tuple[str, ...],
    title: str,
    names: tuple[str, ...],
    rows: Tensor,
    columns: Tensor,
) -> None:
    print(f"| {row_title} ↓ {title} → | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    for i, row in enumerate(row_names):
        counts = torch.bincount(columns[rows == i], minlength=len(names))
        print(f"| {row} | " + " | ".join(f"{int(c)}" for c in counts) + " |")
    print()


def report_embedder(embedding: Tensor, teacher: Tensor) -> None:
    print(f"\n### embedder: on the {TEST:,} held-out latents, against the teacher's descriptors\n")
    half = len(embedding) // 2
    ours = (embedding[:half] * embedding[half:]).sum(1)
    theirs = (teacher[:half] * teacher[half:]).sum(1)
    correlation = float(torch.corrcoef(torch.stack((ours, theirs)))[0, 1])
    print(f"cosine to the teacher's vector of the same image: mean {(embedding * teacher).sum(1).mean():.3f}")
    print(f"cosine of {half:,} pairs of different faces: ours {ours.mean():.3f} (SD {ours.std():.3f}), ", end="")
    print(f"teacher {theirs.mean():.3f} (SD {theirs.std():.3f}); correlation of the two {correlation:.3f}")
    top = (embedding @ teacher.T).topk(1, dim=1).indices[:, 0] == torch.arange(len(teacher))
    print(f"share whose nearest teacher vector among {len(teacher):,} is its own: {top.float().mean():.3f}")


def save(out: Path, name: str, model: torch.nn.Module, config: dict) -> None:
    """Half precision: the outputs move by less than a grey level, and the package stays small."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"demo_{name}.safetensors"
    save_file(state, path, {"format": "fairface_synth.demo/1", "config": json.dumps(config)})
    parameters = sum(p.numel() for p in model.parameters())
    print(f"  wrote {path} ({parameters / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.2f} MB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the generator and the teacher labels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "fairface_synth/models/weights")
    parser.add_argument("--only", nargs="*", choices=list(EPOCHS), help="train these alone")
    parser.add_argument("--epochs", type=int, help="override, for a quick try")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums then come out the same on any number of cores

    data = load_file(args.data / "teacher_labels.safetensors")
    generator = DCGANGenerator()
    generator.load_state_dict(load_file(args.data / "generator.safetensors"), strict=False)
    save(args.out, "generator", generator, generator.config)
    with torch.no_grad():
        images = torch.cat([generator.synthesize(z[:, None]).half() for z in data["z"].split(500)])
    reference = ((images[:16].float() + 1) * 127.5).round().clamp(0, 255)
    print(f"largest difference to the reference images: {(reference - data['reference_images']).abs().max():.0f} / 255")

    scores = torch.stack(
        (data["gender_logit_a"], data["gender_logit_a_deep"], data["female_probability_b"].logit(eps=1e-4)),
        dim=1,
    ).double()
    called = (scores > 0).double().mean(0).tolist()
    correlation = float(torch.corrcoef(scores.T)[1, 2])
    print(
        f"called female: by A {called[0]:.1%}, A-deep {called[1]:.1%}, B {called[2]:.1%}; "
        f"correlation of A-deep and B {correlation:.2f}"
    )
    latent_class = LatentClass.fit(scores)
    print(f"latent-class model: share female {latent_class.share:.3f}")
    trained: dict[str, CompactLabeller] = {}
    for name in args.only or EPOCHS:
        torch.manual_seed(SEED[name])
        split = torch.randperm(len(images) - TEST, generator=torch.Generator().manual_seed(SEED[name]))
        test = torch.arange(len(images) - TEST, len(images))
        epochs = args.epochs or EPOCHS[name]
        print(f"\n{name}: {epochs} epochs", flush=True)
        if name == "embedder":
            net = CompactNet({"embedding": data["descriptor"].shape[1]}, WIDTH[name])
            descriptor = F.normalize(data["descriptor"].float(), dim=1)
            train(
                net,
                images,
                lambda out, i, d=descriptor: descriptor_loss(out["embedding"], d[i]),
                split,
                epochs,
                SEED[name],
            )
            report_embedder(run(CompactEmbedder(net), images[test]), descriptor[test])
            save(args.out, name, net, net.config)
            continue
        targets = teacher_targets(name, data, images, latent_class, scores)
        net = CompactNet({a: len(v) for a, v in ATTRIBUTES.items()}, WIDTH[name])
        train(
            net,
            images,
            lambda out, i, t=targets: label_loss(out, t, i),
            split[CALIBRATION:],
            epochs,
            SEED[name],
        )
        calibrate(net, images, targets, split[:CALIBRATION])
        trained[name] = CompactLabeller(net, ATTRIBUTES)
        report_labels(name, run(trained[name], images[test]), {a: t[test] for a, t in targets.items()}, gate=0.6)
        save(args.out, name, net, {**net.config, "attributes": ATTRIBUTES})
    if {"labeller", "judge"} <= trained.keys():
        compare(trained["labeller"], trained["judge"], images[-TEST:])


def teacher_targets(
    name: str, data: dict[str, Tensor], images: Tensor, latent_class: LatentClass, scores: Tensor
) -> dict[str, Tensor]:
    """Target distributions per attribute; a row of zeros where the teacher is silent."""
    if name == "labeller":
        female = latent_class.posterior(scores, slice(0, 2)).float()
        tone = tone_target(polygon_ita(images.float(), data["landmarks"].float().view(-1, 68, 2)))
        age, cuts = age_target((data["age_a"] + data["age_a_deep"]) / 2)
    else:
        female = latent_class.posterior(scores, slice(2, 3)).float()
        faces = detect(images)
        tone = tone_target(cheek_ita(images.float(), faces.landmarks)) * faces.found(0.95)[:, None]
        age, cuts = age_target(data["age_b"])
        print(f"  MTCNN finds a face (≥ 0.95) in {faces.found(0.95).float().mean():.1%} of the images")
    shares = tone.sum(0) / tone.sum()
    print("  tones: " + ", ".join(f"{v} {s:.1%}" for v, s in zip(ATTRIBUTES["skin_tone"], shares, strict=True)))
    print(f"  age cuts of the teacher: {cuts} years; female {female.mean():.1%}")
    return {"gender": torch.stack((female, 1 - female), dim=1), "skin_tone": tone, "age": age}


def detect(images: Tensor):
    """MTCNN over all images."""
    detector = ffs.load_detector()
    parts = [detector(x.float()) for x in images.split(500)]
    return type(parts[0])(*(torch.cat([getattr(p, f) for p in parts]) for f in parts[0].__dataclass_fields__))


def label_loss(out: dict[str, Tensor], targets: dict[str, Tensor], rows: Tensor) -> Tensor:
    return sum((F.cross_entropy(out[a], t[rows], reduction="none") * t[rows].sum(1)).mean() for a, t in targets.items())


def descriptor_loss(out: Tensor, teacher: Tensor) -> Tensor:
    """Distance to the teacher's vector, and to its cosines with the rest of the batch, which is what users compare."""
    ours = F.normalize(out, dim=1)
    relation = (ours @ ours.T - teacher @ teacher.T).square().mean()
    return (1 - (ours * teacher).sum(1)).mean() + 10 * relation


def compare(labeller: CompactLabeller, judge: CompactLabeller, images: Tensor) -> None:
    """Labeller against judge on latents that neither has seen: the noise to expect in every hit rate."""
    labels, judged = run(labeller, images), run(judge, images)
    print("\n### labeller against judge, held-out latents\n")
    for attribute, values in ATTRIBUTES.items():
        a, b = labels[attribute], judged[attribute]
        print(f"**{attribute}**: agreement {(a.argmax(1) == b.argmax(1)).float().mean():.3f}\n")
        print_confusion("labeller", values, "judge", values, a.argmax(1), b.argmax(1))


if __name__ == "__main__":
    main()
