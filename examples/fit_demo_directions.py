"""Fit the bundled world's directions to what can be measured in its images; print the tables of docs/variations.md.

    python examples/fit_demo_directions.py [--latents 8000] [--landmarks FILE]

Writes fairface_synth/models/weights/demo_directions.safetensors and docs/images/variations.png. Deterministic, from the
package alone; ten minutes on one thread. FILE holds latents `z` and 68 points `landmarks` of another network (see
docs/demo_world.md; not part of the package): with it, the measures and directions are also compared to those points.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

import fairface_synth as ffs
from fairface_synth.models.demo import demo_axes
from fairface_synth.plotting import face_grid
from fairface_synth.thresholds import ImpostorScores, impostor_scores, threshold_at_fmr
from fairface_synth.variations import Direction, Variations, edit, fit_direction, signed_distance, vary

ROOT = Path(__file__).parents[1]
NAMES = ("yaw", "mouth opening", "illumination side", "illumination level", "age")
SEED, TEST_SEED, IMPOSTOR_SEED = 7, 12, 13


# --- measures -----------------------------------------------------------------------------------------------------


def measure(images: Tensor, faces: ffs.Detections, age: Tensor) -> dict[str, Tensor]:
    """What each direction is fitted to, [n] each; meaningless where no face was found.

    Pixels are taken from the face brought to InsightFace's template (112 × 112), lightness is CIELAB's L*:
    - yaw: how far the nose lies to the viewer's right of the middle between the eyes, in eye distances;
    - mouth opening: redness a* of the lower lip minus that of the mouth's inside, over the cheeks' L* + 10 (colour
      fades in the dark). An open mouth is dark and colourless between the corners, with the lip below;
    - illumination side: mean L* of the right half of the face minus that of the left, as the viewer sees them;
    - illumination level: mean L* of the face;
    - age: the labeller's expected age third, 0 (younger) to 2 (older): apparent age, from the labeller.
    """
    left, right, nose = faces.landmarks[:, :3].unbind(1)
    between = right - left
    distance = between.norm(dim=1)
    yaw = ((nose - (left + right) / 2) * between).sum(1) / distance.square()
    lab = ffs.rgb_to_lab(ffs.align_faces(images, faces.landmarks))
    lightness, redness = lab[:, 0], lab[:, 1]
    cheeks = torch.cat((box(lightness, 64, 84, 36, 48), box(lightness, 64, 84, 64, 76)), dim=1).median(1).values
    lip, inside = box(redness, 96, 104, 47, 65).mean(1), box(redness, 86, 94, 47, 65).mean(1)
    return {
        "yaw": yaw,
        "mouth opening": (lip - inside) / (cheeks + 10),
        "illumination side": box(lightness, 40, 100, 57, 80).mean(1) - box(lightness, 40, 100, 32, 55).mean(1),
        "illumination level": box(lightness, 40, 100, 35, 77).mean(1),
        "age": age @ torch.arange(3.0),
    }


def box(channel: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Pixels [n, k] of a rectangle."""
    return channel[:, top:bottom, left:right].flatten(1)


@torch.no_grad()
def look(world, detector, w: Tensor, what: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Latents [n, 100] → face found [n], measures [n], embeddings [n, 256]."""
    found, measures, embeddings = [], [], []
    for chunk in tqdm(w.split(250), desc=what, unit="batch"):
        images = world.generator.synthesize(ffs.to_layers(world.generator, chunk))
        faces = detector(images)
        found.append(faces.found())
        measures.append(measure(images, faces, world.labeller(images)["age"]))
        embeddings.append(world.embedder(images))
    return torch.cat(found), {k: torch.cat([m[k] for m in measures]) for k in NAMES}, torch.cat(embeddings)


# --- tables -------------------------------------------------------------------------------------------------------


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])


def print_fits(directions: dict[str, Direction]) -> None:
    print(
        "\nCorrelation of signed distance and measure on held-out latents, class means, and cosines of the normals:\n"
    )
    rows = [
        [name, f"{d.quality:.2f}", f"{d.neg_mean:.2f}", f"{d.pos_mean:.2f}"]
        + [f"{float(d.normal @ other.normal):.2f}" for other in directions.values()]
        for name, d in directions.items()
    ]
    print(ffs.markdown_table(["direction", "correlation", "neg_mean", "pos_mean", *directions], rows))


def print_steps(world, detector, directions: dict[str, Direction], w: Tensor, scale: dict[str, Tensor]) -> None:
    """For every direction and step: its measure, whether face and identity survive, and what else moved."""
    steps = (-3, -2, -1, 0, 1, 2, 3)
    unedited = look(world, detector, w, "unedited")
    rows, leaks = [], []
    for name, direction in directions.items():
        seen = {
            s: look(world, detector, edit(w, direction, float(s)), f"{name} {s:+d}") if s else unedited for s in steps
        }
        means = {s: {k: v[found].mean() for k, v in measures.items()} for s, (found, measures, _) in seen.items()}
        cosine = {s: (vectors * unedited[2]).sum(1).median() for s, (*_, vectors) in seen.items()}
        rows.append([f"{name}: mean measure", *(f"{means[s][name]:.2f}" for s in steps)])
        rows.append(["face found", *(f"{seen[s][0].float().mean():.2f}" for s in steps)])
        rows.append(["median cosine", *(f"{cosine[s]:.2f}" for s in steps)])
        leaks.append([name, *(f"{(means[2][k] - means[-2][k]) / scale[k]:+.2f}" for k in NAMES)])
    print(f"\n{len(w)} fresh latents, each moved by a number of standard deviations of w along a direction:\n")
    print(ffs.markdown_table(["step", *(f"{s:+d}" for s in steps)], rows))
    print("\nFrom step −2 to +2, change of the mean of each measure in standard deviations over natural faces:\n")
    print(ffs.markdown_table(["moved along", *NAMES], leaks))


def print_variations(world, detector, w: Tensor, impostors: ImpostorScores) -> None:
    """The demo's 45 for every latent, kept at two false match rates."""
    for fmr in (0.01, 0.001):
        threshold = threshold_at_fmr(impostors, fmr)
        result = vary(
            w,
            demo_axes(world.directions),
            generator=world.generator,
            embedder=world.embedder,
            threshold=threshold,
            detector=detector,
        )
        print(f"\n{len(w)} identities × 45, {result.synthesized:,} images made; {threshold}:\n\n{result}")


def print_agreement(world, detector, directions: dict[str, Direction], file: Path, n: int) -> None:
    """Our measures and directions against the 68 points of another network."""
    data = load_file(file)
    z, points = data["z"][:n], data["landmarks"][:n].float().view(-1, 68, 2)
    found, measures, _ = look(world, detector, z, "teacher's latents")
    left, right = points[:, 36:42].mean(1), points[:, 42:48].mean(1)
    between = right - left
    yaw = ((points[:, 30] - (left + right) / 2) * between).sum(1) / between.square().sum(1)
    opening = (points[:, 66] - points[:, 62]).norm(dim=1) / (points[:, 8] - points[:, 27]).norm(dim=1)
    sane = found & (opening < 0.5) & (between.norm(dim=1) > 0.125)
    rows = []
    for name, reference in (("yaw", yaw[sane]), ("mouth opening", opening[sane])):
        distance = signed_distance(z, directions[name])[sane]
        rows.append(
            [name, f"{correlation(measures[name][sane], reference):.2f}", f"{correlation(distance, reference):.2f}"]
        )
    print(f"\nCorrelation with the same quantity from 68 points, {int(sane.sum()):,} other latents:\n")
    print(ffs.markdown_table(["quantity", "our measure in the image", "signed distance of the latent"], rows))


def draw_picture(world, w: Tensor, path: Path) -> None:
    """Some identities × some of the 45."""
    columns = [0, 5, 14, 19, 20, 25, 34, 39, 40, 42, 44]
    result: Variations = vary(w, demo_axes(world.directions), generator=world.generator, keep_images=True)
    with torch.no_grad():
        unedited = world.generator.synthesize(ffs.to_layers(world.generator, w))
    images = torch.cat((unedited[:, None], result.images[:, columns]), dim=1)
    groups = ffs.Groups({"identity": [f"identity {i + 1}" for i in range(len(w))]})
    ids = torch.arange(len(w)).repeat_interleave(images.shape[1])
    title = "unedited; yaw (4 of 20); illumination side (4 of 20); mouth opening (3 of 5)"
    face_grid(images.flatten(0, 1), ids, groups, columns=images.shape[1], title=title).savefig(path, dpi=64)


# --- all of it ----------------------------------------------------------------------------------------------------


def save(directions: dict[str, Direction], path: Path) -> None:
    tensors = {
        f"{name}/{field}": getattr(d, field).contiguous()
        for name, d in directions.items()
        for field in ("normal", "neg_mean", "pos_mean", "offset")
    }
    config = {name: {"method": d.method, "quality": d.quality, "metric": d.metric} for name, d in directions.items()}
    save_file(tensors, path, {"format": "fairface_synth.demo/1", "config": json.dumps(config)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=8000)
    parser.add_argument("--identities", type=int, default=100, help="fresh latents for the tables")
    parser.add_argument("--impostors", type=int, default=2000, help="faces whose pairs give the threshold")
    parser.add_argument("--landmarks", type=Path, help="68 points of another network, to compare with")
    parser.add_argument("--out", type=Path, default=ROOT / "fairface_synth/models/weights")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs/images/variations.png")
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums then come out the same on any number of cores

    world, detector = ffs.load_demo(), ffs.load_detector()
    w = ffs.draw_latents(world.generator, SEED, 0, args.latents)
    found, measures, _ = look(world, detector, w, "measuring")
    print(f"MTCNN finds a face in {found.float().mean():.1%} of {args.latents:,}; the rest is left out")
    directions: dict[str, Direction] = {}
    for name in NAMES:
        # The labeller takes dark pictures for older ones; age must not be a lamp.
        others = directions.values() if name == "age" else ()
        directions[name] = fit_direction(
            w[found], measures[name][found], method="ridge", orthogonal_to=others, name=name
        )
    save(directions, args.out / "demo_directions.safetensors")
    world = ffs.load_demo()  # with the new ones
    print_fits(directions)
    if args.landmarks:
        print_agreement(world, detector, directions, args.landmarks, 3000)
    fresh = ffs.draw_latents(world.generator, TEST_SEED, 0, args.identities)
    scale = {k: measures[k][found].std() for k in NAMES}
    print_steps(world, detector, directions, fresh, scale)
    with torch.no_grad():
        impostors = ffs.draw_latents(world.generator, IMPOSTOR_SEED, 0, args.impostors)[:, None]
        vectors = torch.cat([world.embedder(world.generator.synthesize(c)) for c in impostors.split(250)])
    print_variations(
        world, detector, fresh[: args.identities // 4], impostor_scores(vectors, n_pairs=len(vectors) ** 2)
    )
    draw_picture(world, fresh[:4], args.picture)
    print(f"\n{platform.machine()}, 1 thread, torch {torch.__version__}")


if __name__ == "__main__":
    main()
