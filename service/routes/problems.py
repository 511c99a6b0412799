"""GET /problems: the documentation that a problem's `type` points to."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from service import openapi
from service.errors import PROBLEMS, InvalidParameter, NotFound, Problem

router = APIRouter(tags=["problems"])


class ProblemType(BaseModel):
    """One kind of problem."""

    code: str
    title: str
    status: int
    description: str = Field(description="What it means and what to do about it.")

    @classmethod
    def of(cls, problem: type[Problem]) -> ProblemType:
        """The description of a problem's class."""
        return cls(
            code=problem.code,
            title=problem.title(),
            status=problem.status,
            description=" ".join(problem.documentation().split()),
        )


@router.head("/problems", include_in_schema=False)
@router.get("/problems", summary="Every problem", responses=openapi.problems())
async def problems() -> list[ProblemType]:
    """Every kind of problem that this service answers with."""
    return [ProblemType.of(problem) for problem in PROBLEMS.values()]


@router.head("/problems/{code}", include_in_schema=False)
@router.get("/problems/{code}", summary="One problem", responses=openapi.problems(NotFound, InvalidParameter))
async def problem(code: str) -> ProblemType:
    """What a problem means and what to do about it."""
    if code not in PROBLEMS:
        raise NotFound(f"no problem has the code {code!r:.100}")
    return ProblemType.of(PROBLEMS[code])
