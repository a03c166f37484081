"""Chooses rows of a pool of ready features for a target.

    python -m data_selection pool=pool.npy target=target.npy k=1000 out=chosen
    python -m data_selection pool=pool.safetensors target=target.npy method=knn preprocess=unit,centre k=1000 out=chosen

pool, target: `.npy` or `.safetensors` with one matrix (rows, width). method: capped_ot (default), capped_sinkhorn,
knn, soft_nn, round_robin, gotd, max_cos, mean_l2, paper, random or all. preprocess: some of unit,centre,dedup, or none;
all by default, none in paper. device: where distances are computed, such as cuda. Writes out/selected.json (indices
best first, method, k, preprocess) and out/scores.npy.
"""

import json
import sys
from pathlib import Path
from typing import Any

KEYS = {
    "pool": None,
    "target": None,
    "out": None,
    "k": None,
    "method": "capped_ot",
    "preprocess": "",
    "seed": "0",
    "device": "cpu",
}


def run(argv: list[str]) -> None:
    given = _keys(argv)
    from data_selection.choose import SelectionError, choose

    try:
        numbers = {key: int(given[key] or "") for key in ("k", "seed")}
    except ValueError as error:
        raise SelectionError(f"k and seed take whole numbers ({error})") from error
    pool, target = read_features(given["pool"]), read_features(given["target"])
    steps = [step for step in given["preprocess"].split(",") if step] if given["preprocess"] else None
    steps = [] if steps == ["none"] else steps
    choice = choose(pool, target, numbers["k"], given["method"], steps, numbers["seed"], str(given["device"]))
    write_choice(Path(given["out"]), choice)
    print(f"{len(choice.indices)} of {len(pool)} rows by {choice.method}: {given['out']}/selected.json")


def read_features(path: str) -> Any:
    """A `.npy` matrix, memory-mapped, or the matrix of a `.safetensors` file (`features` where there are several)."""
    import numpy as np

    from data_selection.choose import SelectionError

    file = Path(path)
    if not file.is_file():
        raise SelectionError(f"{path}: no such file; mend the path")
    if file.suffix == ".npy":
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise SelectionError(f"{path} is no array of numbers ({error}); write it with numpy.save") from error
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
    import numpy as np

    from data_selection.choose import SelectionError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectionError(f"out={str(out)!r} cannot be made ({error.strerror}); name another folder") from error
    np.save(out / "scores.npy", choice.scores)
    record = {
        "indices": choice.indices.tolist(),
        "method": choice.method,
        "k": len(choice.indices),
        "preprocess": choice.preprocess,
    }
    (out / "selected.json").write_text(json.dumps(record) + "\n")


def _keys(argv: list[str]) -> dict[str, str]:
    """`key=value` and `--key value` alike."""
    from data_selection.choose import SelectionError

    given: dict[str, Any] = dict(KEYS)
    words = list(argv)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if word.startswith("--") and words else ""
        if key not in KEYS or not value:
            raise SelectionError(f"got {word!r}; takes {', '.join(f'{key}=' for key in KEYS)}")
        given[key] = value
    missing = [key for key, value in given.items() if value is None]
    if missing:
        raise SelectionError(f"{missing[0]}= is missing; needed are pool, target, k and out")
    return given


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if any(word in ("-h", "--help") for word in words):
        print(__doc__)
        return 0
    try:
        run(words)
    except (ValueError, ArithmeticError, MemoryError, OSError, RuntimeError) as error:  # torch names an absent device
        print(f"data_selection: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
