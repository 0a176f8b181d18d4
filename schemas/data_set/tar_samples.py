"""Group the members of a tar into samples, for tars of any tool."""

from __future__ import annotations

from pairloom.schemas.data_set.shard import IMAGE_EXTENSIONS
from pairloom.schemas.data_set.tar_members import Member

TarSample = dict[str, Member]  # extension -> member


def images_of(sample: TarSample) -> list[Member]:
    """The images of one key by name, independent of the tar's order: `x.jpg`, `x.png`, `x.0.jpg`, ..., `x.10.jpg`.

    The first is the image of the sample.
    """
    images = [member for extension, member in sample.items() if _suffix(member) in IMAGE_EXTENSIONS]
    return sorted(images, key=_image_order)


def _image_order(member: Member) -> tuple[int, str, int]:
    infix, _, suffix = member.extension.rpartition(".")
    return len(infix), infix, IMAGE_EXTENSIONS.index(suffix)


def image_of(sample: TarSample) -> Member | None:
    """The image of the sample, or None."""
    return next(iter(images_of(sample)), None)


def group_samples(members: list[Member]) -> dict[str, TarSample]:
    """Members by key. A repeated key with the same extension is another sample, `<key>+1`.

    WebDataset's keys end at the first dot. Keys with dots (`v1.0.jpg`, `v1.0.txt`) are recognised: a longer key is a
    sample of its own if it has its own caption or if no shorter key exists.
    """
    by_long_key: dict[str, list[Member]] = {}
    for member in members:
        middle, _, _ = member.extension.rpartition(".")
        by_long_key.setdefault(f"{member.key}.{middle}" if middle else member.key, []).append(member)
    samples: dict[str, TarSample] = {}
    for long_key, group in by_long_key.items():
        short_key = group[0].key
        has_caption = any(_suffix(member) in ("txt", "json") for member in group)
        is_part = long_key != short_key and short_key in by_long_key and not has_caption
        for member in group:
            if not is_part:
                _put(samples, long_key, _suffix(member), member)
            elif _suffix(member) in IMAGE_EXTENSIONS:  # one more image of the sample: `x.0.jpg`, `x.depth.png`
                _put(samples, short_key, member.extension, member)
    return {key: sample for key, sample in samples.items() if _is_sample(sample)}


def _suffix(member: Member) -> str:
    return member.extension.rpartition(".")[2]


def _put(samples: dict[str, TarSample], key: str, extension: str, member: Member) -> None:
    again, name = 0, key
    while extension in samples.setdefault(name, {}):
        again += 1
        name = f"{key}+{again}"
    samples[name][extension] = member


def _is_sample(sample: TarSample) -> bool:
    """Whether the members are a sample, not another file such as a README."""
    return any(_suffix(member) in (*IMAGE_EXTENSIONS, "txt", "json") for member in sample.values())
