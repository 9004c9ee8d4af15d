"""The library's messages speak of keywords and functions; users of the command line know options.

Messages name keywords as Python calls take them (`fmr=None`, `overwrite=True`), and options are called like the
keywords, with few exceptions: so most is put into options by rule (`--fmr none`, `--overwrite`). What speaks of
functions stands in a table.
"""

from __future__ import annotations

import re

import click

KEYWORDS = {"truncation_psi": "psi", "root": "images"}  # whose options are called otherwise

PHRASES = {
    "a folder that Pipeline.save wrote": "a folder that `fairface-synth fit` wrote",
    "the file that Pipeline.save wrote": "the file that `fairface-synth fit` wrote",
    "pipeline.save(folder) writes one whole or not at all": "`fairface-synth fit` writes one whole or not at all",
    "a folder that ffs.export wrote": "a folder that `fairface-synth export` wrote",
    "verify_dataset(folder, repair=True)": "`fairface-synth verify FOLDER --repair`",
    "verify_dataset(path, generator, repair=True) (--repair)": "--repair with the generator (--generator)",
    "generator=ffs.load_generator(…) of the same file": "--generator with the file of the export",
    "make a plan with plan_dataset": "export again to a new folder",
    "a larger budget in the plan": "a larger --budget",
    "label a bank with that truncation_psi, and fit the pipeline on it": "`fairface-synth fit` one with that --psi",
    "label more latents": "label more latents (`fit` with a larger --n)",
    "lower the confidence gate, or evolve some latents of that group first": "or lower its --min-confidence",
    "use fewer attributes=[…]": "use fewer --attributes",
    "axes with more steps, for example Axis.spread(direction, steps=20)": "fewer images, or --axes none: it has no end",
    "fit them with fit_direction, or make axes of your own from the directions there are (ffs.Axis)": (
        "put a file for each into that folder; in Python, ffs.fit_direction(…).save(…) makes one"
    ),
    '"auto" or None': "auto or none",
    ", or rank= and world_size=": "",
    "torchrun --nproc-per-node=8 your_script.py": "torchrun --nproc-per-node 8 -m fairface_synth export …",
    "WORLD_SIZE=$TASKS python …": "WORLD_SIZE=$TASKS fairface-synth export …",
    '{"dark-female": 50_000, …}': "--quota 500 for every group, or --quota dark-female=500 for one",
    'for both, pass a list: ["…", "…"]': "for both, name one after the other",
    "plan_dataset(…, groups=pipeline.groups) divides partial names": "name the groups in full",
    "pass size=, here or to read_faces, for example size=224": "one size for all, for example --size 224",
    'or scores="its name"': "or --scores NAME",
    "labels=: a path, a dict, a frame": "--labels FILE",
    'columns={"path": "…"}': "call that column path",
    "; partial=True opens what is there": "",
    "attributes=[…] of kl_table and kl_matrix compares some that all have": (
        "annotate both with the same classifier, or cut tables down to the columns that both have"
    ),
    "too few rows for so many cells": "too few images for the n cells of --on joint; --on labels needs fewer",
    'load_embedder("/path/to/weights.pt")': "--embedder /path/to/weights.pt",
}


def in_options(text: str, command: click.Command) -> str:
    """A message of the library, in options of the command; what names no option of it stays as it is."""
    for said, meant in PHRASES.items():
        text = text.replace(said, meant)
    options = {str(p.name): p for p in command.params if isinstance(p, click.Option)}
    options |= {keyword: options[name] for keyword, name in KEYWORDS.items() if name in options}
    if not options:
        return text
    text = _CALL.sub(r"\1", text)
    names = "|".join(sorted(options, key=len, reverse=True))
    text = re.sub(rf"{_FREE}({names})=(?!=)({_VALUE})", lambda m: _given(options[m[1]], m[2]), text)
    text = re.sub(rf"{_FREE}({names}) = ([^\s;]+)(?=;|$)", lambda m: _given(options[m[1]], m[2]), text, flags=re.M)
    text = re.sub(rf"^({names})(?= is )", lambda m: _longest(options[m[1]].opts), text)  # how range checks begin
    words = "|".join(name for name in options if "_" in name or name == "fmr")  # no words of plain English
    return re.sub(rf"{_FREE}({words})(?![\w./=-])", lambda m: _longest(options[m[1]].opts), text) if words else text


# --- details ----------------------------------------------------------------------------------------------------------

_CALL = re.compile(r"\b(?:Pipeline\.fit|plan_dataset)\(…, ((?:[^()]|\([^()]*\))*)\)")
_FREE = r"(?<![\w./\-])"  # no part of a path or of another word
_VALUE = r"""'[^']*'|"[^"]*"|[\w.]+\([^()]*\)|[^\s,;:)]*"""


def _given(option: click.Option, value: str) -> str:
    """An option with a value that is written as Python has it."""
    if option.is_flag:
        off = value in ("False", "None")
        return _longest(option.secondary_opts if off and option.secondary_opts else option.opts)
    for pattern, shown in ((r"None", "none"), (r"world\.\w+", "demo"), (r".*\(.*\)", "FILE")):
        value = shown if re.fullmatch(pattern, value) else value
    return f"{_longest(option.opts)} {value.strip(chr(34) + chr(39))}".rstrip()


def _longest(opts: list[str]) -> str:
    return max(opts, key=len)
