"""A set described in Croissant 1.0 (https://docs.mlcommons.org/croissant/), the format that dataset catalogues read.

Plain JSON-LD; the package mlcroissant is not needed to write it, and reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .plan import DatasetPlan
from .storage import AGAIN, load_sidecar, sidecar_path

if TYPE_CHECKING:
    import pyarrow as pa

SPECIFICATION = "http://mlcommons.org/croissant/1.0"
_SCHEMA, _CROISSANT = "https://schema.org/", "http://mlcommons.org/croissant/"
_OWN_TERMS = (
    *("citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format"),
    *("includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex"),
    *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
)
_MEDIA_TYPES: Mapping[str, str] = {
    "": "text/plain",
    ".json": "application/json",
    ".parquet": "application/x-parquet",
    ".tar": "application/x-tar",
    ".jpg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
}
_DESCRIPTIONS: Mapping[str, str] = {
    "key": "Name of the image within the set: identity_place.",
    "number": "Number of the image within the set, from 0.",
    "identity": "Number of the identity, from 0.",
    "place": "Which image of its identity: 0 is the identity's face, the others are variations of it.",
    "group": "The group that the identity was made for. No human being has confirmed it.",
    "group_id": "Number of the group, an index into the groups of parts.json.",
    "index": "Number of the candidate within its group that became the identity.",
    "file": "The file that holds the image, relative to the set.",
    "offset": "Where the image begins in the file, in bytes.",
    "bytes": "Length of the image file's contents.",
    "digest": "Hash of the image file's contents.",
    "factor": "By how much the variation's edit was shortened to stay the same person.",
    "similarity": "Cosine of the variation's embedding to that of its identity's face.",
    "aligned": "Whether the image was aligned by facial points.",
    "latents": "The latent w that the image was made from, flattened.",
    "nearest": "Largest cosine to an identity of the set that was accepted earlier.",
}


def croissant_record(
    root: Path,
    plan: DatasetPlan,
    *,
    description: str,
    licence: Mapping[str, str] | None = None,
    limits: tuple[str, ...] = (),
    files: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The Croissant record of a finished set.

    Record sets: "images" (rows of the index, and the images themselves where the layout is "parquet"), "identities",
    and "files" (image files by their names, of the layouts "folders" and "webdataset").

    Args:
        root: the set's folder, with its shards' sidecars and indexes.
        plan: of the set.
        description: one paragraph.
        licence: as `write_datasheet` has it; "name", "url", "home page", "citation", "published", "creator" are used,
            and of "text" that there is a file LICENSE.
        limits: what the data do not prove.
        files: {relative path: {"bytes", "sha256"}} of the files beside the shards.

    Raises:
        DataError: a shard without a sidecar or without an index.
    """
    terms = dict(licence or {})
    record: dict[str, Any] = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "name": f"fairface_synth-{plan.digest}",
        "description": description,
        "conformsTo": SPECIFICATION,
        "url": terms.get("home page", "./"),
        "version": "1.0.0",
        "keywords": ["synthetic faces", "demographic balance", "face recognition", *plan.quota],
        "rai:dataLimitations": list(limits),
        "rai:personalSensitiveInformation": [
            "The faces are synthetic. Their groups are perceived ones, and a face may resemble a person whose "
            "photograph the generator was trained on."
        ],
    }
    stated = [terms[key] for key in ("url", "name") if key in terms] + (["LICENSE"] if "text" in terms else [])
    if stated:
        record["license"] = stated[0]
    for name, key in (("citeAs", "citation"), ("datePublished", "published")):
        if key in terms:
            record[name] = terms[key]
    if "creator" in terms:
        record["creator"] = {"@type": "sc:Organization", "name": terms["creator"]}
    record["distribution"] = [*_file_objects(root, plan, files or {}), *_file_sets(root, plan)]
    record["recordSet"] = _record_sets(root, plan, files or {})
    return record


def read_sidecars(root: Path, plan: DatasetPlan) -> Iterator[dict[str, Any]]:
    """The sidecars of all shards, in order, one in memory at a time.

    Raises:
        DataError: one is missing, damaged, or of another plan.
    """
    for number in range(plan.shards):
        content, problem = load_sidecar(root, plan, plan.shard(number))
        if content is None:
            raise DataError(
                f"shard {number} is not finished",
                expected=f"{sidecar_path(root, plan.shard(number))}, which is written when a shard is done",
                got=problem,
                fix=AGAIN,
            )
        yield content


def hash_file(path: Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as f:
            return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}
    except OSError as error:
        raise DataError(
            f"cannot read {path}", expected="a file of a finished set", got=error, fix="run the export again"
        ) from error


# --- parts --------------------------------------------------------------------------------------------------------


def _context() -> dict[str, Any]:
    """Croissant 1.0's own @context, which readers compare with theirs."""
    return {
        "@language": "en",
        "@vocab": _SCHEMA,
        **{term: f"cr:{term}" for term in _OWN_TERMS},
        "conformsTo": "dct:conformsTo",
        "cr": _CROISSANT,
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "rai": "http://mlcommons.org/croissant/RAI/",
        "sc": _SCHEMA,
    }


def _file_objects(root: Path, plan: DatasetPlan, files: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One for each file beside the shards and each file of a shard; not one for each image of a folder."""
    objects = [_file_object(name, about) for name, about in files.items()]
    for sidecar in read_sidecars(root, plan):
        for name, about in sorted(sidecar["files"].items()):
            if name.startswith("shards/") and (root / name).is_file():
                objects.append(_file_object(name, about))
    return objects


def _file_object(name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": name,
        "contentSize": f"{about['bytes']} B",
        "encodingFormat": _MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream"),
        "sha256": about["sha256"],
    }


def _file_sets(root: Path, plan: DatasetPlan) -> list[dict[str, Any]]:
    sets = [_file_set("index", "shards/*.parquet", ".parquet", "One parquet file a shard, one row an image.")]
    if plan.layout == "folders":
        sets.append(_file_set("pictures", f"images/*/*.{plan.extension}", f".{plan.extension}", "The images."))
    if plan.layout == "webdataset":
        inside = _file_set("pictures", f"*.{plan.extension}", f".{plan.extension}", "The images in the tars.")
        inside["containedIn"] = [{"@id": name} for name in _tars(root, plan)]
        sets.append(inside)
    return sets


def _tars(root: Path, plan: DatasetPlan) -> list[str]:
    return [name for sidecar in read_sidecars(root, plan) for name in sorted(sidecar["files"]) if name.endswith(".tar")]


def _file_set(name: str, includes: str, suffix: str, description: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        "description": description,
        "encodingFormat": _MEDIA_TYPES[suffix],
        "includes": includes,
    }


def _record_sets(root: Path, plan: DatasetPlan, files: Mapping[str, Any]) -> list[dict[str, Any]]:
    index = root / "shards" / f"{plan.shard(0).name}.parquet"
    sets = [_table("images", "One row an image.", {"fileSet": {"@id": "index"}}, _schema(index))]
    if "identities.parquet" in files:
        source = {"fileObject": {"@id": "identities.parquet"}}
        columns = _schema(root / "identities.parquet")
        sets.append(_table("identities", "One row an identity.", source, columns))
    if plan.layout in ("folders", "webdataset"):
        sets.append(_pictures(plan))
    return sets


def _schema(path: Path) -> pa.Schema:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read {path}", expected="a parquet file of a finished set", got=error, fix="run the export again"
        ) from error


def _table(name: str, description: str, source: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    fields = [_field(name, column, source) for column in schema]
    key = "key" if "key" in schema.names else schema.names[0]
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": description,
        "key": {"@id": f"{name}/{key}"},
        "field": fields,
    }


def _field(table: str, column: pa.Field, source: Mapping[str, Any]) -> dict[str, Any]:
    import pyarrow as pa

    kind, lists = column.type, (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    repeated = any(is_list(kind) for is_list in lists)
    field: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{table}/{column.name}",
        "name": column.name,
        "description": _description(column),
        "dataType": _data_type(kind.value_type if repeated else kind),
        "source": {**source, "extract": {"column": column.name}},
    }
    if repeated:
        field["repeated"] = True
    if pa.types.is_struct(kind):  # {bytes, path}, as the package datasets stores images
        field["source"]["transform"] = {"jsonPath": "bytes"}
    return field


def _description(column: pa.Field) -> str:
    if column.name == "image":  # the index's number, or in the layout "parquet" the image itself
        return "The image." if _data_type(column.type) == "sc:ImageObject" else _DESCRIPTIONS["number"]
    return _DESCRIPTIONS.get(column.name, column.name.replace("_", " "))


def _data_type(kind: pa.DataType) -> str:
    from pyarrow import types

    if types.is_struct(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return "sc:ImageObject"
    if types.is_boolean(kind):
        return "sc:Boolean"
    if types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if types.is_floating(kind) else "sc:Text"


def _pictures(plan: DatasetPlan) -> dict[str, Any]:
    """Image files and what finds their rows in the index: the key in a tar, the path in folders."""
    inside = plan.layout == "webdataset"
    name: dict[str, Any] = {"fileSet": {"@id": "pictures"}, "extract": {"fileProperty": "fullpath"}}
    if inside:
        name = {**name, "extract": {"fileProperty": "filename"}, "transform": {"regex": r"^(.+)\.[a-z]+$"}}
    column = "key" if inside else "file"
    content = {"fileSet": {"@id": "pictures"}, "extract": {"fileProperty": "content"}}
    fields = ((column, "sc:Text", name), ("image", "sc:ImageObject", content))
    return {
        "@type": "cr:RecordSet",
        "@id": "files",
        "name": "files",
        "description": f"One row an image file; `{column}` is that of the record set images.",
        "key": {"@id": f"files/{column}"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"files/{field}",
                "name": field,
                "description": _DESCRIPTIONS.get(field, "The image."),
                "dataType": kind,
                "source": source,
            }
            for field, kind, source in fields
        ],
    }
