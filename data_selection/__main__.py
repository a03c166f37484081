"""Chooses rows of a pool of ready features for a target.

    python -m data_selection pool=pool.npy target=target.npy k=1000 out=chosen
    python -m data_selection pool=pool.safetensors target=target.npy method=knn preprocess=unit,centre k=1000 out=chosen

pool, target: `.npy` or `.safetensors` with one matrix (rows, width). method: capped_ot (default), capped_sinkhorn,
knn, soft_nn, round_robin, gotd, max_cos, mean_l2, paper, random or all. preprocess: some of unit,centre,dedup, or none;
unit,dedup by default, none in paper. price: of rows on the wrong side of the target, with capped_ot, knn and soft_nn;
0 by default. device: where distances are computed, such as cuda. Writes out/selected.json
(indices best first, method, k, preprocess) and out/scores.npy.
"""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

KEYS = {  # with their defaults; None for those that must be given
    "pool": None,
    "target": None,
    "out": None,
    "k": None,
    "method": "capped_ot",
    "preprocess": "",
    "seed": "0",
    "device": "cpu",
    "price": "0",
}


def run(argv: list[str]) -> None:
    """The command, from its words to its files. Raises SelectionError and what `choose` raises."""
    settings = _keys(argv)
    from data_selection.choose import SelectionError, choose

    try:
        numbers = {key: int(settings[key] or "") for key in ("k", "seed")}
    except ValueError as error:
        raise SelectionError(f"k and seed take whole numbers ({error})") from error
    try:
        price = float(settings["price"])
    except ValueError as error:
        raise SelectionError(f"price={settings['price']}; give a number, such as 0.1") from error
    if not 0 <= numbers["seed"] < 2**63:
        raise SelectionError(f"seed={numbers['seed']}; give a whole number from 0 to 2**63 - 1")
    pool, target = read_features(settings["pool"]), read_features(settings["target"])
    out, device = Path(settings["out"]), settings["device"]
    _check_place(out, device)
    steps = [step for step in settings["preprocess"].split(",") if step] if settings["preprocess"] else None
    steps = [] if steps == ["none"] else steps
    choice = choose(pool, target, numbers["k"], settings["method"], steps, numbers["seed"], device, price)
    write_choice(out, choice)
    print(
        f"{len(choice.indices)} of {len(pool)} rows by {choice.method}: {out}/selected.json; "
        f"{int(choice.duplicates.sum())} near-duplicates passed over"
    )


def read_features(path: str) -> Any:
    """A `.npy` matrix, memory-mapped, or the matrix of a `.safetensors` file (`features` where there are several)."""
    import numpy as np

    from data_selection.choose import SelectionError

    file = Path(path)
    if not file.is_file():
        raise SelectionError(f"{path}: no such file; mend the path")
    if file.suffix == ".npy":
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            kind = array.dtype
        except (ValueError, EOFError, AttributeError) as error:  # AttributeError: an archive of several arrays
            raise SelectionError(f"{path} is no array of numbers; write it with numpy.save") from error
        if kind.kind not in "fiu" or kind.itemsize > 8 or not kind.isnative:
            raise SelectionError(f"{path} holds {kind}; write it as float16, float32 or float64")
        return array
    if file.suffix != ".safetensors":
        raise SelectionError(f"{path}: takes .npy or .safetensors; convert it to one of them")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise SelectionError(f"{path} is no safetensors file ({error}); write it with safetensors") from error
    if len(tensors) != 1 and "features" not in tensors:
        raise SelectionError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; name the matrix 'features'")
    return tensors.get("features", next(iter(tensors.values())))


def write_choice(out: Path, choice: Any) -> None:
    """Writes selected.json and scores.npy."""
    import numpy as np

    np.save(out / "scores.npy", choice.scores)
    record = {
        "indices": choice.indices.tolist(),
        "method": choice.method,
        "k": len(choice.indices),
        "preprocess": choice.preprocess,
    }
    (out / "selected.json").write_text(json.dumps(record) + "\n")


def _check_place(out: Path, device: str) -> None:
    """Raises SelectionError, before anything is computed, for a folder or a device that cannot be used."""
    import torch

    from data_selection.choose import SelectionError

    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SelectionError(f"out={str(out)!r} cannot be written ({error.strerror}); name another folder") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SelectionError(f"device={device!r} is not there ({reason}); take cpu, cuda or cuda:0") from error


def _keys(argv: list[str]) -> dict[str, str]:
    """The settings of a command line; `key=value` and `--key value` are alike."""
    from data_selection.choose import SelectionError

    settings: dict[str, Any] = dict(KEYS)
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if word.startswith("--") and words else ""
        if key not in KEYS or not value:
            raise SelectionError(f"got {word!r}; takes {', '.join(f'{key}=' for key in KEYS)}")
        settings[key] = value
    missing = [key for key, value in settings.items() if value is None]
    if missing:
        raise SelectionError(f"{missing[0]}= is missing; needed are pool, target, k and out")
    return settings


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return 0
    try:
        run(words)
    except (ValueError, ArithmeticError, MemoryError, OSError, RuntimeError) as error:
        print(f"data_selection: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
