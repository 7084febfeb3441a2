"""Helpers that all formats share: settings, checksums, and what weights have to be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from scgpt_tools._files import checksum_of, placed, read_json
from scgpt_tools.config import to_dict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from scgpt_tools.models.config import ModelConfig


def found(folder: Path, name: str) -> Path:
    """A file of a checkpoint."""
    path = placed(folder, name)
    if path is None:
        raise FileNotFoundError(f"Expected {name} in the checkpoint {str(folder)!r}, found none.")
    return path


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; a setting of many megabytes is none."""
    return read_json(path, megabytes=16)


def save_tensors(write: Callable[[], object], path: Path) -> None:
    """Write a file of tensors by a function whose library has errors of its own for a disk that is full."""
    try:
        write()
    except OSError:
        raise
    except (RuntimeError, SafetensorError) as error:
        found = path.stat().st_size if path.exists() else 0
        raise OSError(
            f"Could not write {path.name}, after {found:,} bytes. The disk may be full, or files of that size not be "
            "allowed; what was there before is unchanged."
        ) from error


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of files that belong together, by their names."""
    return {name: checksum_of(folder / name) for name in names}


def check_content(path: Path, expected: Mapping[str, str], settings: str) -> None:
    """Refuse a file whose content is not the one that was saved with the others.

    Reading 200 MB for their SHA-256 takes about 0.1 s on a processor with instructions for it, 0.5 s on others.

    ``expected``: checksums by name; empty where the folder was written without.
    """
    if path.name in expected and checksum_of(path) != expected[path.name]:
        raise ValueError(
            f"Expected {str(path)!r} to be the file that was saved together with {settings}, found another: its "
            "checksum differs. It was exchanged or damaged, and the model would not be the one that was saved. Copy the "
            f"whole folder again; if the change is meant, remove `checksums` from {settings}."
        )


def check_parts(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Refuse a description of more parts, or larger ones, than the tensors of a file can fill, before any is built."""
    said = to_dict(config)
    del said["tokenizer"]
    total = sum(tensor.numel() for tensor in weights.values())
    for place, number in _whole_numbers(said):
        counts = place.endswith(_COUNTS)
        most, what = (len(weights), "tensors") if counts else (total, "numbers")
        if number > most:
            raise ValueError(
                f"Expected `{place}` to be at most {most:,}, since the weights have so many {what}, found {number}."
            )


# Settings that say how many parts there are; other whole numbers say how large one is.
_COUNTS = ("layers", "domains", "experts")


def _whole_numbers(said: Any, place: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(said, dict):
        for name, value in said.items():
            yield from _whole_numbers(value, f"{place}.{name}" if place else name)
    elif isinstance(said, int) and not isinstance(said, bool):
        yield place, said


def own_weights(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Copy tensors from a mapped file to memory of their own, so that nothing that happens to the file changes them."""
    own = {key: tensor.detach().clone(memory_format=torch.contiguous_format) for key, tensor in weights.items()}
    check_weights(own, source)
    return own


def check_weights(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinite numbers, or nothing yet, by name; see :func:`own_weights`."""
    if absent := [key for key, tensor in weights.items() if tensor.is_meta]:
        raise ValueError(
            f"Expected the weights of {source} in memory, found {len(absent)} tensors on the device 'meta', which have no "
            "values. Load the model from its files."
        )
    bad = [key for key, tensor in weights.items() if not is_finite(tensor)]
    if bad:
        shown = ", ".join(bad[:8]) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"Expected the weights of {source} to be finite, found NaN or infinite numbers in {len(bad)} of "
            f"{len(weights)} tensors: {shown}. Every result would be NaN or meaningless; the training that made them "
            "failed, or the file is damaged."
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite; whole numbers always are."""
    if not tensor.is_floating_point():
        return True
    # The sum is not finite if a number is not, and is some fifty times faster than looking at each; it may overflow.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def as_float(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Widen half-precision tensors to float32; leave the others as they are."""
    return {
        key: tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float32 else tensor
        for key, tensor in weights.items()
    }
