"""What requests to `rovrm.serve` hold, and what it replies, as pydantic checks and documents it.

Names and comments of these classes are public: FastAPI shows them under /docs and /openapi.json. They have no
docstrings, because those would be shown there too.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

RESPONSES = 64  # of one prompt, and images of one prompt
QUERIES = 1024  # of one OpenRLHF request

# ---- requests --------------------------------------------------------------------------------------------------------


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextBlock(Body):
    type: Literal["text"]
    text: str


class ImageBlock(Body):
    type: Literal["image"]


class ChatMessage(Body):
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


Images = Annotated[list[str], Field(max_length=RESPONSES)]


class ScoreRequest(Body):
    prompt: str | list[ChatMessage] = Field(description="a text, or chat messages")
    responses: Annotated[list[str], Field(min_length=1, max_length=RESPONSES)]
    images: Images | None = Field(None, description="base64, data URIs, or paths under the server's image_root")


class RewardRequest(Body):
    query: Annotated[list[str], Field(max_length=QUERIES)] = Field(description="prompt + response, each as one text")
    prompts: list[str] = Field(description="the prompts alone, one for each query")
    labels: list[Any] | None = Field(None, description="taken and not used")
    images: list[str | Images | None] | None = Field(None, description="null, one image or several for each query")


# ---- replies ---------------------------------------------------------------------------------------------------------


class Scores(BaseModel):
    scores: list[float]


class Ranking(Scores):
    order: list[int] = Field(description="places in `responses`, best first")


class Rewards(Scores):
    rewards: list[float]
    extra_logs: dict[str, list[float]]


class Health(BaseModel):
    status: Literal["ok"]
    model: str
    precision: str = Field(description="the numeric type that decides how exact scores are")
    normalize: bool = Field(description="whether scores are in standard deviations from the mean")


class Error(BaseModel):
    error: str
