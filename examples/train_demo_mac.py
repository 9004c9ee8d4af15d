"""Make the bundled attribute classifier (MAC) from what large teachers say of the bundled generator's faces.

    python examples/train_demo_mac.py --data DIR [--out fairface_synth/models/weights]

DIR holds `generator.safetensors` and `teacher_labels.safetensors` (docs/demo_world.md says what they are).
Deterministic; a few minutes on one thread. The script prints the tables of docs/annotation.md: figures on the last
4,000 latents, which neither the embedder nor the classifier has seen, against the teachers' own labels.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from train_demo_models import TEST, LatentClass, polygon_ita

from fairface_synth.attribute_classifier import MAC, MACReport, train_mac
from fairface_synth.attribute_schema import AttributeSchema
from fairface_synth.embeddings import embed
from fairface_synth.images import rgb_to_lab
from fairface_synth.models.demo import load_demo
from fairface_synth.reports import markdown_table

SETTINGS = {
    "hidden": 256,
    "branch": 32,
    "epochs": 30,
    "batch_size": 512,
    "lr": 3e-3,
    "weight_decay": 0.05,
    "seed": 4,
    "progress": False,
}
WEAK = 0.8  # held-out balanced accuracy at the class-weighted threshold, below which an attribute is flagged
SOURCE = "fairface_synth's bundled world: teachers' labels of generated faces, docs/annotation.md"


# --- labels from the teachers -----------------------------------------------------------------------------------------


def band(values: Tensor, absent: float, present: float) -> Tensor:
    """1 beyond `present`, −1 beyond `absent`, 0 between them; `present` may be the smaller of the two."""
    sign = 1 if present > absent else -1
    return (sign * values >= sign * present).to(torch.int8) - (sign * values <= sign * absent).to(torch.int8)


def teacher_labels(data: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """{attribute: int8 [n] in {−1, 0, 1}}."""
    points = data["landmarks"].float().view(-1, 68, 2)
    female, age = female_probability(data), (data["age_a"] + data["age_a_deep"]).float() / 2
    thirds = [float(age.quantile(q)) for q in (0.3, 0.37, 0.63, 0.7)]
    tone = polygon_ita(images.float(), points)
    expression = dict(zip(EXPRESSIONS, data["expression"].float().T, strict=True))
    turn, open_ = nose_offset(points), mouth_opening(points)
    level, side = illumination(images, points)
    return {
        "Looks_Female": band(female, 0.2, 0.8),
        "Looks_Younger": band(age, thirds[1], thirds[0]),
        "Looks_Older": band(age, thirds[2], thirds[3]),
        "Light_Tone": band(tone, 18, 38),
        "Dark_Tone": band(tone, -20, -40),
        **{
            name.title(): band(expression[name], 0.2, 0.6) for name in ("neutral", "happy", "sad", "angry", "surprised")
        },
        "Mouth_Open": band(open_, 0.1, 0.2),
        "Turned_Left": band(turn, -0.05, -0.15),
        "Turned_Right": band(turn, 0.05, 0.15),
        "Brighter_Left": band(side, -3, -9),
        "Brighter_Right": band(side, 3, 9),
        "Bright_Face": band(level, 30, 40),
    }


EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")


def female_probability(data: dict[str, Tensor]) -> Tensor:
    """Teacher A's calibrated posterior, as the labeller is trained on."""
    scores = torch.stack(
        (data["gender_logit_a"], data["gender_logit_a_deep"], data["female_probability_b"].logit(eps=1e-4)), dim=1
    ).double()
    return LatentClass.fit(scores).posterior(scores, slice(0, 2)).float()


def nose_offset(points: Tensor) -> Tensor:
    """Where the nose's tip is between the outer corners of the eyes, in eye distances; positive: viewer's right."""
    left, right, nose = points[:, 36], points[:, 45], points[:, 30]
    along = right - left
    return ((nose - (left + right) / 2) * along).sum(1) / along.square().sum(1)


def mouth_opening(points: Tensor) -> Tensor:
    """Gap between the lips over the mouth's width."""
    gap = (points[:, 66] - points[:, 62]).norm(dim=1)
    return gap / (points[:, 54] - points[:, 48]).norm(dim=1)


def illumination(images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean L* of the box around brows, eyes, nose and mouth, and that of its right half (as seen) less its left."""
    side = images.shape[-1]
    low, high = points[:, 17:].amin(1) * side, points[:, 17:].amax(1) * side
    grid = torch.arange(side) + 0.5
    x, y = grid.view(1, 1, -1), grid.view(1, -1, 1)
    inside = (x > low[:, 0, None, None]) & (x < high[:, 0, None, None])
    inside = inside & (y > low[:, 1, None, None]) & (y < high[:, 1, None, None])
    right = x > (low[:, 0] + high[:, 0])[:, None, None] / 2
    lightness = torch.cat([rgb_to_lab(part.float())[:, 0] for part in images.split(1000)])

    def mean(mask: Tensor) -> Tensor:
        return (lightness * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)

    return mean(inside), mean(inside & right) - mean(inside & ~right)


# --- the classifier ---------------------------------------------------------------------------------------------------


def stored(mac: MAC) -> MAC:
    """As it will be loaded: weights rounded to half precision."""
    return mac.to(dtype=torch.float16).to(dtype=torch.float32)


def described(mac: MAC, report: MACReport) -> MAC:
    """With the figures of the held-out latents, and weak attributes flagged with theirs."""
    weak = {
        name: f"held-out balanced accuracy {row['weighted_accuracy']:.2f} against the teachers"
        for name, row in report.to_dict().items()
        if row["weighted_accuracy"] < WEAK
    }
    metrics = {name: getattr(report, name) for name in mac.metrics}
    training = {**mac.training, "figures": f"of the last {TEST} latents"}
    return dataclasses.replace(mac, metrics=metrics, noisy=weak, training=training)


def print_reliability(mac: MAC, embeddings: Tensor, labels: Tensor) -> None:
    """Share right among the more and the less reliable half of each attribute's predictions."""
    p, reliability = mac.predict(embeddings)
    rows = []
    for k, name in enumerate(mac.names):
        known = labels[:, k] != 0
        right = ((p[known, k] >= 0.5) == (labels[known, k] > 0)).float()
        sure = reliability[known, k] > reliability[known, k].median()
        rows.append([name, f"{right.mean():.3f}", f"{right[sure].mean():.3f}", f"{right[~sure].mean():.3f}"])
    print(markdown_table(["attribute", "all", "more reliable half", "less reliable half"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the generator and the teacher labels")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "fairface_synth/models/weights")
    args = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums then come out the same on any number of cores

    start, world = time.time(), load_demo()
    data = load_file(args.data / "teacher_labels.safetensors")
    with torch.no_grad():
        images = torch.cat([world.generator.synthesize(z[:, None]).half() for z in data["z"].float().split(500)])
    embeddings = embed(world.embedder, (part.float() for part in images.split(500)), progress=False)
    named = teacher_labels(data, images)
    schema, labels = AttributeSchema(tuple(named), source=SOURCE), torch.stack(list(named.values()), dim=1)

    mac = stored(train_mac(embeddings[:-TEST], labels[:-TEST], range(len(labels) - TEST), schema=schema, **SETTINGS))
    report = mac.evaluate(embeddings[-TEST:], labels[-TEST:])
    mac = described(mac, report)
    path = args.out / "demo_mac.safetensors"
    half = mac.to(dtype=torch.float16)
    dataclasses.replace(half, metrics=mac.metrics).save(path)

    print(f"\n### on the {TEST:,} held-out latents, against the teachers\n\n{mac.report()}\n")
    print_reliability(mac, embeddings[-TEST:], labels[-TEST:])
    print(f"\nkept epoch {mac.training['epoch']} of {mac.training['epochs']}; {time.time() - start:.0f} s in all")
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
