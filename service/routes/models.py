"""GET /v1/models: what can be asked for, and what is loaded."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from model.zoo import ZooEntry
from service import auth, errors, openapi
from service.context import Context, Here

router = APIRouter(tags=["models"])


class Model(BaseModel):
    """One installed model."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str = Field(examples=["tcm-xs-mse-0.013"])
    lmbda: float = Field(serialization_alias="lambda", description="λ, the weight of the distortion in training.")
    metric: str = Field(description="What was optimised: mse or ms-ssim.")
    quality: int | None = Field(description="1 to 6 where λ is one of the field's six.")
    parameters: int
    fingerprint: str = Field(description="Which weights, whatever their name; every bitstream carries it.")
    also_read: list[str] = Field(description="Other weights of that name whose bitstreams are read here too.")
    default: bool = Field(description="Used where a request names none.")
    embedded: bool = Field(description="Came with the package.")
    loaded: bool
    device: str | None = Field(description="Where it is loaded.")
    memory: int = Field(description="Bytes of weights on the device.")


class Models(BaseModel):
    """The installed models, by width, metric and rising λ."""

    models: list[Model]


@router.head("/v1/models", dependencies=[auth.ANY_KEY], include_in_schema=False)
@router.get(
    "/v1/models",
    summary="List the installed models",
    dependencies=[auth.ANY_KEY],
    responses=openapi.problems(errors.KeyRequired, errors.InvalidKey),
)
async def models(here: Here) -> Models:
    """Every installed model, whether it is loaded, and what it takes."""
    return Models(models=[_describe(here, entry) for entry in here.zoo.entries()])


def _describe(here: Context, entry: ZooEntry) -> Model:
    resident = here.pool.resident(entry)
    return Model(
        name=entry.name,
        lmbda=entry.info.lmbda,
        metric=entry.info.metric,
        quality=entry.quality,
        parameters=entry.info.parameters,
        fingerprint=entry.info.fingerprint,
        also_read=here.zoo.also_read(entry),
        default=entry == here.default_entry,
        embedded=entry.embedded,
        loaded=resident is not None,
        device=here.pool.device if resident else None,
        memory=resident.memory if resident else 0,
    )
