"""A set's README.md, in words and tables, from what `write_datasheet` measured: nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..groups import Groups
from ..reports import markdown_table, share_text
from .plan import DatasetPlan

FIGURE_GROUPS = 24  # more do not fit into a figure
_WIDE = 12  # groups beyond which a table of groups × groups cannot be read

Section = dict[str, Any]


def summary(record: Section) -> str:
    """What the set is, in a sentence."""
    counts, plan = record["counts"], record["plan"]
    return (
        f"{counts['images']:,} synthetic face images of {counts['identities']:,} identities in {len(plan['quota'])} "
        f"groups, {plan['images_per_identity']} of each identity, made with fairface_synth "
        f"{record['versions']['fairface_synth']} from a plan (seed {plan['seed']})."
    )


def headline(record: Section) -> str:
    """What everybody should know before using the groups, in a sentence."""
    told = [_agreement(record, who) for who in ("labeller", "judge") if record["shares"][who]["measured"]]
    if not told:
        return "Groups are what faces were made for; no labeller has looked at them."
    text = "; ".join(told)
    return f"{text[0].upper()}{text[1:]}."


def readme(
    record: Section, plan: DatasetPlan, groups: Groups, figures: list[str], numbered: Mapping[str, str] | None = None
) -> str:
    """The whole page, in Markdown, from the content of dataset.json.

    Args:
        record: what dataset.json holds.
        plan: of the set.
        groups: of the labeller.
        figures: their names.
        numbered: {what a value is called in the figures: value}, where that differs.
    """
    audit = record["audit"]
    measured = (
        "all identities"
        if audit["identities"] == audit["of"]
        else f"{audit['identities']:,} of {audit['of']:,} identities"
    )
    others = "; labels also of one other image of each, drawn by the seed" if plan.images_per_identity > 1 else ""
    shares = [f"![shares as labelled](figures/{f}.png)" for f in figures if f.startswith("shares")]
    parts = [
        "# A set of synthetic faces",
        summary(record),
        f"**{headline(record)}**",
        "Everything here is also in `dataset.json`, with all groups and digits. Every number in brackets is a 95 % "
        f"interval. Measured on the face (image 0) of {measured}, as stored, spread evenly over every group{others}. "
        f"Labels below a confidence of {audit['min_confidence']:g} count as unsure.",
        f"![faces, a row for each group that was aimed at](figures/faces.png)\n\nFaces (image 0) by the group that "
        f"they were made for (at most {FIGURE_GROUPS} groups). {_numbered_text(numbered or {})}".strip(),
        "## How it was made",
        _how(record),
        "## Groups",
        _groups_table(record, groups),
        *shares,
        _labels_text(record, "labeller"),
        _labels_text(record, "judge"),
        _true_text(record, groups),
        _found_text(record),
        "## Identities",
        _gate_text(record, plan),
        *(["![nearest earlier identity](figures/nearest.png)"] if "nearest" in figures else []),
        "### The same person in every image",
        _same_text(record["same person"]),
        *(["![variations](figures/same_person.png)"] if "same_person" in figures else []),
        "### Leakage of training faces",
        _leakage_text(record["leakage"]),
        "## How to read it",
        _reading(plan),
        "## Files",
        _files(record, plan),
        "## Licence",
        _table(["field", ""], list({**record["licence"], **_licence_link(record)}.items())),
        "## Limits",
        "\n".join(f"- {limit}" for limit in record["limits"]),
        "## Versions and command",
        ", ".join(f"{name} {v}" for name, v in record["versions"].items()) + ".",
        f"```\n{record['command']}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _agreement(record: Section, who: str) -> str:
    sections = _face_and_other(record, who)
    face, other = (_text(s["labelled as aimed"]["all"]) if s["measured"] else None for s in sections)
    chosen = ", which selected the faces," if who == "labeller" and record["plan"]["verify"] else ""
    if other is None:
        return f"the {who}{chosen} sees the intended group in {face} of the faces"
    return (
        f"the {who}{chosen} sees the intended group in {face} of the faces (image 0) and {other} of the other "
        "images (variations)"
    )


def _face_and_other(record: Section, who: str) -> tuple[Section, Section]:
    """Labels of the faces, and of one variation of each identity."""
    return record["shares"][who], record["shares"]["variations"][who]


def _numbered_text(numbered: Mapping[str, str]) -> str:
    named = ", ".join(f"{number} is {value}" for number, value in numbered.items())
    return f"In the figures, whose font lacks letters of these names, {named}." if named else ""


def _licence_link(record: Section) -> dict[str, str]:
    return {"text": "[LICENSE](LICENSE)"} if "LICENSE" in record["files"] else {}


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A table whose cells, names of groups among them, may hold anything."""
    return markdown_table([_cell(x) for x in header], [[_cell(x) for x in row] for row in rows])


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _how(record: Section) -> str:
    plan = record["plan"]
    facts = {
        "plan": f"{record['plan digest']}, seed {plan['seed']}",
        "method": plan["method"],
        "truncation ψ": f"{plan['truncation_psi']:g}",
        "faces confirmed by the labeller": "yes (verify)" if plan["verify"] else "no",
        "identities new to each other": "not checked"
        if plan["fmr"] is None
        else f"at a false match rate of {plan['fmr']:g}",
        "variations": "steps along the axes"
        if record["describe"].get("axes")
        else f"moved by {plan['perturbation']:g} towards other faces of the group",
        "variations held to the same person": "yes" if plan["same_person"] else "no",
        "images": f"{plan['image_format']}, quality {plan['quality']}, {plan['subsampling']}"
        if plan["image_format"] == "jpeg"
        else plan["image_format"] + (f", quality {plan['quality']}" if plan["image_format"] == "webp" else ""),
        **_prints(record),
        **{k: _plain(v) for k, v in record["describe"].items()},
    }
    if plan["size"] is not None:
        facts["size"] = f"{plan['size']} px" + (f", aligned ({plan['crop']})" if plan["crop"] else "")
    return _table(["", ""], list(facts.items()))


def _prints(record: Section) -> dict[str, str]:
    """Hashes of models and other tensors; settings as they are, but for those that are told already."""
    rows = {}
    for name, value in record["fingerprint"].items():
        if name == "generator dtype":
            rows[name] = value
        elif name == "threshold" and record["identity"]["gate"].get("threshold") is not None:
            rows["threshold, given"] = f"{record['identity']['gate']['threshold']:g}"
        elif name != "min_confidence":  # which is told above and, by `export`, in the description
            rows[f"{name}, hash"] = f"`{value}`"
    return rows


def _plain(value: object) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _not(section: Section) -> str:
    return f"not measured: {section['why']}."


def _text(section: Section | None) -> str:
    if section is None or section["share"] is None:
        return "–"
    return share_text(section["share"], section["low"], section["high"])


def _shown(record: Section, groups: Groups) -> list[str]:
    """Groups with a row in the README: those aimed at and those that were labelled."""
    sections = [record["shares"][who] for who in ("labeller", "judge")]
    seen = {n for s in sections if s["measured"] for n, row in s["groups"].items() if row["count"]}
    return [name for name in groups.names if name in seen or name in record["shares"]["aimed"]]


def _groups_table(record: Section, groups: Groups) -> str:
    shares, total = record["shares"], record["counts"]["identities"]
    header, rows = ["group", "identities", "images", "share"], []
    sections = {
        "labeller": shares["labeller"],
        "judge": shares["judge"],
        "corrected": shares["true"],
        "variations, labeller": shares["variations"]["labeller"],
        "variations, judge": shares["variations"]["judge"],
    }
    columns = {title: section for title, section in sections.items() if section["measured"]}
    for name in _shown(record, groups):
        aimed = shares["aimed"].get(name, {"identities": 0, "images": 0})
        row = [name, f"{aimed['identities']:,}", f"{aimed['images']:,}", f"{100 * aimed['identities'] / total:.1f} %"]
        rows.append([*row, *(_text(s["groups"][name]) for s in columns.values())])
    unsure = [f"{s['unsure']:,} of {s['total']:,}" if "unsure" in s else "–" for s in columns.values()]
    if columns:
        rows.append(["unsure", "", "", "", *unsure])
    table = _table([*header, *(f"{title} [95 %]" for title in columns)], rows)
    others = "; variations: of one other image of each" if any(t.startswith("variations") for t in columns) else ""
    return (
        "Identities and images are counted by the group that they were made for. Shares by a model are those of the "
        f"audited identities' faces (image 0){others}.\n\n{table}"
    )


def _labels_text(record: Section, who: str) -> str:
    (section, other), title = _face_and_other(record, who), f"### What the {who} says"
    if not section["measured"]:
        return f"{title}\n\n{_not(section).capitalize()}"
    matrix, as_aimed = section["aimed × labelled"], section["labelled as aimed"]
    used = [i for i, _ in enumerate(matrix["columns"]) if any(row[i] for row in matrix["counts"])]
    lines = [title, *([section["note"]] if section["note"] else [])]
    lines.append(f"Labelled as aimed: {_counted_text(as_aimed['all'], 'faces (image 0)')}.")
    header = ["aimed at", "faces", "labelled as aimed [95 %]"]
    rows = [[n, f"{as_aimed[n]['total']:,}", _text(as_aimed[n])] for n in matrix["rows"]]
    if other["measured"]:
        varied = other["labelled as aimed"]
        lines[-1] += f" Of as many variations: {_counted_text(varied['all'], 'images')}."
        header.append("variations [95 %]")
        rows = [[*row, _text(varied[row[0]])] for row in rows]
    if len(used) <= _WIDE:
        header += [f"→ {matrix['columns'][i]}" for i in used]
        rows = [[*row, *(f"{counts[i]:,}" for i in used)] for row, counts in zip(rows, matrix["counts"], strict=True)]
    lines.append(_table(header, rows))
    return "\n\n".join(lines)


def _counted_text(section: Section, unit: str) -> str:
    return f"{section['count']:,} of {section['total']:,} {unit}, {_text(section)}"


def _true_text(record: Section, groups: Groups) -> str:
    section, title = record["shares"]["true"], "### Corrected for the labeller's errors"
    if "confusion" not in section:
        return f"{title}\n\n{_not(section).capitalize()}"
    lines = [title]
    if section["measured"]:
        lines.append(
            f"True shares of the faces (image 0) are in the table of groups (method {section['method']}, error "
            f"{section['error']:g}). They hold if the labeller errs on these faces as it did where its "
            "confusion was measured."
        )
    else:
        lines.append(_not(section).capitalize())
    confusion = section["confusion"]
    for attribute, counts in confusion["counts"].items():
        values = groups.attributes.get(attribute, groups.names)
        if len(values) > _WIDE:
            lines.append("The confusion matrix is in dataset.json.")
            continue
        unit = "probabilities" if confusion["exact"] else "faces"
        name = "groups" if attribute not in groups.attributes else attribute
        lines.append(f"Confusion of the labeller, {name}, measured elsewhere ({unit}; row: truth):")
        rows = [[v, *(f"{c:g}" for c in row)] for v, row in zip(values, counts, strict=True)]
        lines.append(_table(["truth", *(f"→ {v}" for v in values)], rows))
    return "\n\n".join(lines)


def _found_text(record: Section) -> str:
    section = record["faces found"]
    text = (
        _not(section) if not section["measured"] else f"{section['count']:,} of {section['total']:,}, {_text(section)}."
    )
    return f"Faces (image 0) in which a detector finds one: {text}"


def _gate_text(record: Section, plan: DatasetPlan) -> str:
    identity, gate = record["identity"], record["identity"]["gate"]
    kinds = ("candidates", "confirmed", "duplicates", "leaks", "accepted")
    counts = {kind: gate[kind] for kind in kinds if isinstance(gate.get(kind), dict)}
    if len(counts) == len(kinds):
        refused = ("duplicates", "leaks", "accepted")
        counts["not needed"] = {n: c - sum(counts[kind][n] for kind in refused) for n, c in counts["confirmed"].items()}
    rows = [[n, *(f"{c[n]:,}" if n in c else "–" for c in counts.values())] for n in plan.quota]
    lines = [
        "Candidates drawn, confirmed by the models, refused as duplicates of an earlier identity or as too near a "
        "reference face (leaks), accepted, and not needed, the group being full already:",
        _table(["group", *counts], rows),
    ]
    if gate.get("threshold") is not None:
        rate = "not stated" if gate.get("fmr") is None else f"{gate['fmr']:g}"
        given = (
            " This cosine was given (threshold); the export did not measure that rate at it."
            if "threshold" in record["fingerprint"]
            else ""
        )
        lines.append(f"Two faces match at a cosine of {gate['threshold']:.4g} (false match rate {rate}).{given}")
    nearest, pairs = identity["nearest earlier identity"], identity["matching pairs"]
    agree = identity["stored images against stored embeddings"]
    lines.append("Largest cosine to an identity accepted earlier: " + _spread_text(nearest, "identities"))
    text = (
        "{matched:,} of {pairs:,} ({embeddings}). The gate leaves none, up to rounding.".format(**pairs)
        if pairs["measured"]
        else ""
    )
    lines.append(f"Matching pairs among the audited identities: {text or _not(pairs)}")
    lines.append("Cosine of the stored faces to embeddings.npy: " + _spread_text(agree, "faces"))
    return "\n\n".join(lines)


def _spread_text(section: Section, unit: str) -> str:
    if not section.get("measured", True):
        return _not(section)
    return (
        f"of {section['n']:,} {unit}, median {section['median']:g}, 90 % from {section['5 %']:g} to "
        f"{section['95 %']:g}, highest {section['highest']:g}, lowest {section['lowest']:g}."
    )


def _same_text(section: Section) -> str:
    if not section["measured"]:
        return _not(section).capitalize()
    lines = [
        f"{section['images']:,} variations of {section['identities']:,} identities. Cosine to the identity's face: "
        + _spread_text(section["cosine"], "images")
    ]
    if "all" in section:
        rows = [[n, f"{s['identities']:,}", _text(s)] for n, s in {"all": section["all"], **section["groups"]}.items()]
        lines += [_table(["group", "identities", "share that matches [95 %]"], rows), section["interval"] + "."]
    else:
        lines.append(f"No share that matches: {section['why no share']}.")
    return "\n\n".join(lines)


def _leakage_text(section: Section) -> str:
    if not section["measured"]:
        return _not(section).capitalize()
    lines = [
        f"{section['references']:,} training faces. Largest cosine to one: " + _spread_text(section["cosine"], "faces")
    ]
    if "all" not in section:
        return "\n\n".join([*lines, f"No share: {section['why no share']}."])
    rows = [[n, f"{s['total']:,}", _text(s)] for n, s in {"all": section["all"], **section["groups"]}.items()]
    lines.append(_table(["group", "faces", "at or above the threshold [95 %]"], rows))
    lines.append(
        "Shares alone do not show leakage: that takes a control set of faces that cannot derive from the training set."
    )
    if section["by chance"] is not None:
        chance = f"{100 * section['by chance']:.1f} %"
        lines.append(f"By chance alone {chance} of faces would be, were comparisons independent.")
    if section["gate references"]:
        lines.append(
            f"The identity gate compared every face with {section['gate references']:,} reference faces and refused "
            "those at or above the threshold, so this embedder finds none that is left of these."
        )
    return "\n\n".join(lines)


def _reading(plan: DatasetPlan) -> str:
    last = plan.shard(plan.shards - 1).name
    tars = f"shards/{{00000..{last}}}.tar" if plan.shards > 1 else "shards/00000.tar"
    code = {
        "webdataset": f'import webdataset\n\ntars = webdataset.WebDataset("{tars}", shardshuffle=False).decode("pil")',
        "folders": 'from torchvision.datasets import ImageFolder\n\nimages = ImageFolder("images")',
        "rec": "# train.rec and train.idx are what InsightFace's own loader reads",
        "parquet": 'import datasets\n\nrows = datasets.load_dataset("parquet", data_files="shards/*.parquet")',
    }[plan.layout]
    return (
        f'```py\nimport fairface_synth as ffs\n\ndata = ffs.open_dataset(".")\n\n'
        f"# or with other tools:\n{code}\n```\n\n"
        "`ffs.regenerate` makes any image again from its stored latent. `fairface-synth verify .` checks every file "
        "against its checksum and finds what is missing or double."
    )


def _files(record: Section, plan: DatasetPlan) -> str:
    where = {
        "webdataset": ("shards/*.tar", "images, in the order of their numbers"),
        "folders": (f"images/<identity>/<place>.{plan.extension}", "images"),
        "rec": ("train.rec, train.idx, property", "images, as InsightFace stores them"),
        "parquet": ("shards/*.parquet", "images and index together"),
    }[plan.layout]
    rows = [
        ("shards/*.parquet", "the index: a row an image, with key, identity, place, group, file, digest, latents"),
        ("shards/*.json", "sidecars: a shard is done; sizes and SHA-256 of its files"),
        ("identities.parquet", "a row an identity"),
        ("latents.npy", "the identities' own latents w"),
        ("embeddings.npy", "their embeddings"),
        ("gate.json", "what the identity gate counted"),
        ("plan.json, parts.json", "the plan and the parts it was filled with"),
        ("dataset.json, croissant.json", "this page for machines"),
        ("LICENSE", "the licence"),
    ]
    absent = {where[0], *({"embeddings.npy", "LICENSE"} - record["files"].keys())}
    table = _table(
        ["file", "what"], [[f"`{n}`", what] for n, what in (where, *(r for r in rows if r[0] not in absent))]
    )
    size = record["counts"]["bytes"] + sum(f["bytes"] for f in record["files"].values())
    return f"{table}\n\n{size / 1e6:,.1f} MB in {record['counts']['shards']:,} shards."
