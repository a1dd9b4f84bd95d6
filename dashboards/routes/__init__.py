"""The routes, one file a noun."""

from fastapi import APIRouter

from dashboards.routes import fleet, frames, incidents, jobs, operations, page, stream

api_router = APIRouter()
for _module in (fleet, jobs, incidents, stream, frames, operations):
    api_router.include_router(_module.router)

page_router = page.router

__all__ = ["api_router", "page_router"]
