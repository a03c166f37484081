"""Makes the tiny base again, or a CLIP of the world, or writes pairs of the world as files.

    python -m rovrm.world train out=base compile=true    # about an hour on 2 cores, in one go; prints what it sees
    python -m rovrm.world measure                        # what the shipped base sees and how often it invents
    python -m rovrm.world clip out=runs/world-clip       # a small CLIP, for rovrm.csr; about 10 minutes
    python -m rovrm.world write out=data n=1000          # text.jsonl, caption.jsonl, visual.jsonl and images/

`train` and `clip` write ordinary model folders with their processors.
"""

import sys
from pathlib import Path

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import WorldClipConfig, WorldConfig, WorldMeasureConfig, WorldTrainConfig


def world(argv: list[str]) -> None:
    commands = {"train": _train_base, "clip": _train_clip, "measure": _measure_model, "write": _write_files}
    name = argv[0] if argv else "no command"
    if name in commands:
        commands[name](argv[1:])
    elif name in ("-h", "--help"):
        print(__doc__)
    else:
        raise UserError(f"got {name!r}, takes {' or '.join(commands)}")


def _train_base(argv: list[str]) -> None:
    config = parse(WorldTrainConfig, argv, "python -m rovrm.world train")
    out = _empty_folder(config.out)

    from rovrm.tiny_base.base import make_base
    from rovrm.tiny_base.measure import measure_base

    model, processor = make_base(out, config.samples, config.seed, compiled=config.compile)
    _print_rates(measure_base(model, processor))


def _train_clip(argv: list[str]) -> None:
    config = parse(WorldClipConfig, argv, "python -m rovrm.world clip")
    out = _empty_folder(config.out)

    from rovrm.tiny_base.clip import make_clip

    make_clip(out, config.steps, config.seed)


def _empty_folder(out: str) -> Path:
    """The folder, made. Raises UserError where it holds a model or cannot be written, before minutes are spent."""
    folder = Path(out)
    if (folder / "config.json").is_file():
        raise UserError(f"out={out!r} holds a model already; give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    except OSError as error:
        raise UserError(f"out={out!r} cannot be written ({error.strerror}); give another folder") from error
    return folder


def _measure_model(argv: list[str]) -> None:
    config = parse(WorldMeasureConfig, argv, "python -m rovrm.world measure")

    from rovrm.model.policy import Policy
    from rovrm.tiny_base.measure import measure_base
    from rovrm.world.default import BASE

    policy = Policy.from_pretrained(config.model or BASE, device="cpu")
    _print_rates(measure_base(policy.model, policy.processor))


def _print_rates(rates: dict[str, float]) -> None:
    for name, value in rates.items():
        print(f"{name:<20}{value:.3f}")


def _write_files(argv: list[str]) -> None:
    config = parse(WorldConfig, argv, "python -m rovrm.world write")

    from rovrm.world.files import write_world

    write_world(Path(config.out), config.n, config.seed, config.split)
    print(f"{config.n} pairs of each kind: {config.out}/text.jsonl, caption.jsonl, visual.jsonl")


def main(argv: list[str] | None = None) -> int:
    return run(world, sys.argv[1:] if argv is None else argv, "rovrm.world")


if __name__ == "__main__":
    sys.exit(main())
