"""Serves a reward model over HTTP, on this machine alone unless told otherwise.

    pip install 'rovrm[serve]'
    python -m rovrm.serve model=runs/demo/phase3-visual port=8000
    curl localhost:8000/score -H 'Content-Type: application/json' -d '{"prompt": "Hello", "responses": ["Hi.", "No."]}'

    POST /score       {"prompt", "responses", "images"}         {"scores": [float]}, higher is better
    POST /rank        the same                                  {"order": [int], best first, "scores": [float]}
    POST /get_reward  {"query", "prompts", "labels", "images"}  {"rewards", "scores", "extra_logs"}, for OpenRLHF
    GET  /health                                                {"status": "ok", "model", "precision", "normalize"}
    GET  /docs, /openapi.json                                   all of this with its types

`prompt` is a text or chat messages ({role, content}; content a text, or blocks {"type": "text", "text"} and
{"type": "image"}). `images`: base64, data URIs, or, with image_root=FOLDER, paths inside that folder that end in a
suffix such as .jpg; URLs are never fetched. Scores are those of `RewardScorer.score`.

Requests that come at the same time are scored in one batch of at most `batch_tokens`; one that comes alone is scored at
once. Whatever can be wrong with a request is found before it waits among others, and where a batch fails all the same
its requests are scored one by one. Every refusal is {"error": one line}, with status 400 (not JSON), 401 (token), 404,
405, 408 (the body takes a minute), 413 (body, images or all conversations together too large), 415 (no JSON by its
header, no image by its bytes), 422 (wrong types, unknown keys, too long), 429 (`queue` requests are in work) or 500. A
host that other machines can reach is refused without a token.

OpenRLHF: `--remote_rm_url http://localhost:8000/get_reward`. `query` are full texts, prompt + response, one for each of
`prompts`; `labels` are not used. Rewards and scores are lists with one float per query, extra_logs holds such lists. An
added key `images` holds null, one image or a list for each query, in the order in which the text shows them; a run of
image tokens, as decoded from a policy's expanded ones, may stand for several (422 where two runs share three images and
nothing tells how). The response is what follows the prompt in the query, without white space around it and the
end-of-turn tokens behind it. A prompt that the policy's chat template has wrapped is unwrapped where the template is
the reward model's own. 422 says so where a query does not start with its prompt (one that was cut from the left to fit,
say), or where the prompt is in another chat template. No queries at all give empty lists, because OpenRLHF sends them
to the servers that it has no work for.
"""

import ipaddress
import os
import socket
import sys
from dataclasses import replace

from rovrm.common.errors import UserError
from rovrm.settings.command_line import parse, run
from rovrm.settings.keys import ServeConfig


def serve(argv: list[str]) -> None:
    config = parse(ServeConfig, argv, "python -m rovrm.serve")
    config = replace(config, token=config.token or os.environ.get("ROVRM_TOKEN", ""))
    if not config.token and not _is_loopback(config.host):
        raise UserError(
            f"host={config.host!r} can be reached from other machines; set a token (token=, or ROVRM_TOKEN in the "
            "environment), or leave host at 127.0.0.1"
        )
    if config.image_root and not os.path.isdir(config.image_root):
        raise UserError(f"image_root={config.image_root!r} is no folder; name the folder of the images")
    try:
        import uvicorn

        from rovrm.serving.app import make_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "pydantic", "starlette"):
            raise
        raise UserError(f"{error.name} is not installed; pip install 'rovrm[serve]'") from None

    from rovrm.model.scorer import load_scorer

    listening = _listen(config.host, config.port)  # a port that is taken shows before the model is loaded in vain
    scorer = load_scorer(config)
    server = uvicorn.Server(uvicorn.Config(make_app(scorer, config), log_level="warning", server_header=False))
    host = f"[{config.host}]" if ":" in config.host else config.host
    print(f"serving {config.model} on http://{host}:{listening.getsockname()[1]}, see /docs", flush=True)
    server.run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    """Whether this machine alone can reach the host. A name other than localhost may stand for any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, TypeError, ValueError) as error:  # the last two of names that no host can have
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={host!r} port={port}: {reason}; give another port or host") from None


def main(argv: list[str] | None = None) -> int:
    return run(serve, sys.argv[1:] if argv is None else argv, "rovrm.serve")


if __name__ == "__main__":
    sys.exit(main())
