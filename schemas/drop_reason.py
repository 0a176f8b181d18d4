"""Every reason to drop a sample, and the step that gives it.

A reason is a value in tables, manifests and reports. Names are part of the on-disk contract
(`docs/reference/formats.md`): reasons may be added, never renamed.
"""

from __future__ import annotations

from enum import StrEnum


class DropReason(StrEnum):
    """Why a sample is not in the curated data set."""

    # ingest: the input row
    DUPLICATE_ROW = "duplicate_row"  # an earlier row of the source has the same uid
    EMPTY_CAPTION = "empty_caption"
    CAPTION_TOO_LONG = "caption_too_long"
    INVALID_URL = "invalid_url"
    MISSING_IMAGE = "missing_image"  # a tar or table row without image bytes
    INVALID_BOXES = "invalid_boxes"  # the boxes to blur cannot be read
    SECOND_IMAGE = "second_image"  # adopted tars: not the first image of its key
    # ingest: the fetch
    PRIVATE_ADDRESS = "private_address"
    DNS_ERROR = "dns_error"
    CONNECTION_ERROR = "connection_error"
    TIMEOUT = "timeout"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    HTTP_NOT_FOUND = "http_not_found"  # 404 and 410
    HTTP_CLIENT_ERROR = "http_client_error"  # any other 4xx
    HTTP_RATE_LIMITED = "http_rate_limited"  # 429
    HTTP_SERVER_ERROR = "http_server_error"  # 5xx
    TRUNCATED_BODY = "truncated_body"  # fewer bytes than Content-Length
    TOO_MANY_BYTES = "too_many_bytes"
    ROBOTS_TXT = "robots_txt"
    ROBOTS_DIRECTIVE = "robots_directive"  # X-Robots-Tag: noai, noindex, ...
    # ingest: the image
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DECODE_ERROR = "decode_error"
    TOO_FEW_BYTES = "too_few_bytes"
    DECODER_CRASHED = "decoder_crashed"  # the decoder process died twice
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    ASPECT_RATIO = "aspect_ratio"
    # dedupe
    EXACT_DUPLICATE = "exact_duplicate"
    PERCEPTUAL_DUPLICATE = "perceptual_duplicate"
    SEMANTIC_DUPLICATE = "semantic_duplicate"
    CAPTION_OF_KEPT_IMAGE = "caption_of_kept_image"  # same_image_captions: keep_one
    PLACEHOLDER = "placeholder"
    CONTAMINATED = "contaminated"
    # select
    NOT_IN_SUBSET = "not_in_subset"
    FEW_WORDS = "few_words"
    FEW_CHARS = "few_chars"
    LANGUAGE = "language"
    LOW_SCORE = "low_score"
    HIGH_SCORE = "high_score"
    BALANCED = "balanced"
    RECALLED = "recalled"


TRANSIENT = frozenset(
    {
        DropReason.DNS_ERROR,
        DropReason.CONNECTION_ERROR,
        DropReason.TIMEOUT,
        DropReason.HTTP_RATE_LIMITED,
        DropReason.HTTP_SERVER_ERROR,
        DropReason.TRUNCATED_BODY,
    }
)
"""Reasons after which another attempt may succeed: retried within a fetch and by `--retry transient`."""
