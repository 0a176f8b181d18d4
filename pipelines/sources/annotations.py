"""Caption files of published data sets, one caption per row: COCO, Karpathy's splits, Flickr8k and Flickr30k.

Rows have `image` (a file name), `caption` and the file's own fields, which `keep_columns` can name. Known formats:

- COCO, `captions_val2017.json`: {"images": [{"id", "file_name", ...}], "annotations": [{"image_id", "caption", ...}]};
- Karpathy, `dataset_flickr8k.json`: {"images": [{"filename", "filepath", "split", "sentences": [{"raw"}]}]};
- Flickr, `Flickr8k.token.txt` and `results_20130124.token`: lines of name#number, a tab, the caption;
- Flickr30k's `results.csv`: image_name| comment_number| comment; Flickr8k's `captions.txt`: image,caption.

A JSON object is read whole: COCO's 90 MB of training captions need about 1 GB of memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import IO, Any

from pairloom.pipelines.sources.source import format_of
from pairloom.pipelines.sources.text_tables import ERROR_COLUMN, MAX_FIELD_CHARS, Row, blame, open_text
from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

START_CHARS = 4096  # start of a file, read to detect its format


def kind_of(url: str) -> str | None:
    """`json`, `token`, `bars` or `commas` for a known caption file, None for any other file; reads its start."""
    name = storage.name_of(url).lower()
    format_name = format_of(url)
    if format_name not in ("json", "token", "txt", "csv"):
        return None
    with blame(url), open_text(url) as file:
        start = file.read(START_CHARS)
    first = start.partition("\n")[0]
    if format_name == "json":
        is_object = start.lstrip()[:1] == "{" and ('"images"' in start or '"annotations"' in start or '"info"' in start)
        return "json" if is_object else None
    if "#" in first.partition("\t")[0] and "\t" in first:
        return "token"
    if "|" in first and "comment" in first:
        return "bars"
    return "commas" if format_name == "txt" and first.count(",") and "caption" in first and "cap" in name else None


def read_annotations(url: str, kind: str) -> Iterator[Row]:
    """Rows of a caption file of the given `kind_of`. Raises InputError if it has another format."""
    with blame(url), open_text(url) as file:
        if kind == "json":
            yield from _json_rows(file, url)
        elif kind == "token":
            yield from _token_rows(file)
        else:
            yield from _delimited_rows(file, "|" if kind == "bars" else ",")


def _json_rows(file: IO[str], url: str) -> Iterator[Row]:
    try:
        value = json.load(file)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url}: not JSON: {error}") from error
    images = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise InputError(f"{url}: a JSON object without images; use COCO's or Karpathy's caption files")
    annotations = value.get("annotations")
    if isinstance(annotations, list):
        yield from _coco_rows(images, annotations)
    else:
        yield from _karpathy_rows(images)


def _coco_rows(images: list[Row], annotations: list[Any]) -> Iterator[Row]:
    by_id = {image.get("id"): image for image in images}
    for number, annotation in enumerate(annotations):
        image = by_id.get(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if image is None:
            yield {ERROR_COLUMN: f"annotation {number}: its image_id is not in the file"}
            continue
        yield {**_renamed(image, "coco_url"), **annotation, "image": image.get("file_name")}


def _karpathy_rows(images: list[Row]) -> Iterator[Row]:
    for image in images:
        folder, name = image.get("filepath"), image.get("filename") or image.get("file_name")
        path = f"{folder}/{name}" if folder else name
        sentences = image.get("sentences")
        captions = [one.get("raw") for one in sentences if isinstance(one, dict)] if isinstance(sentences, list) else []
        fields = {key: value for key, value in image.items() if key != "sentences"}
        for caption in captions or [None]:
            yield {**fields, "image": path, "caption": caption}


def _renamed(image: Row, url: str) -> Row:
    return {**image, "url": image.get("url") or image.get(url)}


def _token_rows(file: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        name, tab, caption = line.rstrip("\r\n").partition("\t")
        if not line.strip():
            continue
        image, mark, caption_number = name.rpartition("#")
        if tab and mark:
            yield {"image": image, "caption": caption, "caption_number": caption_number}
        else:
            yield {ERROR_COLUMN: f"line {number}: not name#number, tab, caption"}


def _delimited_rows(file: IO[str], delimiter: str) -> Iterator[Row]:
    """Lines below a header. Bar-delimited files have no quoting; one line of Flickr30k's file has no second bar."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    if delimiter == "|":
        reader = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(file, delimiter=delimiter)
    names = [name.strip() for name in next(reader, [])]
    for values in reader:
        row: Row = dict(zip(names, (value.strip() for value in values), strict=False))
        if not row:
            continue
        caption = row["caption"] if "caption" in row else row.get("comment")
        if caption is None and delimiter == "|" and len(values) == 2:
            number, _, caption = values[1].strip().partition(" ")
            row["comment_number"] = number
        yield {**row, "image": row.get("image") or row.get("image_name"), "caption": caption}
